"""Results in the columns that Triton's perf_analyzer writes (`-f FILE`), so that its spreadsheets and scripts read them.

One row per policy and sweep point, by rising throughput. Times are microseconds, averages over answered requests.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.components import BACKUP_WAIT, DECISION, DISPATCH, DOWNLINK, ENCODE, ISSUE
from testbed.measurement.metrics import COMPONENT, request_frame
from testbed.measurement.stats import samples_needed
from testbed.measurement.summary import Group

PERF_CSV = "perf_analyzer.csv"
PERCENTILES = (50, 90, 95, 99)
COLUMNS = ("Request Rate", "Inferences/Second", "Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input",
           "Server Compute Infer", "Server Compute Output", "Client Recv", *(f"p{p} latency" for p in PERCENTILES),
           "Avg latency", "request_count", "policy")


def perf_rows(groups: Sequence[Group]) -> list[dict[str, float | int | str]]:
    """The rows. Throughput is answered requests over the time in which they were asked for, per repeat.

    Client Send: issue, wait for its turn on the device and for the plan before a backup, decision and codec;
    Network+Server Send/Recv: every way and failed attempts, and what is unaccounted;
    Server Queue and Compute Infer: of all nodes, the device's own included; Compute Input and Output are in the ways (0).
    """
    rows = []
    for group in groups:
        frame = request_frame(group.trials)
        ok = frame[frame["ok"] & frame["latency_s"].notna()]
        if not len(ok):
            continue
        spans = [float(rows_["completed_ns"].max() - rows_["scheduled_ns"].min()) / 1e9 for _, rows_ in ok.groupby("trial")]
        span, asked = sum(spans), len(frame)
        mean = {c.removeprefix(COMPONENT): float(ok[c].mean()) * 1e6 for c in ok.columns if c.startswith(COMPONENT)}
        send = sum(mean.get(name, 0.0) for name in (ISSUE, DISPATCH, DECISION, BACKUP_WAIT, ENCODE))
        queue = sum(value for name, value in mean.items() if name.endswith(" queue") and name != DISPATCH)
        infer = sum(value for name, value in mean.items() if name.endswith(" compute"))
        back = mean.get(DOWNLINK, 0.0)
        latency = np.sort(ok["latency_s"].to_numpy("float64")) * 1e6
        rows.append({
            "Request Rate": round(asked / span, 3), "Inferences/Second": round(len(ok) / span, 3), "Client Send": round(send),
            "Network+Server Send/Recv": round(sum(mean.values()) - send - queue - infer - back), "Server Queue": round(queue),
            "Server Compute Input": 0, "Server Compute Infer": round(infer), "Server Compute Output": 0,
            "Client Recv": round(back),
            **{f"p{p} latency": round(float(latency[int(np.ceil(p / 100 * len(latency))) - 1]))
               if len(latency) >= samples_needed(p / 100) else "" for p in PERCENTILES},
            "Avg latency": round(float(latency.mean())), "request_count": len(ok), "policy": group.label,
        })
    return sorted(rows, key=lambda row: float(row["Inferences/Second"]))


def write_perf_csv(folder: Path, groups: Sequence[Group]) -> Path:
    """Write `perf_analyzer.csv` into a run's folder."""
    buffer = io.StringIO()
    output = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    output.writeheader()
    output.writerows(perf_rows(groups))
    return write_text_atomic(folder / PERF_CSV, buffer.getvalue())
