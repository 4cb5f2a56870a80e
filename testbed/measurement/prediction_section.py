"""The report's section "Predicted and measured": a table and a figure, drawn without scripts."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.prediction import AGREES_S, AGREES_SHARE, Groups, prediction_table

_SIZE, _LEFT, _BOTTOM = 420, 62, 44  # the figure's side, and room for its labels, in pixels


def prediction_section(groups: Groups) -> str:
    """HTML of the section; empty when no plan of the run could be predicted."""
    table = prediction_table(groups)
    if not table["predicted_s"].notna().any():
        return ""
    policies = list(dict.fromkeys(table["policy"]))
    rows = [_row({str(k): v for k, v in row.items()}) for row in table.to_dict("records")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = resources.files("testbed.measurement") / "templates" / "prediction.html.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        rows=rows, share=f"{AGREES_SHARE:.0%}", limit=fmt.seconds(AGREES_S), **_figure(table, policies))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    if row["why_not"]:
        return row
    return row | {"cells": [fmt.seconds(row[k]) for k in ("compute_s", "transmission_s", "delay_s", "predicted_s", "measured_s")],
                  "residual": fmt.seconds(row["residual_s"]), "relative": f"{row['residual_share']:+.1%}"}


def _figure(table: pd.DataFrame, policies: list[str]) -> dict[str, Any]:
    """Coordinates of dots, band and ticks on logarithmic axes from the smallest to the largest latency."""
    known = table[(table["predicted_s"] > 0) & (table["measured_s"] > 0)]
    if not len(known):
        return {"dots": []}
    values = [float(v) * 1e3 for name in ("predicted_s", "measured_s") for v in known[name]]
    first, last = math.log10(min(values) * 0.85), math.log10(max(values) * 1.18)
    right, top, base = float(_SIZE - 12), 12.0, float(_SIZE - _BOTTOM)
    span = min(right - _LEFT, base - top)
    right, top = _LEFT + span, base - span

    def place(ms: float) -> float:
        return round((math.log10(ms) - first) / (last - first) * span, 1)

    wide = (last - first) and math.log10(1 + AGREES_SHARE) / (last - first) * span
    corners = [(_LEFT, base - wide), (right - wide, top), (right, top), (right, top + wide), (_LEFT + wide, base), (_LEFT, base)]
    return {
        "size": _SIZE, "low": _LEFT, "base": base, "right": right, "top": top, "shift": base + _LEFT - _SIZE,
        "band": " ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
        "ticks": [{"at": _LEFT + place(ms), "text": f"{ms:g}"} for ms in ticks_ms(10**first, 10**last)],
        "dots": [{"x": _LEFT + place(float(r["predicted_s"]) * 1e3), "y": base - place(float(r["measured_s"]) * 1e3),
                  "color": policies.index(r["policy"]) % 8,
                  "title": f"{r['policy']} {r['point']}: predicted {fmt.seconds(r['predicted_s'])}, measured "
                           f"{fmt.seconds(r['measured_s'])}"} for r in known.to_dict("records")],
    }


def ticks_ms(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; where fewer than three of them lie in [low, high], equal steps of such a size."""
    ticks = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low <= t <= high]
    if len(ticks) >= 3:
        return ticks
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= least)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
