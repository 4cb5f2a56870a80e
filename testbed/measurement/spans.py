"""Requests as spans on a time line: chosen ones for the report's waterfall, all of a trial as a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.measurement.atomic import plain, write_text_atomic
from testbed.measurement.records import LIST_SEPARATOR, latency_s
from testbed.measurement.trial import Trial

REQUEST = "request"
# (kind, start column, end column, lane: the node that it happens at, or the way between two)
_PARTS = (
    ("encode", "encode_start_ns", "encode_end_ns", "src"),
    ("transfer", "send_start_ns", "recv_last_ns", "way"),
    ("queue", "queue_start_ns", "compute_start_ns", "dst"),
    ("compute", "compute_start_ns", "compute_end_ns", "dst"),
)


@dataclass(frozen=True)
class Span:
    """One interval of a request. Instants in nanoseconds of the trial's clock; `detail` holds what the row says of it."""

    request_id: str
    kind: str
    lane: str
    start_ns: int
    end_ns: int
    detail: dict[str, Any]


def choose_requests(trial: Trial) -> list[tuple[str, str]]:
    """(why, request_id): slowest, median and fastest answered request, the median one of each exit, the first that failed."""
    rows = trial.requests[trial.requests["phase"].fillna("measure").eq("measure")]
    rows = rows.assign(latency=latency_s(rows)).sort_values("latency", kind="stable")
    ok = rows[rows["status"].eq("ok").fillna(False) & rows["latency"].notna()]
    chosen: list[tuple[str, str]] = []
    if len(ok):
        chosen += [("slowest", _id(ok, -1)), ("median", _id(ok, (len(ok) - 1) // 2)), ("fastest", _id(ok, 0))]
        exits = sorted(str(name) for name in ok["exit_id"].dropna().unique())
        for name in exits if len(exits) > 1 else []:
            own = ok[ok["exit_id"] == name]
            chosen.append((f"median of exit {name}", _id(own, (len(own) - 1) // 2)))
    failed = rows[~rows["status"].eq("ok").fillna(False)].sort_values("scheduled_ns", kind="stable")
    return chosen + ([("first failed", _id(failed, 0))] if len(failed) else [])


def spans_of(trial: Trial, request_ids: Sequence[str] | None = None) -> list[Span]:
    """Spans of requests (all by default) in the order of their requests: the request itself, issue, decision, each hop's parts.

    A part without both instants (a transfer that never arrived) is left out. Parts of the side of a plan with a backup that
    did not give the answer carry `duplicate`.
    """
    requests = trial.requests[trial.requests["scheduled_ns"].notna()]
    hops = trial.hops
    if request_ids is not None:
        requests, hops = requests[requests["request_id"].isin(request_ids)], hops[hops["request_id"].isin(request_ids)]
    by_request = {str(name): rows for name, rows in hops.groupby("request_id", sort=False)}
    found: list[Span] = []
    for row in requests.to_dict("records"):
        name, device = str(row["request_id"]), str(row["device"])
        due = int(row["scheduled_ns"])
        end = int(row["completed_ns"]) if pd.notna(row["completed_ns"]) else due
        keep = ("sample_index", "phase", "status", "error_type", "plan", "model", "exit_id", "exit_confidence", "final_node",
                "correct")
        found.append(Span(name, REQUEST, device, due, end, {k: plain(row[k]) for k in keep if pd.notna(row[k])}))
        issued = int(row["issued_ns"]) if pd.notna(row["issued_ns"]) else due
        found.append(Span(name, "issue", device, due, issued, {}))
        taken = int(row["dispatched_ns"]) if pd.notna(row["dispatched_ns"]) else issued
        if taken > issued:
            found.append(Span(name, "queue", device, issued, taken, {"of": "requests that are not decided"}))
        if pd.notna(row["decision_duration_s"]):
            found.append(Span(name, "decision", device, taken, taken + round(float(row["decision_duration_s"]) * 1e9), {}))
        for hop in by_request.get(name, pd.DataFrame()).to_dict("records"):
            found += _hop_spans(name, hop)
    return found


def chrome_trace(trial: Trial, request_ids: Sequence[str] | None = None) -> dict[str, Any]:
    """The spans in Chrome's trace event format (chrome://tracing, Perfetto): one process per node or way, times in µs.

    A request is an asynchronous slice on its device, for requests overlap; its parts are complete events on the lane where
    they took place, in as many threads as overlap needs.
    """
    spans = spans_of(trial, request_ids)
    origin = int((trial.manifest.get("clock") or {}).get("start_ns") or min((s.start_ns for s in spans), default=0))
    lanes = {lane: i + 1 for i, lane in enumerate(dict.fromkeys(span.lane for span in spans))}
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": lane}}
                                    for lane, pid in lanes.items()]
    busy: dict[str, list[int]] = {lane: [] for lane in lanes}  # per lane: when each of its threads is free again
    for span in sorted(spans, key=lambda s: (s.start_ns, -s.end_ns)):
        start, length = (span.start_ns - origin) / 1e3, max(0, span.end_ns - span.start_ns) / 1e3
        common = {"cat": span.kind, "pid": lanes[span.lane], "ts": start}
        args = {"request_id": span.request_id, **span.detail}
        if span.kind == REQUEST:
            events += [{"ph": "b", "name": span.request_id, "id": span.request_id, "tid": 0, **common, "args": args},
                       {"ph": "e", "name": span.request_id, "id": span.request_id, "tid": 0, **common, "ts": start + length}]
            continue
        free = busy[span.lane]
        thread = next((i for i, until in enumerate(free) if until <= span.start_ns), len(free))
        free[thread:thread + 1] = [span.end_ns]
        events.append({"ph": "X", "name": span.kind, "dur": length, "tid": thread + 1, **common, "args": args})
    return {"traceEvents": events, "displayTimeUnit": "ms",
            "otherData": {"run_id": trial.run_id, "policy": trial.policy, "time origin": "start of the load"}}


def write_chrome_traces(folder: Path, trials: Sequence[Trial]) -> list[Path]:
    """Write one Chrome trace per trial into `folder`; returns the paths."""
    paths = []
    for trial in trials:
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in trial.label.replace(", ", "_"))
        paths.append(write_text_atomic(folder / f"{name}.trace.json", json.dumps(plain(chrome_trace(trial)), allow_nan=False)))
    return paths


def waterfall(trial: Trial) -> list[dict[str, Any]]:
    """Chosen requests with the spans of what answered them, milliseconds from the scheduled instant; for the report."""
    chosen = choose_requests(trial)
    spans: dict[str, list[Span]] = {}
    for span in spans_of(trial, [name for _, name in chosen]):
        spans.setdefault(span.request_id, []).append(span)
    shown = []
    for why, name in chosen:
        whole, *parts = spans[name]
        due = whole.start_ns
        shown.append({
            "why": why, "id": name, "ms": (whole.end_ns - due) / 1e6, "ok": whole.detail.get("status") == "ok",
            "exit": whole.detail.get("exit_id"), "correct": whole.detail.get("correct"),
            "spans": [{"kind": s.kind, "lane": s.lane, "from": (s.start_ns - due) / 1e6, "to": (s.end_ns - due) / 1e6,
                       "detail": s.detail} for s in sorted(parts, key=lambda s: (s.start_ns, s.end_ns))
                      if not s.detail.get("duplicate")],
        })
    return shown


def _hop_spans(name: str, hop: Mapping[Any, Any]) -> list[Span]:
    found = []
    src, dst = (str(hop[key]) if pd.notna(hop[key]) else "" for key in ("src_node", "dst_node"))
    lanes = {"src": src, "dst": dst or src, "way": f"{src} to {dst}"}
    for kind, first, last, where in _PARTS:
        if pd.isna(hop[first]) or pd.isna(hop[last]):
            continue
        keep = {"encode": ("payload_bytes",), "transfer": ("payload_bytes", "header_bytes", "link", "direction"),
                "queue": (), "compute": ("stage", "service_ns")}[kind]
        detail = {key: plain(hop[key]) for key in keep if pd.notna(hop[key])}
        if pd.notna(hop["duplicate"]) and hop["duplicate"]:
            detail["duplicate"] = True
        if "link" in detail:
            detail["link"] = str(detail["link"]).replace(LIST_SEPARATOR, " + ")
        found.append(Span(name, kind, lanes[where], int(hop[first]), int(hop[last]), detail))
    return found


def _id(rows: pd.DataFrame, position: int) -> str:
    return str(np.asarray(rows["request_id"])[position])
