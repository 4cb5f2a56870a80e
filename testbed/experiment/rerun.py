"""A finished trial against its repetition: what differs in machine, software and data, and which columns came out alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.measurement.records import REQUESTS, read_table

# facts of manifest["host"] that may change results; load_1min and the like describe a moment
HOST_FACTS = ("kernel", "system", "machine", "cpu_model", "cpu_count", "memory_bytes", "clock_source", "root")
# columns of `requests` that are durations or follow from them; instants are those whose unit is ns
TIMED = ("deadline_met", "decision_duration_s")


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same: `kernel`, then and now."""

    kind: str
    name: str
    then: Any
    now: Any


@dataclass(frozen=True)
class Column:
    """One column of `requests`: rows in which the two trials differ (matched by request_id)."""

    name: str
    timed: bool
    differing: int


@dataclass(frozen=True)
class Comparison:
    """`requests` of a trial and of its repetition."""

    rows_then: int
    rows_now: int
    matched: int
    columns: tuple[Column, ...]

    @property
    def reproduced(self) -> bool:
        """The same requests, and no difference in any column that is not a time."""
        return self.rows_then == self.rows_now == self.matched and not any(c.differing for c in self.columns if not c.timed)


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Machine, software, link backends and content hashes of two manifests, where they are not the same."""
    found = [Difference("host", key, then.get("host", {}).get(key), now.get("host", {}).get(key)) for key in HOST_FACTS]
    for kind in ("versions", "files"):
        a, b = then.get(kind) or {}, now.get(kind) or {}
        found += [Difference(kind, name, a.get(name), b.get(name)) for name in sorted({*a, *b})]
    a, b = ({link["name"]: link.get("backend") for link in m.get("links") or []} for m in (then, now))
    found += [Difference("backend of link", name, a.get(name), b.get(name)) for name in sorted({*a, *b})]
    a, b = ({node["name"]: node.get("engine") for node in m.get("nodes") or []} for m in (then, now))
    found += [Difference("engine of node", name, a.get(name), b.get(name)) for name in sorted({*a, *b})]
    found.append(Difference("configuration", "hash", then.get("config_hash"), now.get("config_hash")))
    return [d for d in found if d.then != d.now]


def compare_requests(then: Path, now: Path) -> Comparison:
    """Compare `requests.csv` of two trial folders, row by row. Raises InputError when a table is not readable."""
    a, b = (read_table(folder / "requests.csv", REQUESTS).set_index("request_id").sort_index() for folder in (then, now))
    both = a.index.intersection(b.index)
    columns = []
    for column in REQUESTS.columns:
        if column.name in ("request_id", "run_id"):
            continue  # the key itself, and a name
        x, y = (frame.loc[both, column.name] for frame in (a, b))
        same = (x == y).fillna(False).astype(bool) | (x.isna() & y.isna())
        columns.append(Column(column.name, column.unit == "ns" or column.name in TIMED, int((~same).sum())))
    return Comparison(len(a), len(b), len(both), tuple(columns))


def latency_quantiles_s(folder: Path) -> pd.Series:
    """p50, p95 and p99 of the latency of answered requests of the measured phase, in seconds."""
    requests = read_table(folder / "requests.csv", REQUESTS)
    kept = requests[(requests["phase"] == "measure") & (requests["status"] == "ok")]
    latency_s = (kept["completed_ns"] - kept["scheduled_ns"]).astype("float64") / 1e9
    return latency_s.quantile([0.5, 0.95, 0.99])
