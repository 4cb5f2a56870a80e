"""Attainment: the share of requests answered in time against the deadline that they were given, where deadlines differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.metrics import costs
from testbed.measurement.nominal import nominal_accuracy
from testbed.measurement.stats import share_interval, units_of
from testbed.measurement.trial import Trial

ATTAINMENT = "attainment.csv"
MAX_RANGES = 8
COLUMNS = ("policy", "point", "deadline_from_s", "deadline_to_s", "requests", "in_time", "in_time_low", "in_time_high",
           "accuracy", "effective_accuracy", "on_device", "cost_per_1000")

Groups = Iterable[tuple[str, Mapping[str, Any], Sequence[Trial]]]  # policy, sweep point, trials


def attainment_table(groups: Groups) -> pd.DataFrame:
    """One row per policy, sweep point (repeats pooled) and range of deadlines, columns COLUMNS; empty where all are equal.

    The ranges [from, to) are those of `deadline_edges`, the same for all policies. `in_time`: share of all measured requests
    of the range that were answered within their deadline, with its 95% interval where there are enough of them. `accuracy`:
    share of correct answers among the answered. `on_device`: share of the answered whose answer came from the device.
    `effective_accuracy`, `cost_per_1000`: as the metrics of these names.
    """
    frames = [(policy, point, _requests(trials)) for policy, point, trials in groups]
    known = [frame["deadline_s"] for _, _, frame in frames if len(frame)]
    edges = deadline_edges(np.concatenate([k.to_numpy("float64") for k in known])) if known else []
    rows = []
    for policy, point, frame in frames:
        if not len(frame):
            continue
        units = units_of(frame["trial"].to_numpy("int64"))
        for low, high in pairwise(edges):
            inside = ((frame["deadline_s"] >= low) & (frame["deadline_s"] < high)).to_numpy("bool")
            if not inside.any():
                continue
            part = frame[inside]
            in_time = part["in_time"].to_numpy("float64")
            interval = share_interval(in_time, units.take(inside))
            rows.append({
                "policy": policy, "point": ", ".join(f"{k.rsplit('.', 1)[-1]}={fmt.swept(v)}" for k, v in point.items()),
                "deadline_from_s": low, "deadline_to_s": high, "requests": len(part), "in_time": in_time.mean(),
                "in_time_low": interval.low, "in_time_high": interval.high, "accuracy": part["correct"].mean(),
                "effective_accuracy": part["nominal"].mean(),
                "on_device": part["on_device"].mean(), "cost_per_1000": part["cost"].mean() * 1000})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_attainment(run_dir: Path, groups: Groups) -> pd.DataFrame:
    """Write `attainment.csv` of a run (nothing where all deadlines are equal); returns the table."""
    table = attainment_table(groups)
    if len(table):
        write_text_atomic(run_dir / ATTAINMENT, table.to_csv(index=False, lineterminator="\n"))
    return table


def deadline_edges(deadlines_s: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Edges of at most MAX_RANGES ranges [from, to) of equal width that cover all deadlines; empty where all are equal.

    Edges are multiples of the width, which is the smallest of 1, 2, 2.5, 5 x 10^k s that does.
    """
    low, high = float(np.min(deadlines_s)), float(np.max(deadlines_s))
    if not high > low:
        return []
    exponent = math.floor(math.log10((high - low) / MAX_RANGES))
    for width in (m * 10.0**e for e in range(exponent, exponent + 3) for m in (1, 2, 2.5, 5)):
        first, last = math.floor(low / width + 1e-9), math.floor(high / width + 1e-9)
        if last - first < MAX_RANGES:
            return [round(i * width, 12) for i in range(first, last + 2)]
    raise AssertionError("a range of ten times the span covers it")


def _requests(trials: Sequence[Trial]) -> pd.DataFrame:
    """Measured requests that have a deadline, in time order: trial, deadline_s, in_time, correct, on_device, nominal, cost."""
    parts = []
    for number, trial in enumerate(trials):
        table = trial.requests
        table = table[table["phase"].fillna("measure").eq("measure") & table["deadline_s"].notna()]
        table = table.sort_values("scheduled_ns", kind="stable").reset_index(drop=True)
        ok = table["status"].eq("ok").fillna(False)
        tier = table["final_node"].map(lambda node, of=trial.tier_of: of.get(node, node))
        parts.append(pd.DataFrame({
            "trial": number, "deadline_s": table["deadline_s"].astype("float64"),
            "in_time": (ok & table["deadline_met"].fillna(False)).astype("float64"),
            "correct": table["correct"].astype("Float64").where(ok).astype("float64"),
            "on_device": tier.eq(trial.device_tier).astype("float64").where(ok),
            "nominal": nominal_accuracy(table, trial.manifest), "cost": costs(table, trial)}))
    columns = ["trial", "deadline_s", "in_time", "correct", "on_device", "nominal", "cost"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
