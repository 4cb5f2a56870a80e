"""What the live view knows of a running trial: links, nodes, plans and latency now, from its events and files.

Nothing is asked of the programs under test. Requests and queue lengths are read from the files that devices and nodes
write anyway; links and CPU time come with the trial's `live` events, from rows that its polls have taken anyway.
"""

from __future__ import annotations

import csv
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.experiment.trials import devices_of
from testbed.measurement.tables import LINKS
from testbed.schema.scenario import Scenario

RATE_WINDOW_S = 2.0  # rates and CPU are means over this time
PLANS_WINDOW_S = 5.0
LATENCY_REQUESTS = 100
GONE_S = 1.0
_LINK_FIELDS = LINKS.names[1:]  # the shaper's rows have no run_id


@dataclass(frozen=True)
class Request:
    """A finished request: instant of its end, latency, and what the view counts."""

    end_ns: int
    latency_s: float
    plan: str
    exit: str
    ok: bool
    in_time: bool
    fell_back: bool


@dataclass(frozen=True)
class LinkRow:
    """One direction of a link now: means over RATE_WINDOW_S, drops since the load began. None: no limit."""

    rate_bps: float
    target_bps: float | None
    backlog_bytes: int
    dropped: int
    down: bool

    @property
    def load(self) -> float:
        """How much of the target is used; all of it when something waits for a rate of zero."""
        if self.down or (self.backlog_bytes and self.target_bps == 0):
            return 1.0
        return self.rate_bps / self.target_bps if self.target_bps else 0.0


class Tail:
    """Reads the whole lines that were appended to a CSV file since the last call, as dictionaries."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._names: list[str] = []

    def read(self) -> list[dict[str, str]]:
        """New rows; [] while there is no file. A file that was begun again is read from its start."""
        try:
            with self._path.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < self._offset:
                    self._offset, self._names = 0, []
                stream.seek(self._offset)
                block = stream.read()
        except OSError:
            return []
        block = block[: block.rfind(b"\n") + 1]
        self._offset += len(block)
        rows = list(csv.reader(block.decode("utf-8", "replace").splitlines()))
        if rows and not self._names:
            self._names = rows.pop(0)
        return [dict(zip(self._names, row, strict=True)) for row in rows if len(row) == len(self._names)]


class TrialState:
    """What is known of one running trial. `folder` is the trial's, `head` what its first line begins with."""

    def __init__(self, head: str, folder: Path, devices: Sequence[str], servers: Sequence[str]) -> None:
        self.head, self.phase, self.done, self.total = head, "waiting", 0, 0
        work = folder / "work"
        self._requests = [Tail(work / f"{d}.requests.csv") for d in devices]
        self._queues = {n: Tail(work / f"{n}.nodes.csv") for n in servers}
        self.began_s = time.monotonic()
        self.requests: list[Request] = []
        self.failed = 0
        self.queues: dict[str, tuple[int, int]] = {}  # node -> (waiting, in flight)
        self._links: dict[tuple[str, str], deque[dict[str, str]]] = {}
        self._first_dropped: dict[tuple[str, str], int] = {}
        self._usage: dict[str, deque[dict[str, Any]]] = {}

    @classmethod
    def of(cls, head: str, folder: Path, scenario: Scenario) -> TrialState:
        """The state of a trial of `scenario`."""
        devices = devices_of(scenario)
        return cls(head, folder, devices, [n for n in scenario.topology.node_names if n not in devices])

    # ---- what comes in ---------------------------------------------------------------------------------------

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the trial."""
        kind = event.get("event")
        if kind == "phase":
            self.phase = str(event["phase"])
        elif kind in ("progress", "outputs"):
            self.done, self.total = int(event["done"]), int(event["total"])
        elif kind == "live":
            for fields in csv.reader(str(event["links"]).splitlines()):
                row = dict(zip(_LINK_FIELDS, fields, strict=True))
                key = row["link"], row["direction"]
                self._first_dropped.setdefault(key, int(row["dropped_packets"]))
                _append(self._links.setdefault(key, deque()), row)
            for usage in event["usage"]:
                rows = self._usage.setdefault(str(usage["node"]), deque())
                if rows and usage["cpu_usage_s"] < rows[-1]["cpu_usage_s"]:
                    rows.clear()  # its program was started again
                _append(rows, usage)

    def read(self) -> None:
        """Read what devices and nodes have written since the last call."""
        for tail in self._requests:
            for row in tail.read():
                if row["phase"] != "measure":
                    continue
                self.failed += row["status"] != "ok"
                end_ns = int(row["completed_ns"])
                self.requests.append(Request(
                    end_ns, (end_ns - int(row["scheduled_ns"])) / 1e9, row["plan"], row["exit_id"],
                    row["status"] == "ok", row["deadline_met"] == "true", row["error_type"].startswith("fallback:")))
        self.requests.sort(key=lambda r: r.end_ns)
        since_ns = time.monotonic_ns() - int(PLANS_WINDOW_S * 1e9)
        old = sum(r.end_ns < since_ns for r in self.requests[:-LATENCY_REQUESTS])
        del self.requests[:old]
        for node, tail in self._queues.items():
            for row in tail.read()[-1:]:
                self.queues[node] = int(row["queue_depth"]), int(row["inflight"])

    # ---- what it comes to ------------------------------------------------------------------------------------

    def links(self) -> dict[tuple[str, str], LinkRow]:
        """State of each (link, direction), in the fabric's order."""
        found = {}
        for key, rows in self._links.items():
            first, last = rows[0], rows[-1]
            span_s = (int(last["t_ns"]) - int(first["t_ns"])) / 1e9
            target = float(last["target_rate_bps"]) if last["target_rate_bps"] else None
            if last["allowed_bytes"] and first["allowed_bytes"] and span_s:  # a trace: its mean over the same time
                target = (int(last["allowed_bytes"]) - int(first["allowed_bytes"])) * 8 / span_s
            rate = (int(last["tx_bytes"]) - int(first["tx_bytes"])) * 8 / span_s if span_s else 0.0
            down = last["applied_rate_bps"] == "0" and last["target_rate_bps"] not in ("", "0")
            found[key] = LinkRow(rate, target, int(last["backlog_bytes"]),
                                 int(last["dropped_packets"]) - self._first_dropped[key], down)
        return found

    def cpu(self) -> dict[str, float]:
        """CPU seconds per second of each node that was polled twice, and of the whole machine."""
        shares = {}
        for node, rows in self._usage.items():
            span_s = (rows[-1]["t_ns"] - rows[0]["t_ns"]) / 1e9
            if span_s:
                shares[node] = (rows[-1]["cpu_usage_s"] - rows[0]["cpu_usage_s"]) / span_s
        return shares

    def gone(self) -> set[str]:
        """Nodes without a row for GONE_S: a device that has done all its requests, a server that was killed."""
        newest_ns = max((rows[-1]["t_ns"] for rows in self._usage.values()), default=0)
        return {node for node, rows in self._usage.items() if newest_ns - rows[-1]["t_ns"] > GONE_S * 1e9}

    def nodes(self) -> list[str]:
        """All nodes that have been heard of, and the machine."""
        return list(dict.fromkeys([*self._usage, *self.queues]))

    def recent(self, now_ns: int) -> list[Request]:
        """Requests that ended within PLANS_WINDOW_S."""
        return [r for r in self.requests if r.end_ns >= now_ns - int(PLANS_WINDOW_S * 1e9)]


def _append(rows: deque[dict[str, Any]], row: dict[str, Any]) -> None:
    """Keep what is needed for a mean over RATE_WINDOW_S."""
    rows.append(row)
    while len(rows) > 2 and int(row["t_ns"]) - int(rows[1]["t_ns"]) >= RATE_WINDOW_S * 1e9:
        rows.popleft()
