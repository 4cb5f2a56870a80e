"""Tables of a trial: their columns (name, unit, type, meaning) and the writer; without pandas, which devices do not load."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

FLUSH_S = 0.25
ColumnType = Literal["int", "float", "str", "bool"]

# separates the parts of a cell that holds a list: tiers_used `device+edge`, link `device1-edge1+edge1-cloud1`
LIST_SEPARATOR = "+"
# the row set of the whole machine in `nodes` carries this name
MACHINE = "machine"


@dataclass(frozen=True)
class Column:
    """One column: `unit` is empty for names, identifiers and counts; empty cells mean not applicable."""

    name: str
    unit: str
    type: ColumnType
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table of the data model: name, what one row is, and its columns in file order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in file order."""
        return tuple(column.name for column in self.columns)


def _table(name: str, row: str, *columns: tuple[str, str, ColumnType, str]) -> Table:
    return Table(name, row, tuple(Column(*column) for column in columns))


REQUESTS = _table(
    "requests",
    "one row per request that was scheduled, whatever became of it",
    ("run_id", "", "str", "trial that the row belongs to"),
    ("request_id", "", "str", "unique within the trial"),
    ("sample_index", "", "int", "index of the input in the data set"),
    ("device", "", "str", "host that issued the request"),
    ("phase", "", "str", "warmup, measure or drain; only measure enters the results"),
    ("scheduled_ns", "ns", "int", "instant at which the request was due; latency counts from here"),
    ("issued_ns", "ns", "int", "instant at which the load generator handed it over"),
    ("dispatched_ns", "ns", "int", "instant at which its turn on the device came and the policy was asked"),
    ("completed_ns", "ns", "int", "instant at which the device held the answer, or gave up"),
    ("status", "", "str", "ok, failed or dropped"),
    ("error_type", "", "str", "what went wrong; empty when ok"),
    ("policy", "", "str", "policy that chose the plan"),
    ("plan", "", "str", "steps that were chosen"),
    ("model", "", "str", "model that answered"),
    ("split_point", "", "str", "last stage before the cut"),
    ("exit_id", "", "str", "exit head that gave the answer"),
    ("exit_confidence", "", "float", "confidence at that exit, 0 to 1"),
    ("final_node", "", "str", "node that gave the answer"),
    ("tiers_used", "", "str", "tiers that took part, joined with +"),
    ("codec", "", "str", "codec of what was sent"),
    ("request_bytes", "bytes", "int", "payload that left the device"),
    ("response_bytes", "bytes", "int", "payload that came back to the device"),
    ("prediction", "", "int", "class that was answered"),
    ("label", "", "int", "true class"),
    ("correct", "", "bool", "prediction equals label"),
    ("deadline_s", "s", "float", "time allowed from the scheduled instant"),
    ("deadline_met", "", "bool", "answered ok within the deadline"),
    ("decision_duration_s", "s", "float", "time that the policy took"),
    ("backup", "", "str", "won or lost: the plan's backup was started on the device, and gave the answer or not; empty when it "
     "was not started"),
    ("duplicates", "", "int", "answers that came after the one that counts; empty when no backup was started"),
)

HOPS = _table(
    "hops",
    "one row per request (or probe) and hop: a transfer between two nodes or a computation on one",
    ("run_id", "", "str", "trial that the row belongs to"),
    ("request_id", "", "str", "request, or probe (DEVICE-probe-NUMBER), that the hop belongs to"),
    ("hop_index", "", "int", "order of the hop within its request, from 0"),
    ("kind", "", "str", "compute, transfer, or probe (a message of a policy's active probe)"),
    ("src_node", "", "str", "sender, or the node that computes"),
    ("dst_node", "", "str", "receiver, or the node that computes"),
    ("link", "", "str", "emulated link; several in path order are joined with +"),
    ("direction", "", "str", "up: towards the cloud; down: towards the device; local: a computation"),
    ("stage", "", "str", "stages computed, or whose output was sent (from-to)"),
    ("payload_bytes", "bytes", "int", "body of the message"),
    ("header_bytes", "bytes", "int", "application header of the message (HTTP line, headers, tensor metadata)"),
    ("encode_start_ns", "ns", "int", "codec began"),
    ("encode_end_ns", "ns", "int", "codec done"),
    ("send_start_ns", "ns", "int", "first byte handed to the socket"),
    ("recv_first_ns", "ns", "int", "first byte read by the receiver"),
    ("recv_last_ns", "ns", "int", "last byte read by the receiver"),
    ("queue_start_ns", "ns", "int", "work entered the node's queue"),
    ("compute_start_ns", "ns", "int", "worker began (compute profile's hold included)"),
    ("compute_end_ns", "ns", "int", "worker done"),
    ("service_ns", "ns", "int", "service time that the compute profile asked for; empty for real compute"),
    ("model", "", "str", "model that was computed"),
    ("load_ns", "ns", "int", "loading the model from disk, the last part of the wait from queue_start to compute_start; empty "
     "when it was in memory"),
    ("duplicate", "", "bool", "true: of the side that did not give the answer, plan or backup; empty when no backup was started"),
    ("memo_hit", "", "bool", "memoised output looked up (true) or computed after all (false); empty where outputs are computed"),
)

LINKS = _table(
    "links",
    "one row per link, direction and 100 ms poll",
    ("run_id", "", "str", "trial that the row belongs to"),
    ("t_ns", "ns", "int", "instant of the poll"),
    ("link", "", "str", "link's name"),
    ("direction", "", "str", "up or down"),
    ("trace", "", "str", "trace that is replayed; empty for a fixed rate"),
    ("trace_offset_ns", "ns", "int", "position in the trace"),
    ("target_rate_bps", "bit/s", "float", "fixed rate, or mean of the trace since the poll before"),
    ("applied_rate_bps", "bit/s", "float", "what of it was set in the kernel (0 while the link is down)"),
    ("apply_lag_ns", "ns", "int", "latest update since the poll before: done minus due, maximum"),
    ("target_delay_s", "s", "float", "one-way delay asked for"),
    ("target_loss", "", "float", "loss probability asked for"),
    ("tx_bytes", "bytes", "int", "kernel's count of IP bytes sent since the link was made"),
    ("tx_packets", "", "int", "kernel's count of packets sent since the link was made"),
    ("dropped_packets", "", "int", "kernel's count of packets dropped since the link was made"),
    ("backlog_bytes", "bytes", "int", "IP bytes waiting in the link's queue"),
    ("allowed_bytes", "bytes", "int", "IP bytes that the trace allowed since the replay began, cumulative"),
    ("apply_lag_p50_ns", "ns", "int", "as apply_lag_ns, median"),
)

NODES = _table(
    "nodes",
    "one row per poll of a node; the node `machine` is the whole computer",
    ("run_id", "", "str", "trial that the row belongs to"),
    ("t_ns", "ns", "int", "instant of the poll"),
    ("node", "", "str", "node's name, or machine"),
    ("cpu_usage_s", "s", "float", "CPU time used since start, cumulative, all cores"),
    ("cpu_throttled_s", "s", "float", "time in which a CPU quota held the node back, cumulative"),
    ("cpu_steal_s", "s", "float", "CPU time that the hypervisor gave to others, cumulative (machine only)"),
    ("memory_bytes", "bytes", "int", "memory in use"),
    ("queue_depth", "", "int", "requests waiting for a worker"),
    ("inflight", "", "int", "requests accepted and not yet answered"),
)

ORACLE = _table(
    "oracle",
    "one row per measured request: the best plan in hindsight; written where a policy ran or the scenario has `oracle:`",
    ("run_id", "", "str", "trial that the row belongs to"),
    ("request_id", "", "str", "request that the row belongs to"),
    ("oracle_plan", "", "str", "plan that would have answered first, had the request been alone; empty where none would have"),
    ("oracle_latency_s", "s", "float", "its latency by profiles and replayed capacity, from the scheduled instant"),
    ("oracle_hit", "", "bool", "that latency is within the deadline"),
    ("chosen_latency_s", "s", "float", "the same of the chosen plan, with its fallback and backup; empty for failed requests"),
    ("static_latency_s", "s", "float", "the same of the trial's best fixed plan, behind the device's other requests"),
)

TABLES: dict[str, Table] = {table.name: table for table in (REQUESTS, HOPS, LINKS, NODES, ORACLE)}


class TableWriter:
    """Streaming CSV writer of one table, for a process that writes while it runs.

    Rows are mappings; absent keys and None become empty cells, unknown keys are an error (a misspelt
    column would be lost silently otherwise). Lines are flushed every `flush_every` rows, with a row that comes FLUSH_S after
    the last flush (for those who look while it runs), and on close.
    """

    def __init__(self, path: str | Path, table: Table, *, run_id: str | None = None, flush_every: int = 50) -> None:
        self.path, self.table, self.run_id = Path(path), table, run_id
        self._known = frozenset(table.names)
        self._flush_every, self._rows = max(1, flush_every), 0  # rows since the last flush
        self._flushed_s = time.monotonic()
        self._stream = self.path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._stream, lineterminator="\n")
        self._csv.writerow(table.names)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; raises ValueError for a column that the table does not have."""
        if not self._known.issuperset(row):
            raise ValueError(f"table {self.table.name} has no column {sorted(set(row) - self._known)}")
        cells = [row.get(name) for name in self.table.names]
        if self.run_id is not None and row.get("run_id") is None:
            cells[0] = self.run_id  # run_id is the first column of every table
        self._csv.writerow([cell(value) for value in cells])
        self._rows += 1
        if self._rows >= self._flush_every or time.monotonic() - self._flushed_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand everything written so far to the kernel."""
        self._stream.flush()
        self._rows, self._flushed_s = 0, time.monotonic()

    def close(self) -> None:
        """Flush and close; may be called twice."""
        self._stream.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def cell(value: Any) -> str:
    """CSV text of one value: empty for not applicable, lower-case booleans, shortest exact floats."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)
