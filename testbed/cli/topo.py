"""`testbed topo show FILE`: a topology as a drawing in the terminal, and as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)
MANY = 12  # nodes of one tier that are drawn one by one


@app.callback()
def topo() -> None:
    """Draw topologies."""


@app.command()
def show(
    file: Path = typer.Argument(..., help="topology file"),
    svg: Path | None = typer.Option(None, help="also write the drawing to this SVG file"),
) -> None:
    """Draw the topology of FILE: tiers from left to right, links with what each direction does."""
    from rich.console import Console

    from testbed.errors import InputError
    from testbed.measurement.atomic import write_text_atomic
    from testbed.schema.files import load_topology

    topology = load_topology(file)
    if svg is not None and svg.suffix != ".svg":
        raise InputError("is not the name of an SVG file", key="--svg", value=str(svg), remedy="end it with .svg")
    console = Console()
    for line in text_drawing(topology):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if svg is not None:
        write_text_atomic(svg, svg_drawing(topology))
        console.print(f"drawing: {svg}", highlight=False, soft_wrap=True)


def text_drawing(topology: Any) -> list[str]:
    """A tree per tier pair: every link of the file with its nodes and both directions."""
    lines = [topology.description] if topology.description else []
    for tier in topology.tiers:
        lines.append(f"{tier.name}: {_names(tier.nodes)}  [{_about_tier(tier)}]")
    for link in topology.links:
        a, b = link.between
        pairs = [f"{x}-{y}" for spec, x, y in topology.node_links() if spec is link]
        lines.append("")
        lines.append(f"{a} ──┬── {b}    {_names(pairs)}")
        lines.append(f"{' ' * len(a)}   ├ up    {describe(link.direction('up'))}")
        lines.append(f"{' ' * len(a)}   └ down  {describe(link.direction('down'))}")
    return lines


def describe(direction: Any) -> str:
    """`synthetic-lte-driving.up, 10 ms, queue 300 ms` of one direction of a link."""
    parts = []
    if direction.trace is not None:
        parts.append("trace " + "+".join(Path(t).name for t in direction.trace))
    elif direction.rate is not None:
        parts.append(f"{direction.rate / 1e6:g} Mbit/s")
        parts += [f"burst {direction.burst / 1e3:g} kB"] if direction.burst is not None else []
    else:
        parts.append("no rate limit")
    if direction.delay:
        parts.append(f"{direction.delay * 1e3:g} ms")
    if direction.jitter:
        parts.append(f"jitter {direction.jitter * 1e3:g} ms")
    if direction.loss is not None:
        parts.append("loss")
    queue = direction.queue
    if queue is not None:
        sizes = ((queue.packets, "packets"), (queue.bytes, "bytes"), (None if queue.time is None else queue.time * 1e3, "ms"))
        parts += [f"queue {size:g} {unit}" for size, unit in sizes if size is not None]
    return ", ".join(parts)


def _about_tier(tier: Any) -> str:
    limits = [f"{tier.cpus:g} CPUs"] if tier.cpus else []
    return ", ".join([tier.compute.profile or "real compute", tier.runtime, *limits])


def _names(names: Any) -> str:
    names = list(names)
    return " ".join(names) if len(names) <= MANY else f"{' '.join(names[:3])} ... {names[-1]} ({len(names)})"


def svg_drawing(topology: Any) -> str:
    """Tiers as columns, nodes as boxes, a line per link; the direction's text is in the line's tooltip and a legend."""
    from xml.sax.saxutils import escape

    column, row, width, height, top = 300, 64, 120, 36, 70
    most = max(len(t.nodes) for t in topology.tiers)
    at = {node: (60 + i * column, top + (j + (most - len(tier.nodes)) / 2) * row)
          for i, tier in enumerate(topology.tiers) for j, node in enumerate(tier.nodes)}
    parts = []
    for link, a, b in topology.node_links():
        (xa, ya), (xb, yb) = at[a], at[b]
        same = xa == xb
        x1, x2 = (xa + width, xb + width) if same else (xa + width, xb) if xa < xb else (xa, xb + width)
        bend = f"C {x1 + 60} {ya + height / 2:g} {x2 + 60} {yb + height / 2:g}" if same else "L"
        tip = f"{a}-{b}\nup: {describe(link.direction('up'))}\ndown: {describe(link.direction('down'))}"
        parts.append(f'<path d="M {x1} {ya + height / 2:g} {bend} {x2} {yb + height / 2:g}" class="link">'
                     f"<title>{escape(tip)}</title></path>")
    for i, tier in enumerate(topology.tiers):
        x = 60 + i * column + width / 2
        parts.append(f'<text x="{x:g}" y="28" class="tier">{escape(tier.name)}</text>')
        parts.append(f'<text x="{x:g}" y="46" class="about">{escape(_about_tier(tier))}</text>')
    for node, (x, y) in at.items():
        parts.append(f'<rect x="{x}" y="{y:g}" width="{width}" height="{height}" rx="4"/>')
        parts.append(f'<text x="{x + width / 2:g}" y="{y + height / 2 + 5:g}" class="node">{escape(node)}</text>')
    y = top + most * row + 24
    for link in topology.links:
        for which in ("up", "down"):
            text = f"{link.between[0]}-{link.between[1]} {which}: {describe(link.direction(which))}"
            parts.append(f'<text x="20" y="{y:g}" class="legend">{escape(text)}</text>')
            y += 20
    total = max(560, 60 * 2 + (len(topology.tiers) - 1) * column + width)
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {y:g}" width="{total}" height="{y:g}">
<style>
text {{ font: 13px sans-serif; fill: #222 }} .tier {{ font-weight: bold; text-anchor: middle }}
.about, .legend {{ font-size: 11px; fill: #555 }} .about, .node {{ text-anchor: middle }}
rect {{ fill: #eef3f8; stroke: #35608a }} .link {{ fill: none; stroke: #888; stroke-width: 1.5 }}
</style>
<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>
{body}
</svg>
"""
