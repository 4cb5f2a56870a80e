"""The report's section "Regret": policies against the best plan in hindsight and the best fixed plan, drawn without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.regret import MEASURES, PLANS_FILE, has_regret, regret_table
from testbed.measurement.trial import Trial

if TYPE_CHECKING:
    from testbed.measurement.summary import Group

_LEFT, _RIGHT, _ROW = 210, 560, 22  # room for names, end of the longest bar, height of a row, in pixels
_PLANS_SHOWN = 6
_TITLES = {"latency_mean": "mean latency", "latency_p95": "p95 latency", "deadline_hit": "answered in time"}


def regret_section(groups: Sequence[Group]) -> str:
    """HTML of the section; empty when no oracle was computed."""
    if not has_regret(groups):
        return ""
    table = regret_table(groups)
    rows = [_row({str(k): None if _missing(v) else v for k, v in row.items()}) for row in table.to_dict("records")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = resources.files("testbed.measurement") / "templates" / "regret.html.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        rows=rows, compared=[r for r in rows if r["against"]], points=any(r["point"] for r in rows),
        titles=[_TITLES[name] for name in MEASURES], plans=_plans(groups), **_figure(rows))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    against = []
    for measure in MEASURES:
        unit = "share" if measure == "deadline_hit" else "s"
        difference, low, high = (row[f"{measure}_{part}"] for part in ("difference", "low", "high"))
        against.append({
            "static": row[f"{measure}_static"] or "", "value": fmt.quantity(row[f"{measure}_static_value"], unit),
            "difference": _signed(difference, unit), "verdict": row[f"{measure}_verdict"] or "",
            "interval": f"{_signed(low, unit)} to {_signed(high, unit)}" if low is not None and high is not None else ""})
    return {
        "policy": row["policy"], "point": row["point"], "mean": row["latency_mean"], "oracle": row["oracle_latency"],
        "decision": row["regret_decision"], "against": against if any(a["static"] for a in against) else [],
        "cells": [fmt.seconds(row["latency_mean"]), fmt.seconds(row["oracle_latency"]),
                  *(_signed(row[k], "s") for k in ("regret_mean", "regret_p95", "regret_decision", "regret_static")),
                  fmt.share(row["deadline_hit"]), fmt.share(row["oracle_hit"])]}


def _signed(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:+.1f} points"
    return f"{'+' if value > 0 else ''}{fmt.seconds(value)}"


def _figure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bars of the mean latency: the oracle's part, what the decision cost, and the rest."""
    known = [row for row in rows if row["mean"] is not None and row["oracle"] is not None]
    longest = max((float(row["mean"]) for row in known), default=0.0)
    if not longest:
        return {"bars": []}
    bars, y, point = [], 6, None
    for row in known:
        if row["point"] != point and row["point"]:
            bars.append({"title": row["point"], "y": y + 14, "parts": [], "end": 0.0, "text": ""})
            y += _ROW
        point = row["point"]
        mean, oracle = float(row["mean"]), min(float(row["oracle"]), float(row["mean"]))
        decision = min(max(0.0, float(row["decision"] or 0.0)), mean - oracle)
        parts, x = [], float(_LEFT)
        for role, part in (("var(--o)", oracle), ("var(--s1)", decision), ("var(--x)", mean - oracle - decision)):
            width = part / longest * (_RIGHT - _LEFT)
            parts.append({"x": round(x, 1), "width": round(width, 1), "fill": role})
            x += width
        bars.append({"title": row["policy"], "y": y + 14, "parts": parts, "end": round(x, 1), "text": fmt.seconds(mean)})
        y += _ROW
    return {"bars": bars, "width": _RIGHT + 70, "height": y + 6, "low": _LEFT, "size": _ROW - 8}


def _plans(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Best fixed plans of the model, and the oracle's favourites, per sweep point (of its first trial that has them)."""
    found = []
    seen: list[Mapping[str, Any]] = []
    for group in groups:
        table = next((t for t in map(_plan_table, group.trials) if t is not None), None)
        if table is None or group.sweep_point in seen:
            continue
        seen.append(group.sweep_point)
        point = ", ".join(f"{k.rsplit('.', 1)[-1]}={fmt.swept(v)}" for k, v in group.sweep_point.items())
        best = table.head(_PLANS_SHOWN)
        favourites = table[table["oracle_share"] > 0].sort_values("oracle_share", ascending=False, kind="stable")
        shown = pd.concat([best, favourites.head(_PLANS_SHOWN)]).drop_duplicates("plan")
        found.append({"point": point, "rows": [
            {"plan": r["plan"], "failed": f"{r['failed']} of {r['requests']}" if r["failed"] else "0",
             "cells": [fmt.seconds(r["latency_mean_s"]), fmt.seconds(r["latency_p95_s"]), fmt.share(r["deadline_hit"]),
                       fmt.share(r["oracle_share"])]} for r in shown.to_dict("records")]})
    return found


def _plan_table(trial: Trial) -> pd.DataFrame | None:
    path = trial.path / PLANS_FILE
    return pd.read_csv(path) if path.is_file() else None
