"""Figures of a placement study: gain over time, where requests are served, swaps against gain, latency against inaccuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from testbed.measurement.study import Draw
from testbed.placement.spec import PlacementStudy

_DASHES = ("-", "--", ":")
_MARKS = "osD^vPX*h<>"


def figures(spec: PlacementStudy, tables: Mapping[str, pd.DataFrame]) -> dict[str, Draw]:
    """Name -> function that draws on an empty figure."""
    alpha = spec.alphas_ms[0]
    if len(spec.alphas_ms) > 1:
        return {"frontier": lambda figure: _frontier(figure, spec, tables["summary"]),
                "served_where": lambda figure: _tiers(figure, spec, tables["tiers"])}
    return {"gain": lambda figure: _gain(figure, spec, tables["slots"], alpha),
            "fetches": lambda figure: _fetches(figure, tables["summary"]),
            "served_where": lambda figure: _tiers(figure, spec, tables["tiers"])}


def _look(index: int) -> dict[str, Any]:
    """Colour and dash of the series with this number: eight colours, then the same dashed."""
    return {"color": f"C{index % 8}", "linestyle": _DASHES[index // 8 % len(_DASHES)]}


def _gain(figure: Any, spec: PlacementStudy, slots: pd.DataFrame, alpha: float) -> None:
    axes = figure.subplots()
    for i, policy in enumerate(p.name for p in spec.policies):
        rows = slots[(slots["policy"] == policy) & (slots["alpha_ms"] == alpha)]
        axes.plot(rows["slot"], rows["gain_ms"], label=policy, linewidth=1.3, **_look(i))
        if rows["gain_low_ms"].notna().all():
            axes.fill_between(rows["slot"], rows["gain_low_ms"], rows["gain_high_ms"], color=f"C{i % 8}", alpha=0.15, linewidth=0)
    if spec.shift is not None:
        for at in range(spec.shift.every, spec.slots, spec.shift.every):
            axes.axvline(at, color="#b8c0c8", linewidth=0.8)
    seen = slots[(slots["alpha_ms"] == alpha) & (slots["slot"] > 0)]["gain_ms"]  # caches are empty in slot 0
    low, high = float(seen.min()), float(seen.max())
    axes.set_ylim(low - 0.05 * (high - low) - 0.5, high + 0.05 * (high - low) + 0.5)
    axes.set_xlabel(f"slot of {spec.slot:g} s")
    axes.set_ylabel(f"gain per request (ms), alpha {alpha:g}")
    figure.legend(loc="outside right upper", fontsize=8)


def _tiers(figure: Any, spec: PlacementStudy, tiers: pd.DataFrame) -> None:
    """Stacked shares: per policy, or per alpha for the first policy when there are several."""
    axes = figure.subplots()
    if len(spec.alphas_ms) > 1:
        first = spec.policies[0].name
        rows, column, what = tiers[tiers["policy"] == first], "alpha_ms", f"alpha (ms per point), {first}"
        order: list[Any] = sorted(spec.alphas_ms)
    else:
        rows, column, what = tiers, "policy", ""
        order = [p.name for p in spec.policies]
    start = dict.fromkeys(order, 0.0)
    for i, tier in enumerate(dict.fromkeys(tiers["tier"])):
        share = rows[rows["tier"] == tier].set_index(column)["served_share"]
        axes.barh([_label(o) for o in order], [share[o] for o in order], left=[start[o] for o in order], color=f"C{i % 8}",
                  label=tier)
        start = {o: start[o] + share[o] for o in order}
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of requests served")
    axes.set_ylabel(what)
    figure.legend(loc="outside right upper", fontsize=8)


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fetches(figure: Any, summary: pd.DataFrame) -> None:
    axes = figure.subplots()
    points = zip(summary["policy"], summary["fetches_per_slot"], summary["ntag_ms"], strict=True)
    for i, (policy, fetched, ntag_ms) in enumerate(points):
        axes.plot([max(fetched, 0.1)], [ntag_ms], _MARKS[i % len(_MARKS)], color=f"C{i % 8}", label=policy, linestyle="none")
    axes.set_xscale("log")
    axes.set_xlabel("models fetched per slot (0 is drawn at 0.1)")
    axes.set_ylabel("NTAG (ms per request)")
    figure.legend(loc="outside right upper", fontsize=8)


def _frontier(figure: Any, spec: PlacementStudy, summary: pd.DataFrame) -> None:
    axes = figure.subplots()
    for i, policy in enumerate(p.name for p in spec.policies):
        rows = summary[summary["policy"] == policy].sort_values("alpha_ms")
        axes.plot(rows["inaccuracy_points"], rows["latency_ms"], marker=_MARKS[i % len(_MARKS)], markersize=5,
                  label=policy, **_look(i))
        if i == 0:
            for row in rows.itertuples():
                axes.annotate(f"{row.alpha_ms:g}", (row.inaccuracy_points, row.latency_ms), textcoords="offset points",
                              xytext=(4, 4), fontsize=7)
    axes.set_xlabel("mean inaccuracy (points)")
    axes.set_ylabel("mean latency (ms)")
    figure.legend(loc="outside right upper", fontsize=8)
