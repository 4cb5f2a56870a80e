"""Figures of a run as files (SVG for papers, PNG for slides), drawn from the same data as the report's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.figure_data import figure_data
from testbed.measurement.summary import Group, group_trials
from testbed.measurement.trial import load_run

FIGURES = "figures"
# Okabe-Ito, the same order as in templates/report.css
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5559b", "#c98a00", "#2fa3dc", "#6b5bd2", "#6f7782")
_ROLES = {"t0": "#e0a100", "t1": "#009e73", "t2": "#b5559b", "t3": "#d55e00", "u0": "#0072b2", "u1": "#004a80",
          "d": "#56b4e9", "o": "#8a94a0", "x": "#d3d8de"}
_DASHES = ("-", "--", ":", "-.")
_INK = "#3b4650"
FIGURE_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#b8c0c8",
    "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.grid": True, "grid.color": "#e8ebee",
    "axes.axisbelow": True, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "testbed",
    "figure.constrained_layout.use": True,
}


_FEW = 8  # series for which the standard height is enough


def save_figures(run_dir: str | Path, *, groups: Sequence[Group] | None = None) -> list[Path]:
    """Write every figure to `<run>/figures/` as SVG and PNG, and a page that shows them; returns the figures' paths."""
    import matplotlib  # heavy: only needed when figures are asked for

    evaluated = list(groups) if groups is not None else group_trials(load_run(run_dir))
    data = figure_data(evaluated)
    folder = Path(run_dir) / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, tuple[Callable[..., None], Any]] = {
        "latency_cdf": (_cdf, None), "latency_breakdown": (_breakdown, None), "accuracy_latency": (_tradeoff, None),
        "exit_shares": (_exits, None),
    }
    for timeline in data["timelines"]:
        label = data["series"][timeline["series"]]["label"]
        drawings[f"timeline_{_slug(label)}"] = (_timeline, timeline)
    paths = []
    with matplotlib.rc_context(FIGURE_STYLE):
        for name, (draw, argument) in drawings.items():
            figure = new_figure(6.6, _height(draw, len(data["series"])))
            draw(figure, data, *([] if argument is None else [argument]))
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None  # the same run gives the same file
                figure.savefig(path, dpi=180, metadata=metadata)
                paths.append(path)
    write_text_atomic(folder / "index.html", _gallery(drawings))
    return paths


def _gallery(names: Iterable[str]) -> str:
    """A page beside the files that shows each figure and links to both kinds."""
    shown = "".join(f'<figure><a href="{name}.svg"><img src="{name}.svg" alt="{name}"></a><figcaption>{name.replace("_", " ")}: '
                    f'<a href="{name}.svg">SVG</a>, <a href="{name}.png">PNG</a></figcaption></figure>\n' for name in names)
    style = ("body{font:15px/1.5 system-ui,sans-serif;margin:24px;background:Canvas;color:CanvasText;color-scheme:light dark}"
             "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:16px}"
             "figure{margin:0}img{width:100%;background:#fff;border-radius:8px}")
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
            f'initial-scale=1"><link rel="icon" href="data:,"><title>Figures</title><style>{style}</style></head>\n'
            f"<body><h1>Figures</h1><main>\n{shown}</main></body></html>\n")


def static_pictures(data: Mapping[str, Any]) -> dict[str, str]:
    """The report's figures as SVG elements, by the name of their place in the page; the time line is that of the first trial."""
    import matplotlib

    drawings: dict[str, tuple[Callable[..., None], Any]] = {
        "cdf": (_cdf, None), "breakdown": (_breakdown, None), "tradeoff": (_tradeoff, None), "exits": (_exits, None)}
    if data["timelines"]:
        drawings["timeline"] = (_timeline, data["timelines"][0])
    pictures = {}
    with matplotlib.rc_context(FIGURE_STYLE):
        for name, (draw, argument) in drawings.items():
            figure = new_figure(6.6, _height(draw, len(data["series"])))
            draw(figure, data, *([] if argument is None else [argument]))
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
            text = buffer.getvalue()
            pictures[name] = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg"):])
    return pictures


def _height(draw: Callable[..., None], series: int) -> float:
    """Height in inches that leaves room for a bar, or a line of legend, per series beyond a few."""
    more = max(0, series - _FEW)
    if draw is _timeline:
        return 5.2
    return 3.6 + more * (0.3 if draw in (_breakdown, _exits) else 0.21)


def new_figure(width: float, height: float) -> Any:
    """A figure on the file-only canvas: no display and no global pyplot state are involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _cdf(figure: Any, data: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for series, cdf in zip(data["series"], data["cdf"], strict=True):
        if cdf["x"]:
            axes.step([cdf["x"][0], *cdf["x"]], [0, *cdf["y"]], where="post", lw=1.6, label=series["label"],
                      **_line(series))
    if data["deadline_ms"]:
        axes.axvline(data["deadline_ms"], color="#8a94a0", lw=1, ls=":")
        axes.annotate("deadline", (data["deadline_ms"], 1.0), xytext=(3, 3), textcoords="offset points", color=_INK)
    axes.set(xlabel="latency from the scheduled instant (ms)", ylabel="share of answered requests", ylim=(0, 1.06),
             xlim=(0, None))
    if len(data["series"]) > _FEW:
        figure.legend(loc="outside upper center", ncols=1, fontsize=8)
    else:
        axes.legend(loc="lower right")


def _breakdown(figure: Any, data: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    labels = [series["label"] for series in data["series"]]
    left = [0.0] * len(labels)
    total = [sum(row) or 1.0 for row in data["breakdown"]]
    for k, component in enumerate(data["components"]):
        values = [row[k] for row in data["breakdown"]]
        if max(value / whole for value, whole in zip(values, total, strict=True)) < 0.005:
            continue
        fill = _ROLES[component["role"]]
        axes.barh(labels, values, left=left, color=fill + "55" if component["hatch"] else fill, height=0.62,
                  hatch="////" if component["hatch"] else None, edgecolor=fill if component["hatch"] else "white",
                  lw=0.6, label=component["name"])
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="mean latency per request (ms)")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)


def _tradeoff(figure: Any, data: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    front = sorted((t["p50"], t["acc"] * 100) for t in data["tradeoff"] if t["front"])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="#8a94a0", lw=1, ls=":", zorder=1)
    most = max((t["bytes"] or 0.0 for t in data["tradeoff"]), default=0.0) or 1.0
    large_first = sorted(zip(data["series"], data["tradeoff"], strict=True), key=lambda pair: -(pair[1]["bytes"] or 0.0))
    for series, t in large_first:
        if t["acc"] is None or t["p50"] is None:
            continue
        color = SERIES_COLORS[series["color"] % len(SERIES_COLORS)]
        if t["p95"] is not None:
            axes.plot([t["p50"], t["p95"]], [t["acc"] * 100] * 2, color=color, lw=1.2, marker="|", markevery=[1])
        if t["lo"] is not None:
            axes.plot([t["p50"]] * 2, [t["lo"] * 100, t["hi"] * 100], color=color, lw=1.2, alpha=0.6)
        hit = "" if t["deadline"] is None else f" ({t['deadline']:.0%} in time)"
        size = 5 + 9 * ((t["bytes"] or 0.0) / most) ** 0.5
        axes.plot(t["p50"], t["acc"] * 100, "o", ms=size, color=color, label=series["label"] + hit,
                  markeredgecolor=_INK if t["front"] else color, markerfacecolor=color if t["front"] else color + "55")
    reach = [t["p95"] or t["p50"] for t in data["tradeoff"] if t["p50"]]
    wide = bool(reach) and max(reach) > 5 * min(t["p50"] for t in data["tradeoff"] if t["p50"])
    if wide:
        axes.set_xscale("log")
    axes.set(xlabel="latency (ms): median, line to p95; area: bytes sent up; dark rim: Pareto front",
             ylabel="accuracy (%), 95% interval", xlim=(None if wide else 0, None))
    figure.legend(loc="outside upper center", ncols=2 if len(data["series"]) <= _FEW else 1, fontsize=8)


def _exits(figure: Any, data: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    labels = [series["label"] for series in data["series"]]
    left = [0.0] * len(labels)
    for k, name in enumerate(data["exits"]["names"]):
        values = [row[k] * 100 for row in data["exits"]["rows"]]
        axes.barh(labels, values, left=left, height=0.62, color=list(_ROLES.values())[(1, 4, 0, 2, 6, 3)[k % 6]],
                  label=f"exit: {name}", edgecolor="white", lw=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of answered requests (%)", xlim=(0, 100))
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)


def _timeline(figure: Any, data: Mapping[str, Any], timeline: Mapping[str, Any]) -> None:
    link = next((link for link in timeline["links"]), None)
    sides = [side for side in ("up", "down") if link is not None and link[side]]
    rows = figure.subplots(len(sides) + 1, 1, sharex=True, height_ratios=[1] * len(sides) + [1.6], squeeze=False)[:, 0]
    own = [device for device in timeline["devices"] if link is not None and device in link["ends"]]
    for axes, side in zip(rows, sides, strict=False):
        curve, color = link[side], _ROLES["u0"] if side == "up" else SERIES_COLORS[1]  # type: ignore[index]
        if curve["sent"]:
            axes.stairs(curve["sent"], curve["t"], fill=True, color=color, alpha=0.3, label="delivered")
        axes.stairs(curve["rate"], curve["t"], color=color, lw=1, label="trace", baseline=None)
        axes.set(ylabel=f"Mbit/s {side}", ylim=(0, None))
    rows[0].set_title(f"{data['series'][timeline['series']]['label']}" + (f", link {link['name']}" if link else ""),
                      fontsize=9, loc="left")
    requests, axes = timeline["requests"], rows[-1]
    chosen = [j for j in range(len(requests["t"])) if not own or requests["device"][j] in own]
    color = SERIES_COLORS[data["series"][timeline["series"]]["color"] % len(SERIES_COLORS)]
    for good, style in ((1, {"marker": "o", "color": color}), (0, {"marker": "x", "color": "#b3261e"})):
        some = [j for j in chosen if requests["ok"][j] == good]
        points = [requests["t"][j] for j in some], [requests["ms"][j] for j in some]
        axes.plot(*points, ls="", ms=3.4, alpha=0.85, **style)
    for event in timeline["events"]:
        for each in rows:
            each.axvline(event["t"], color="#b3261e", lw=0.9, ls="--")
        axes.annotate(event["label"], (event["t"], 1), xycoords=("data", "axes fraction"), fontsize=7, color="#b3261e")
    if data["deadline_ms"]:
        axes.axhline(data["deadline_ms"], color="#8a94a0", lw=1, ls=":")
    axes.set(xlabel="seconds since the start of the load", ylabel="latency (ms)", ylim=(0, None),
             xlim=(0, timeline["end"]))


def _line(series: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": SERIES_COLORS[series["color"] % len(SERIES_COLORS)],
            "ls": _DASHES[(series["point"] + series["color"] // len(SERIES_COLORS)) % len(_DASHES)]}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")
