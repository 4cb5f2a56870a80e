"""Data of the figures, thinned to what a screen can show; shared by the HTML report and the saved figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.components import component_order
from testbed.measurement.pareto import pareto_front
from testbed.measurement.records import MACHINE, latency_s
from testbed.measurement.spans import waterfall
from testbed.measurement.summary import Group
from testbed.measurement.trial import Trial

CDF_POINTS = 320
BINS = 600  # of a bandwidth curve
MAX_DOTS = 1200  # of a latency scatter
FloatArray = npt.NDArray[np.float64]


def figure_data(groups: Sequence[Group]) -> dict[str, Any]:
    """Return series (one per group) and, by series index, the data of every figure. Times in seconds or ms."""
    policies = list(dict.fromkeys(group.policy for group in groups))
    points, members = sweep_points(groups)
    tiers = groups[0].trials[0].tiers
    names = component_order([name for group in groups for name in group.family("time")], tiers)
    found = {name for group in groups for name in group.family("exit_share")}
    exits = sorted(found, key=lambda name: (name == "final", name))
    return {
        "series": [{"label": group.label, "policy": group.policy, "color": policies.index(group.policy),
                    "point": member[0], "points": member} for group, member in zip(groups, members, strict=True)],
        "policies": policies,
        "points": points,
        "deadline_ms": _deadline_ms(groups),
        "cdf": [_cdf(group) for group in groups],
        "components": [{"name": name, **component_style(name, tiers)} for name in names],
        "breakdown": [[(group.family("time").get(name) or 0.0) * 1e3 for name in names] for group in groups],
        "tradeoff": _tradeoffs(groups),
        "exits": {"names": exits, "rows": [[group.family("exit_share").get(name, 0.0) for name in exits]
                                           for group in groups]},
        "sweep": _sweep(groups),
        "timelines": [_timeline(trial, index) for index, group in enumerate(groups) for trial in group.trials[:1]],
    }


def sweep_points(groups: Sequence[Group]) -> tuple[list[str], list[list[int]]]:
    """Labels of the sweep's points, and for each group the indices of those that it belongs to.

    A plan that a swept key does not touch has no value for that key: it belongs to every point that agrees in the others.
    """
    values = [frozenset((key, repr(value)) for key, value in group.sweep_point.items()) for group in groups]
    whole = {v: point_label(group) for v, group in zip(values, groups, strict=True) if not any(v < other for other in values)}
    return list(whole.values()), [[i for i, point in enumerate(whole) if v <= point] for v in values]


def component_style(name: str, tiers: Sequence[str]) -> dict[str, Any]:
    """Colour role and texture of a component: hue by place, hatching for waiting, grey for overheads."""
    head, _, tail = name.partition(" ")
    if tail in ("queue", "compute"):
        place = tiers.index(head) if head in tiers else len(tiers)
        return {"role": f"t{place % 4}", "hatch": tail == "queue"}
    if tail == "up":
        hop = tiers.index(head.split("-")[0]) if head.split("-")[0] in tiers else 0
        return {"role": f"u{min(hop, 1)}", "hatch": False}
    return {"role": {"downlink": "d", "unaccounted": "x"}.get(name, "o"), "hatch": name == "decision"}


def point_label(group: Group) -> str:
    """Swept values of a group on one line, files by their name; empty without a sweep."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={fmt.swept(value)}" for key, value in group.sweep_point.items())


def _answered(group: Group) -> FloatArray:
    parts = []
    for trial in group.trials:
        rows = trial.requests
        rows = rows[rows["status"].eq("ok").fillna(False) & rows["phase"].fillna("measure").eq("measure")]
        parts.append(latency_s(rows).to_numpy("float64"))
    return np.sort(np.concatenate(parts))


def _cdf(group: Group) -> dict[str, Any]:
    """Empirical distribution: every sample up to CDF_POINTS, beyond that equal steps plus the whole tail."""
    values = _answered(group)
    n = len(values)
    if n == 0:
        return {"x": [], "y": [], "n": 0}
    ranks = np.arange(1, n + 1)
    if n > CDF_POINTS:
        ranks = np.unique(np.concatenate((np.linspace(1, n, CDF_POINTS - 40).astype(int), np.arange(n - 39, n + 1))))
    return {"x": _round(values[ranks - 1] * 1e3, 3), "y": _round(ranks / n, 5), "n": n}


def _deadline_ms(groups: Sequence[Group]) -> float | None:
    found = {float(value) for group in groups for trial in group.trials
             for value in trial.requests["deadline_s"].dropna().unique()}
    return found.pop() * 1e3 if len(found) == 1 else None


def _tradeoffs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Accuracy, latency and bytes of each group, and whether no other group is better in one and as good in the rest."""
    points = [_tradeoff(group) for group in groups]
    front = pareto_front([(t["acc"], t["p50"], t["bytes"]) for t in points], higher=(True, False, False))
    return [{**point, "front": on_front} for point, on_front in zip(points, front, strict=True)]


def _tradeoff(group: Group) -> dict[str, Any]:
    accuracy = group.get("accuracy")
    return {
        "p50": _ms(group.value("latency_p50")), "p95": _ms(group.value("latency_p95")), "acc": group.value("accuracy"),
        "lo": accuracy.ci_low if accuracy else None, "hi": accuracy.ci_high if accuracy else None,
        "deadline": group.value("deadline_hit"), "bytes": group.value("bytes_up"),
    }


def _sweep(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Metrics against the swept value, when exactly one key with numbers is swept; None: a plan that it does not touch."""
    keys = {key for group in groups for key in group.sweep_point}
    if len(keys) != 1:
        return None
    key = keys.pop()
    values = [group.sweep_point.get(key) for group in groups]
    given = [value for value, group in zip(values, groups, strict=True) if key in group.sweep_point]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in given) or len(set(given)) < 2:
        return None
    shown = (("latency_p50", "latency p50", "ms", 1e3), ("latency_p95", "latency p95", "ms", 1e3),
             ("accuracy", "accuracy", "%", 100.0), ("deadline_hit", "answered in time", "%", 100.0),
             ("bytes_up", "sent up per request", "kB", 1e-3))
    metrics = []
    for name, label, unit, factor in shown:
        estimates = [group.get(name) for group in groups]
        metrics.append({"label": label, "unit": unit, "y": [
            [None if value is None else value * factor for value in (e.value, e.ci_low, e.ci_high)] if e else
            [None, None, None] for e in estimates]})
    return {"key": key.rsplit(".", 1)[-1], "x": values, "metrics": metrics}


def _timeline(trial: Trial, series: int) -> dict[str, Any]:
    """Replayed and delivered rate per link and direction, requests and events of one trial; t in seconds."""
    rows = trial.requests[trial.requests["scheduled_ns"].notna()]
    start = int((trial.manifest.get("clock") or {}).get("start_ns") or (rows["scheduled_ns"].min() if len(rows) else 0))
    times = [column.max() for column in (rows["completed_ns"], rows["scheduled_ns"]) if column.notna().any()]
    end = (max(int(time) for time in times) - start) / 1e9 if times else 1.0
    measured = rows.assign(t=(rows["scheduled_ns"] - start).astype("float64") / 1e9, latency=latency_s(rows) * 1e3)
    return {
        "series": series, "label": trial.policy, "end": end,
        "links": [link for link in _curves(trial, start, end) if link["up"] or link["down"]],
        "requests": _dots(measured), "devices": sorted(str(d) for d in rows["device"].dropna().unique()),
        "events": _events(trial, start), "queues": _queues(trial, start, end), "waterfall": waterfall(trial),
    }


def _curves(trial: Trial, start: int, end: float) -> list[dict[str, Any]]:
    described = {str(link.get("name")): link for link in trial.manifest.get("links") or []}
    table = trial.links[trial.links["link"].notna()]
    edges = np.linspace(0.0, max(end, 0.1), min(BINS, max(2, int(end / 0.1))) + 1)
    curves = []
    for name, rows in table.groupby("link", sort=False):
        link = described.get(str(name), {})
        curve: dict[str, Any] = {"name": str(name), "ends": [str(link.get("src")), str(link.get("dst"))]}
        for direction in ("up", "down"):
            side = rows[rows["direction"].eq(direction).fillna(False)].sort_values("t_ns", kind="stable")
            traced = side["trace"].notna().any() or bool((link.get(direction) or {}).get("trace"))
            rate = _allowed(side, start, edges) if traced else None
            curve[direction] = None if rate is None else {
                "t": _round(edges, 3), "rate": rate, "sent": _mbps(side, "tx_bytes", start, edges),
                "backlog": _peaks(side, "backlog_bytes", start, edges, 1e-3)}
        curves.append(curve)
    # the links that replay a trace first, then those that only carry a fixed rate
    return sorted(curves, key=lambda c: (c["up"] is None and c["down"] is None, c["name"]))


def _queues(trial: Trial, start: int, end: float) -> dict[str, Any]:
    """Requests waiting for a worker per node, largest of each bin; nodes at which none ever waited are left out."""
    edges = np.linspace(0.0, max(end, 0.1), min(BINS, max(2, int(end / 0.1))) + 1)
    rows = trial.nodes[trial.nodes["queue_depth"].notna() & trial.nodes["node"].ne(MACHINE).fillna(False)]
    found = {str(name): _peaks(own, "queue_depth", start, edges, 1.0) for name, own in rows.groupby("node", sort=False)}
    return {"t": _round(edges, 3), "nodes": [{"name": name, "v": v} for name, v in found.items() if v and max(v) > 0]}


def _peaks(rows: pd.DataFrame, column: str, start: int, edges: FloatArray, factor: float) -> list[float] | None:
    """Largest value per bin; a bin without a poll keeps the value of the poll before it."""
    polls = rows[rows[column].notna()].sort_values("t_ns", kind="stable")
    if not len(polls):
        return None
    t, value = (polls["t_ns"] - start).to_numpy("float64") / 1e9, polls[column].to_numpy("float64") * factor
    last = np.searchsorted(t, edges[:-1], side="right") - 1
    peak = np.where(last >= 0, value[np.maximum(last, 0)], 0.0)
    where = np.searchsorted(edges, t, side="right") - 1
    inside = (where >= 0) & (where < len(peak))
    np.maximum.at(peak, where[inside], value[inside])
    return _round(peak, 3)


def _bin_hold(t: FloatArray, value: FloatArray, edges: FloatArray) -> FloatArray:
    """Mean over each bin of a value that holds from one update to the next (zero before the first)."""
    t = np.concatenate(([min(0.0, t[0])], t))
    value = np.concatenate(([value[0]], value))
    area = np.concatenate(([0.0], np.cumsum(np.diff(t) * value[:-1])))
    at = np.interp(edges, t, area) + np.clip(edges - t[-1], 0, None) * value[-1]
    return np.asarray(np.diff(at) / np.diff(edges), dtype=np.float64)


def _allowed(side: pd.DataFrame, start: int, edges: FloatArray) -> list[float] | None:
    """Mbit/s of the trace per bin: from its cumulative bytes where they are known, else from the target rate."""
    exact = _mbps(side, "allowed_bytes", start, edges)
    target = side[side["target_rate_bps"].notna()]
    if exact is not None or not len(target):
        return exact
    t = (target["t_ns"] - start).to_numpy("float64") / 1e9
    return _round(_bin_hold(t, target["target_rate_bps"].to_numpy("float64"), edges) / 1e6, 4)


def _mbps(side: pd.DataFrame, column: str, start: int, edges: FloatArray) -> list[float] | None:
    """Mean rate per bin of a cumulative byte count; None where it was not polled."""
    polls = side[side[column].notna()]
    if len(polls) < 2:
        return None
    t = (polls["t_ns"] - start).to_numpy("float64") / 1e9
    total = np.interp(edges, t, polls[column].to_numpy("float64"))
    return _round(np.diff(total) * 8 / np.diff(edges) / 1e6, 4)


def _dots(rows: pd.DataFrame) -> dict[str, Any]:
    """Requests as columns; thinned evenly, but the slowest and all that failed are kept."""
    ok = rows["status"].eq("ok").fillna(False).to_numpy(dtype=bool)
    if len(rows) > MAX_DOTS:
        keep = np.zeros(len(rows), dtype=bool)
        keep[np.linspace(0, len(rows) - 1, MAX_DOTS * 3 // 4).astype(int)] = True
        order = np.argsort(np.nan_to_num(rows["latency"].to_numpy("float64")))
        keep[order[-MAX_DOTS // 4:]] = True
        keep |= ~ok & (np.cumsum(~ok) <= MAX_DOTS)
        rows, ok = rows[keep], ok[keep]
    # what was decided: the plan where the policy chose among several, else the exit at which the answer left
    column = "plan" if rows["plan"].nunique() > 1 else "exit_id"
    decisions = rows[column].fillna("none").astype(str)
    kinds = sorted(decisions.unique(), key=lambda name: (name == "none", name))
    return {
        "decided": "plan" if column == "plan" else "exit", "kinds": kinds, "kind": [kinds.index(name) for name in decisions],
        "t": _round(rows["t"].to_numpy("float64"), 4), "ms": _round(rows["latency"].to_numpy("float64"), 3),
        "ok": [int(x) for x in ok], "device": rows["device"].fillna("").tolist(),
        "warm": [int(x) for x in rows["phase"].ne("measure").fillna(False)],
        "exit": rows["exit_id"].fillna("").tolist(), "error": rows["error_type"].fillna("").tolist(),
    }


def _events(trial: Trial, start: int) -> list[dict[str, Any]]:
    """Fault events: those that the manifest says happened, else those that the scenario asked for."""
    happened = trial.manifest.get("events")
    found: list[Mapping[str, Any]] = happened if isinstance(happened, list) else (
        (trial.manifest.get("config") or {}).get("events") or [])
    events = []
    for event in found:
        at = (float(event["t_ns"]) - start) / 1e9 if event.get("t_ns") is not None else event.get("at")
        if isinstance(at, int | float):
            what = " ".join(str(event[key]) for key in ("kind", "link", "node", "tier") if event.get(key))
            events.append({"t": float(at), "label": what.replace("_", " ")})
    return events


def _round(values: Any, digits: int) -> list[float]:
    return [float(x) for x in np.round(np.asarray(values, dtype="float64"), digits)]


def _ms(value: float | None) -> float | None:
    return None if value is None else value * 1e3
