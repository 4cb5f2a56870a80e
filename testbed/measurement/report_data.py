"""What the report shows, as plain data: verdict, table, facts, glossary, and the thinned data of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from testbed.measurement import format as fmt
from testbed.measurement.figure_data import figure_data, point_label
from testbed.measurement.limits import LIMITS
from testbed.measurement.metrics import COMPONENT_MEANINGS, FAMILIES, METRICS, Estimate
from testbed.measurement.records import TABLES
from testbed.measurement.reroutes import reroute_words
from testbed.measurement.summary import Group, verdict
from testbed.measurement.trial import Trial
from testbed.measurement.validity import STATES, validity_of, worst_checks

_SHOWN = ("accuracy", "latency_mean", "latency_p50", "latency_p95", "latency_p99", "deadline_hit", "correct_in_time", "bytes_up",
          "bytes_down", "offload")  # columns of the table


def report_data(groups: Sequence[Group]) -> dict[str, Any]:
    """Collect everything that the template needs from evaluated groups."""
    trials = [trial for group in groups for trial in group.trials]
    first = trials[0]
    config = first.manifest.get("config") or {}
    checks = worst_checks(trials)
    return {
        "scenario": str(first.manifest.get("scenario", "run")),
        "description": str(config.get("description") or "").strip(),
        "verdict": verdict(trials),
        "checks": checks,
        "counts": {state: sum(check["state"] == state for check in checks) for state in STATES},
        "trials": [_trial(trial) for trial in trials],
        "headline": _headline(trials),
        "table": [_row(group) for group in groups],
        "missing": _missing(groups),
        "exits": any(len(group.family("exit_share")) > 1 for group in groups),
        "calibration": _calibration(trials),
        "node_calibration": _node_calibration(trials),
        "facts": _facts(trials),
        "nodes": [_node(node) for node in first.manifest.get("nodes") or []],
        "links": [_link(link) for link in first.manifest.get("links") or []],
        "versions": sorted((first.manifest.get("versions") or {}).items()),
        "files": sorted((first.manifest.get("files") or {}).items()),
        "glossary": _glossary(),
        "figures": figure_data(groups),
    }


def _headline(trials: Sequence[Trial]) -> list[str]:
    count = sum(len(trial.requests) for trial in trials)
    nodes = [node for trial in trials for node in trial.manifest.get("nodes") or []]
    runtimes = {str(node.get("engine") or node.get("runtime")) for node in nodes}
    backends = {str(link.get("backend")) for t in trials for link in t.manifest.get("links") or []}
    started = min((str(t.manifest.get("started_utc") or "") for t in trials), default="")
    words = [f"{len(trials)} trial{'s' if len(trials) != 1 else ''}", f"{count} requests",
             f"nodes: {', '.join(sorted(runtimes)) or 'unknown'}", f"links: {', '.join(sorted(backends)) or 'none'}",
             *reroute_words(trials)]
    return [*words, f"{started[:19].replace('T', ' ')} UTC"] if started else words


def _row(group: Group) -> dict[str, Any]:
    def cell(name: str, unit: str | None = None) -> dict[str, str]:
        estimate = group.get(name)
        if estimate is None:
            return {"value": "-", "interval": "", "note": "", "missing": ""}
        return {"value": fmt.quantity(estimate.value, unit or estimate.unit), "interval": _interval(estimate),
                "note": estimate.note, "missing": estimate.note.partition(":")[0] if ":" in estimate.note else ""}

    return {
        "policy": group.policy, "point": point_label(group), "repeats": len(group.trials),
        "verdict": verdict(group.trials),
        "requests": f"{group.value('requests') or 0:.0f}", "failed": f"{group.value('failed') or 0:.0f}",
        "exits": [(name, fmt.share(value)) for name, value in group.family("exit_share").items()],
        **{name: cell(name) for name in _SHOWN},
    }


def _missing(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Reasons for blank cells of the table, each with the plans and metrics that it concerns."""
    found: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for estimate in group.estimates:
            kind, _, reason = estimate.note.partition(": ")
            if estimate.metric in _SHOWN and kind in ("blank", "no interval"):
                found.setdefault(reason, {}).setdefault(group.label, []).append(estimate.metric)
    return [(reason, [f"{label} ({', '.join(names)})" for label, names in places.items()]) for reason, places in found.items()]


def _interval(estimate: Estimate) -> str:
    if estimate.ci_low is None or estimate.ci_high is None:
        return ""
    low, high = (fmt.quantity(x, estimate.unit) for x in (estimate.ci_low, estimate.ci_high))
    if low == high:
        return ""
    number, _, unit = low.rpartition(" ")
    if unit and high.endswith(f" {unit}"):
        low = number
    return f"{low.rstrip('%') if high.endswith('%') else low} – {high}"


def _trial(trial: Trial) -> dict[str, str]:
    return {"label": trial.label, "run_id": trial.run_id, "verdict": validity_of(trial).verdict,
            "seed": str(trial.manifest.get("seed", "-")), "hash": str(trial.manifest.get("config_hash", "-")),
            "started": str(trial.manifest.get("started_utc") or "-")}


def _calibration(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """Asked against measured per link and direction, each over all trials (median, and the range when several)."""
    seen: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for trial in trials:
        for row in (trial.manifest.get("calibration") or {}).get("links") or []:
            seen.setdefault((str(row.get("link")), str(row.get("direction") or "")), []).append(row)
    rows = []
    for (link, direction), entries in seen.items():
        row = {"link": link, "direction": direction}
        for name, show in (("rate_bps", fmt.rate), ("rtt_s", fmt.seconds)):
            asked = next((e[f"asked_{name}"] for e in entries if e.get(f"asked_{name}") is not None), None)
            got = [float(e[f"measured_{name}"]) for e in entries if e.get(f"measured_{name}") is not None]
            middle = float(np.median(got)) if got else None
            row[f"asked_{name}"], row[f"measured_{name}"] = show(asked), show(middle)
            low, high = (show(min(got)), show(max(got))) if got else ("", "")
            row[f"range_{name}"] = f"{low} – {high}" if low != high else ""
            row[f"error_{name}"] = "" if asked in (None, 0) or middle is None else _off(middle / float(asked) - 1)
        rows.append(row)
    return rows


def _off(share: float) -> str:
    return "0.0%" if abs(share) < 0.0005 else f"{share:+.1%}"


def _node_calibration(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """Model times asked by the compute profile and measured idle, per node and model (median over trials)."""
    seen: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for trial in trials:
        for row in (trial.manifest.get("calibration") or {}).get("nodes") or []:
            for model, times in (row.get("model_time_s") or {}).items():
                seen.setdefault((str(row.get("node")), str(model)), []).append(times)
    rows = []
    for (node, model), entries in seen.items():
        asked = next((e["asked"] for e in entries if e.get("asked") is not None), None)
        got = [float(e["measured"]) for e in entries if e.get("measured") is not None]
        middle = float(np.median(got)) if got else None
        rows.append({"node": node, "model": model, "asked": "this machine's" if asked is None else fmt.seconds(asked),
                     "measured": fmt.seconds(middle),
                     "off": _off(middle / float(asked) - 1) if asked and middle is not None else ""})
    return rows


def _facts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    manifest = trials[0].manifest
    host = manifest.get("host") or {}
    config = manifest.get("config") or {}
    facts = [
        ("system", host.get("system")), ("kernel", host.get("kernel")), ("CPU", host.get("cpu_model")),
        ("cores", host.get("cpu_count")),
        ("memory", fmt.size(host.get("memory_bytes")) if host.get("memory_bytes") else None),
        ("clock source", host.get("clock_source")),
        ("model", config.get("model")), ("data set", config.get("dataset")),
        ("seeds", ", ".join(sorted({str(t.manifest.get("seed")) for t in trials}))),
        ("command", " ".join(map(str, manifest["command"])) if isinstance(manifest.get("command"), list) else None),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _node(node: Mapping[str, Any]) -> dict[str, str]:
    compute = node.get("compute")
    speed = compute.get("profile") if isinstance(compute, Mapping) else compute
    return {"name": str(node.get("name")), "tier": str(node.get("tier", "-")), "address": str(node.get("address", "-")),
            "runtime": str(node.get("runtime", "-")), "engine": str(node.get("engine") or "-"),
            "compute": str(speed or "real") + (", memoised" if node.get("outputs") == "memoised" else "")}


def _link(link: Mapping[str, Any]) -> dict[str, str]:
    return {"name": str(link.get("name")), "backend": str(link.get("backend", "-")),
            "up": _direction(link.get("up") or {}), "down": _direction(link.get("down") or {})}


def _direction(side: Mapping[str, Any]) -> str:
    words = []
    trace = side.get("trace")
    if isinstance(trace, Mapping):
        mean = trace.get("mean_rate_bps")
        name = str(trace.get("path", "trace")).rsplit("/", 1)[-1]
        words.append(f"trace {name}" + (f" (mean {fmt.rate(mean)})" if mean else ""))
    elif side.get("rate_bps"):
        words.append(fmt.rate(float(side["rate_bps"])))
    if side.get("delay_s"):
        words.append(f"delay {fmt.seconds(float(side['delay_s']))}")
    if side.get("jitter_s"):
        words.append(f"jitter {fmt.seconds(float(side['jitter_s']))}")
    for key in ("loss", "queue"):
        value = side.get(key)
        if isinstance(value, Mapping):
            value = " ".join(f"{name} {number}" for name, number in value.items() if number not in (None, 0, 0.0))
        if value:
            words.append(f"{key} {value}")
    return ", ".join(words) or "not shaped"


def _glossary() -> list[dict[str, Any]]:
    """Generated from the definitions themselves, so it cannot disagree with them."""
    metrics = [(m.name, m.unit, m.formula) for m in METRICS] + list(FAMILIES)
    sections = [{"title": "Metrics", "rows": metrics},
                {"title": "Parts of a latency", "rows": [(name, "s", text) for name, text in COMPONENT_MEANINGS]}]
    sections.append({"title": "Validity checks", "rows": [
        (limit.name, "", f"{limit.what}; default {'≥' if limit.at_least else '≤'} "
         f"{fmt.quantity(limit.default, limit.unit)}. Why: {limit.why}") for limit in LIMITS]})
    sections += [{"title": f"Table {table.name}: {table.row}",
                  "rows": [(c.name, c.unit, c.meaning) for c in table.columns]} for table in TABLES.values()]
    return sections
