"""The report's section "In time, by deadline": a table and a figure, drawn without scripts."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.attainment import Groups, attainment_table

_PANELS = (("in_time", "answered in time"), ("accuracy", "right answers"),
           ("effective_accuracy", "catalogue's accuracy of the models"))
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 420, 260, 46, 26, 44  # of a panel, and room for its labels, in pixels
_DASHES = ("none", "6 3", "2 2", "8 3 2 3")


def attainment_section(groups: Groups) -> str:
    """HTML of the section; empty when all deadlines are equal."""
    table = attainment_table(groups)
    if not len(table):
        return ""
    ranges = sorted(set(zip(table["deadline_from_s"], table["deadline_to_s"], strict=True)))
    series = list(dict.fromkeys(zip(table["policy"], table["point"], strict=True)))
    rows = [_row(table, *name, ranges) for name in series]
    legend = [{"text": " ".join(filter(None, name)), "color": i % 8, "dash": _DASHES[i // 8 % 4]}
              for i, name in enumerate(series)]
    panels = [_panel(table, key, title, series, ranges) for key, title in _PANELS if table[key].notna().any()]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = resources.files("testbed.measurement") / "templates" / "attainment.html.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        ranges=[f"{low * 1e3:g} to {high * 1e3:g} ms" for low, high in ranges], rows=rows, left=_LEFT, top=_TOP, width=_WIDTH,
        height=_HEIGHT, base=_HEIGHT - _BOTTOM, panels=panels,
        priced=bool(table["cost_per_1000"].notna().any()), legend=legend)


def _row(table: pd.DataFrame, policy: str, point: str, ranges: list[tuple[float, float]]) -> dict[str, Any]:
    own = table[(table["policy"] == policy) & (table["point"] == point)]
    cells: list[dict[str, str] | None] = []
    for low, _ in ranges:
        found = own[own["deadline_from_s"] == low].to_dict("records")
        if not found:
            cells.append(None)
            continue
        cell = found[0]
        known = isinstance(cell["in_time_low"], float) and math.isfinite(cell["in_time_low"])
        cost = cell["cost_per_1000"]
        cells.append({
            "in_time": fmt.share(cell["in_time"]), "requests": f"{cell['requests']} requests",
            "interval": f"{fmt.share(cell['in_time_low'])} to {fmt.share(cell['in_time_high'])}" if known else "",
            "accuracy": fmt.share(cell["accuracy"]), "on_device": fmt.share(cell["on_device"]),
            "cost": f"{cost:.4f}" if math.isfinite(cost) else ""})
    return {"policy": policy, "point": point, "cells": cells}


def _panel(table: pd.DataFrame, key: str, title: str, series: list[tuple[str, str]],
           ranges: list[tuple[float, float]]) -> dict[str, Any]:
    """Coordinates of one line per series over the middles of the ranges, and ticks; the share axis ends at 0 and 1, or at the
    next lower tenth below all values."""
    values = table[key].dropna()
    floor = math.floor(10 * float(values.min()) - 1e-9) / 10 if len(values) else 0.0
    floor = min(0.9, max(0.0, floor))
    first, last = ranges[0][0], ranges[-1][1]
    base, right = _HEIGHT - _BOTTOM, _WIDTH - 10

    def x(deadline_s: float) -> float:
        return round(_LEFT + (deadline_s - first) / (last - first) * (right - _LEFT), 1)

    def y(share: float) -> float:
        return round(base - (share - floor) / (1 - floor) * (base - _TOP), 1)

    lines = []
    for i, (policy, point) in enumerate(series):
        own = table[(table["policy"] == policy) & (table["point"] == point) & table[key].notna()]
        dots = []
        for r in own.to_dict("records"):
            low, high = r["deadline_from_s"], r["deadline_to_s"]
            dots.append({"x": x((low + high) / 2), "y": y(r[key]),
                         "title": f"{policy} {point} {low * 1e3:g} to {high * 1e3:g} ms: {fmt.share(r[key])}"})
        lines.append({"color": i % 8, "dash": _DASHES[i // 8 % 4], "dots": dots,
                      "points": " ".join(f"{d['x']},{d['y']}" for d in dots)})
    edges = [low for low, _ in ranges] + [last]
    step = 0.1 if floor > 0.45 else 0.2
    shares = [1 - i * step for i in range(11) if 1 - i * step >= floor - 1e-9]
    return {"title": title, "lines": lines, "right": right,
            "ticks_x": [{"at": x(e), "text": f"{e * 1e3:g}"} for e in edges],
            "ticks_y": [{"at": y(s), "text": f"{s:.0%}"} for s in shares]}
