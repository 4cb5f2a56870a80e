"""`testbed traces`: list, inspect, plot, convert, generate and get bandwidth traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.errors import InputError
from testbed.traces.statistics import QUANTILES
from testbed.traces.trace import Trace

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="List, inspect, plot, convert, generate and get bandwidth traces.",
)

FormatOption = Annotated[
    str | None, typer.Option("--format", help="format of the input, instead of finding it out")
]
ColumnOption = Annotated[
    str | None, typer.Option("--column", help="which series, where a file holds several")
]
ClipOption = Annotated[
    str | None,
    typer.Option("--clip", help="cut rates to 0..RATE instead of refusing negative and absurd ones"),
]


@app.command("list")
def list_traces(
    folder: Annotated[Path, typer.Argument(help="a folder of traces, searched with its sub-folders")] = Path(
        "traces"
    ),
    formats: Annotated[
        bool, typer.Option("--formats", help="list the formats that can be read instead")
    ] = False,
) -> None:
    """One line per trace of a folder: format, duration, mean rate; files that are no trace say why."""
    from testbed.traces import FORMATS
    from testbed.traces.registry import detect, read_source
    from testbed.traces.source import open_source

    if formats:
        for known in FORMATS:
            typer.echo(f"{known.name:<10} {'read+write' if known.write else 'read':<10}  {known.about}")
        return
    if not folder.is_dir():
        raise InputError(
            "no such folder of traces", file=folder, remedy="name one, or get some: testbed traces get --list"
        )
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        try:
            source = open_source(path)
            known = detect(source)
            choices: list[str | None] = [*known.columns(source)] if known.columns else [None]
            for column in choices:
                trace = read_source(source, format=known.name, column=column)
                label = f"{path.relative_to(folder)}{f'  --column {column}' if len(choices) > 1 else ''}"
                length = f"{trace.duration_ns / 1e9:8.1f} s {trace.mean_rate_bps / 1e6:9.2f} Mbit/s"
                typer.echo(f"{label:<48} {known.name:<10} {length}")
        except InputError as error:
            typer.echo(f"{path.relative_to(folder)!s:<48} -          {error.problem}")


@app.command()
def generate(
    prefix: Annotated[Path, typer.Argument(help="writes PREFIX.up and PREFIX.down")],
    mobility: Annotated[str, typer.Option(help="static, walking or driving")] = "driving",
    seed: Annotated[int, typer.Option(help="same seed, same bytes")] = 1,
    duration: Annotated[str, typer.Option(help="period, a multiple of 20ms")] = "150s",
    up: Annotated[str, typer.Option(help="mean rate of the uplink")] = "4mbit",
    down: Annotated[str, typer.Option(help="mean rate of the downlink")] = "10mbit",
    variability: Annotated[float, typer.Option(help="factor on the standard deviations of the class")] = 1.0,
    outages_per_min: Annotated[float | None, typer.Option(help="instead of the class's own rate")] = None,
    to: Annotated[
        str, typer.Option(help="csv (exact) or mahimahi (1500-byte packets, rounded to 1 ms)")
    ] = "csv",
) -> None:
    """Make a synthetic LTE pair; docs/traces.md says how."""
    from testbed.schema.units import parse_duration_s
    from testbed.traces import save_trace
    from testbed.traces.generate import generate_pair

    duration_s = _quantity(parse_duration_s, duration, "--duration")
    up_bps, down_bps = _rate(up, "--up"), _rate(down, "--down")
    pair = generate_pair(
        mobility,
        seed,
        duration_s=duration_s,
        up_bps=up_bps,
        down_bps=down_bps,
        variability=variability,
        outages_per_min=outages_per_min,
    )
    command = (
        f"testbed traces generate {prefix.name} --mobility {mobility} --seed {seed} "
        f"--duration {duration} --up {up} --down {down}"
    )
    if variability != 1.0:
        command += f" --variability {variability:g}"
    if outages_per_min is not None:
        command += f" --outages-per-min {outages_per_min:g}"
    for direction, trace in zip(("up", "down"), pair, strict=True):
        path = prefix.with_name(f"{prefix.name}.{direction}")
        save_trace(
            trace,
            path,
            format=to,
            comments=[f"synthetic, {direction}link, not a measurement; made by:", command],
        )
        typer.echo(f"{path}: {trace.duration_ns / 1e9:g} s, mean {trace.mean_rate_bps / 1e6:.2f} Mbit/s")


@app.command()
def info(
    files: Annotated[list[Path], typer.Argument(help="trace files in any known format")],
    format: FormatOption = None,
    column: ColumnOption = None,
    clip: ClipOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Duration, mean, quantiles, variation, share of zero seconds, autocorrelation time."""
    import json
    from dataclasses import asdict

    from testbed.traces.registry import detect, file_sha256
    from testbed.traces.source import open_source
    from testbed.traces.statistics import describe

    found = []
    for path in files:
        trace = _load(path, format, column, clip)
        known = format or detect(open_source(path)).name
        found.append(
            {
                "file": str(path),
                "format": known,
                "sha256": file_sha256(path),
                "segments": len(trace.bits),
                "has_delay": trace.delay_s is not None,
                "has_loss": trace.loss is not None,
                **asdict(describe(trace)),
            }
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("format", lambda d: f"{d['format']}, {d['segments']} segments"),
        ("also holds", lambda d: ", ".join(k for k in ("delay", "loss") if d[f"has_{k}"]) or "-"),
        ("duration", lambda d: f"{d['duration_s']:.3f} s"),
        ("mean", lambda d: _mbit(d["mean_rate_bps"])),
        ("1 s windows: min", lambda d: _mbit(d["min_bps"])),
        *(
            (f"  {q:.0%} quantile", lambda d, i=i: _mbit(d["quantiles_bps"][i]))
            for i, q in enumerate(QUANTILES)
        ),
        ("  max", lambda d: _mbit(d["max_bps"])),
        ("variation (std/mean), 100 ms", lambda d: f"{d['cov_100ms']:.2f}"),
        ("variation (std/mean), 1 s", lambda d: f"{d['cov_1s']:.2f}"),
        ("seconds without a bit", lambda d: f"{d['zero_share']:.1%}"),
        ("longest time without a bit", lambda d: f"{d['longest_zero_s']:.1f} s"),
        ("autocorrelation time (1/e)", lambda d: f"{d['autocorrelation_s']:.1f} s"),
        ("SHA-256 of the file", lambda d: d["sha256"][:16] + "..."),
    ]
    names = [Path(d["file"]).name for d in found]
    width = max(22, *(len(name) + 2 for name in names))
    typer.echo(" " * 32 + "".join(f"{name:>{width}}" for name in names))
    for title, show in rows:
        typer.echo(f"{title:<32}" + "".join(f"{show(d):>{width}}" for d in found))


@app.command()
def plot(
    files: Annotated[list[Path], typer.Argument(help="one to seven trace files")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a .png, .svg or .pdf to write")] = Path(
        "traces.png"
    ),
    format: FormatOption = None,
    column: ColumnOption = None,
    clip: ClipOption = None,
) -> None:
    """Draw rate over time, distribution and autocorrelation."""
    from testbed.traces.plot import plot_traces

    plot_traces([_load(path, format, column, clip) for path in files], [path.name for path in files], output)
    typer.echo(f"{output}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="a trace in any known format")],
    target: Annotated[Path, typer.Argument(help="the file to write; .gz compresses")],
    to: str | None = typer.Option(
        None, "--to", help="csv or mahimahi; default csv for *.csv[.gz], else mahimahi"
    ),
    format: FormatOption = None,
    column: ColumnOption = None,
    clip: ClipOption = None,
    append: Annotated[
        list[Path] | None, typer.Option("--append", help="further traces, played after the first")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="multiply all rates")] = None,
    offset: Annotated[
        str | None, typer.Option(help="begin at this time of the trace (rotate), e.g. 30s")
    ] = None,
    resample: Annotated[
        str | None, typer.Option(help="average over steps of this length, e.g. 100ms")
    ] = None,
) -> None:
    """Write a trace in another format; first append, then clip, scale, offset, resample."""
    from testbed.schema.units import parse_duration_s
    from testbed.traces import concatenate, save_trace

    trace = _load(source, format, column, clip)
    if append:
        trace = concatenate([trace, *(_load(path, None, None, clip) for path in append)])
    if scale is not None:
        trace = trace.scaled(scale)
    if offset is not None:
        trace = trace.shifted(round(_quantity(parse_duration_s, offset, "--offset") * 1e9))
    if resample is not None:
        trace = trace.resampled(round(_quantity(parse_duration_s, resample, "--resample") * 1e9))
    origins = ", ".join(path.name for path in [source, *(append or [])])
    save_trace(trace, target, format=to, comments=[f"converted from {origins}"])
    typer.echo(f"{target}: {trace.duration_ns / 1e9:g} s, mean {trace.mean_rate_bps / 1e6:.3f} Mbit/s")


@app.command()
def get(
    name: Annotated[str | None, typer.Argument(help="a public set, see --list")] = None,
    folder: Annotated[Path, typer.Option("--into", help="files go to FOLDER/SET/")] = Path("traces"),
    only: Annotated[str, typer.Option(help="only files that match, e.g. 'Verizon*'")] = "*",
    show: Annotated[
        bool, typer.Option("--list", help="list the sets, their licences and what to cite")
    ] = False,
    mirror: Annotated[str | None, typer.Option(help="another host with the same paths")] = None,
) -> None:
    """Download a public set of real traces, pinned and checked; needs the internet."""
    from testbed.traces.catalogue import HOST, SETS
    from testbed.traces.download import fetch_set, find_set

    if show or name is None:
        for item in SETS.values():
            typer.echo(
                f"{item.name}: {len(item.files)} files; {item.about}\n"
                f"    licence: {item.licence}\n    cite: {item.citation}"
            )
        return
    chosen = find_set(name)
    origins = ", ".join(dict.fromkeys(f"github.com/{item.repository}" for item in chosen.files))
    typer.echo(
        f"{chosen.name}: {chosen.about}\n  from: {origins}\n"
        f"  licence: {chosen.licence}\n  cite: {chosen.citation}"
    )
    fetch_set(chosen, folder, only=only, host=mirror or HOST, say=typer.echo)


def _load(path: Path, format: str | None, column: str | None, clip: str | None) -> Trace:
    from testbed.traces import load_trace

    return load_trace(
        path, format=format, column=column, clip=None if clip is None else _rate(clip, "--clip")
    )


def _mbit(rate_bps: float) -> str:
    return f"{rate_bps / 1e6:.3f} Mbit/s"


def _quantity(parse: Callable[[object], float], text: str, key: str) -> float:
    """A quantity with unit from the command line; the parsers' `problem|remedy` becomes an `InputError`."""
    try:
        return parse(text)
    except ValueError as error:
        problem, _, remedy = str(error).partition("|")
        raise InputError(problem, key=key, value=text, remedy=remedy or None) from None


def _rate(text: str, key: str) -> float:
    from testbed.schema.units import parse_rate_bps

    return _quantity(parse_rate_bps, text, key)
