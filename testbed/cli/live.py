"""`testbed run --live`: links, nodes, plans and latency of the running trials, drawn in the terminal twice a second.

Nothing is asked of the programs under test. Requests and queue lengths are read from the files that devices and nodes
write anyway; links and CPU time come with the trial's `live` events, from rows that its polls have taken anyway.
"""

from __future__ import annotations

import csv
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from testbed.experiment.trials import devices_of
from testbed.measurement import format as fmt
from testbed.measurement.tables import LINKS, MACHINE
from testbed.schema.scenario import Scenario

PERIOD_S = 0.5
RATE_WINDOW_S = 2.0  # rates and CPU are means over this time
PLANS_WINDOW_S = 5.0
LATENCY_REQUESTS = 100
TAIL_REQUESTS = 20  # p95 of fewer says nothing
BUSY = 0.9  # of a core
_LINK_FIELDS = LINKS.names[1:]  # the shaper's rows have no run_id
_LEAST_ROWS = 2


@dataclass(frozen=True)
class Request:
    """A finished request: instant of its end, latency, and what the view counts."""

    end_ns: int
    latency_s: float
    plan: str
    exit: str
    ok: bool
    in_time: bool


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
        """How much of the target is used; a backlog counts as all of it."""
        if self.down or (self.backlog_bytes and self.target_bps == 0):
            return 1.0
        return self.rate_bps / self.target_bps if self.target_bps else 0.0


class Tail:
    """Reads the whole lines that were appended to a CSV file since the last call, as dictionaries."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._names = path, 0, []  # type: Path, int, list[str]

    def read(self) -> list[dict[str, str]]:
        """New rows; [] while there is no file. A row that is not whole (a name missing) is left out."""
        try:
            with self._path.open("rb") as stream:
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


class TrialView:
    """What is known of one running trial. `folder` is the trial's, `head` what its first line begins with."""

    def __init__(self, head: str, folder: Path, devices: Sequence[str], servers: Sequence[str]) -> None:
        self.head, self.phase, self.done, self.total = head, "waiting", 0, 0
        work = folder / "work"
        self._requests = [Tail(work / f"{d}.requests.csv") for d in devices]
        self._queues = {n: Tail(work / f"{n}.nodes.csv") for n in servers}
        self._began_s = time.monotonic()
        self._recent: list[Request] = []
        self.failed = 0
        self.queues: dict[str, tuple[int, int]] = {}  # node -> (waiting, in flight)
        self._links: dict[tuple[str, str], deque[dict[str, str]]] = {}
        self._first_dropped: dict[tuple[str, str], int] = {}
        self._usage: dict[str, deque[dict[str, Any]]] = {}

    @classmethod
    def of(cls, head: str, folder: Path, scenario: Scenario) -> TrialView:
        """The view of a trial of `scenario`."""
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
                _append(self._usage.setdefault(str(usage["node"]), deque()), usage)

    def read(self) -> None:
        """Read what devices and nodes have written since the last call."""
        for tail in self._requests:
            for row in tail.read():
                if row["phase"] != "measure":
                    continue
                self.failed += row["status"] != "ok"
                end_ns = int(row["completed_ns"])
                self._recent.append(Request(
                    end_ns, (end_ns - int(row["scheduled_ns"])) / 1e9, row["plan"], row["exit_id"],
                    row["status"] == "ok", row["deadline_met"] == "true"))
        self._recent.sort(key=lambda r: r.end_ns)
        since_ns = time.monotonic_ns() - int(PLANS_WINDOW_S * 1e9)
        old = sum(r.end_ns < since_ns for r in self._recent[:-LATENCY_REQUESTS])
        del self._recent[:old]
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

    def recent(self, now_ns: int) -> list[Request]:
        """Requests that ended within PLANS_WINDOW_S."""
        return [r for r in self._recent if r.end_ns >= now_ns - int(PLANS_WINDOW_S * 1e9)]

    # ---- how it looks ----------------------------------------------------------------------------------------

    def render(self, lines: int, wide: bool = True) -> RenderableType:
        """The trial in at most `lines` lines (never fewer than the head needs): the busiest links and nodes when not all fit."""
        parts: list[RenderableType] = [self._head()]
        if self._links and self.phase == "load":
            now_ns = time.monotonic_ns()
            parts += [self._latency(), self._plans(now_ns)]
            links, cpu = self.links(), self.cpu()
            nodes = [n for n in dict.fromkeys([*self._usage, *self.queues]) if n != MACHINE]
            names = list(dict.fromkeys(name for name, _ in links))
            room = max(2 * _LEAST_ROWS, lines - len(parts) - 2)  # two lines of headings
            for_links, for_nodes = _split(room, len(names), len(nodes))
            shown = _busiest(names, for_links, lambda n: max(links[n, d].load for d in ("up", "down")))
            parts.append(_link_table(links, shown, len(names) - len(shown), wide))
            shown = _busiest(nodes, for_nodes, lambda n: (sum(self.queues.get(n, (0, 0))), cpu.get(n, 0.0)))
            parts.append(_node_table(shown, cpu, self.queues, len(nodes) - len(shown)))
        return Group(*parts)

    def _head(self) -> Text:
        text = Text(self.head, style="bold", no_wrap=True, overflow="ellipsis")
        text.append(f"  {self.phase}", style="cyan")
        if self.total and self.phase in ("load", "outputs"):
            text.append(f" {self.done}/{self.total} {'requests' if self.phase == 'load' else 'samples'}", style="not bold")
        text.append(f"  {time.monotonic() - self._began_s:.0f} s", style="not bold")
        machine = self.cpu().get(MACHINE)
        if machine is not None:
            text.append(f"  machine CPU {machine:.0%}", style="not bold")
        return text

    def _latency(self) -> Text:
        last = self._recent[-LATENCY_REQUESTS:]
        times = [r.latency_s for r in last if r.ok]
        if not last:
            return Text("latency  -", no_wrap=True)
        p50 = fmt.seconds(float(np.percentile(times, 50))) if times else "-"
        p95 = fmt.seconds(float(np.percentile(times, 95))) if len(times) >= TAIL_REQUESTS else "-"
        in_time = sum(r.in_time for r in last) / len(last)
        text = Text(f"latency  p50 {p50}  p95 {p95}  in time {in_time:.0%}  (last {len(last)} requests)", no_wrap=True,
                    overflow="ellipsis")
        return text.append(f"  failed {self.failed}", style="red") if self.failed else text

    def _plans(self, now_ns: int) -> Text:
        recent = self.recent(now_ns)
        text = Text("plans    ", no_wrap=True, overflow="ellipsis")
        if not recent:
            return text.append("-")
        text.append(_shares([r.plan for r in recent]))
        exits = [r.exit for r in recent if r.exit]
        if len(set(exits)) > 1:
            text.append(f"  exits {_shares(exits)}")
        return text.append(f"  (last {PLANS_WINDOW_S:.0f} s, {len(recent) / PLANS_WINDOW_S:.1f}/s)")


class LiveView:
    """All running trials, and `bar` below them. Events come from one thread, drawing has its own."""

    def __init__(self, console: Console, bar: RenderableType) -> None:
        self._bar, self._console = bar, console
        self._lock = threading.Lock()
        self._trials: dict[str, TrialView] = {}
        self._live = Live(console=console, get_renderable=lambda: self, refresh_per_second=1 / PERIOD_S, transient=True)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """End, and take the drawing away."""
        self._live.stop()

    def shows(self, name: str) -> bool:
        """True between `add` and `remove`."""
        return name in self._trials

    def add(self, name: str, view: TrialView) -> None:
        """Show a trial."""
        with self._lock:
            self._trials[name] = view

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Hand an event to a trial that is shown."""
        with self._lock:
            if name in self._trials:
                self._trials[name].event(event)

    def remove(self, name: str) -> None:
        """The trial has ended."""
        with self._lock:
            self._trials.pop(name, None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            for view in self._trials.values():
                view.read()
            lines = (console.height - 2) // max(1, len(self._trials)) - 1
            for view in self._trials.values():
                yield view.render(lines, wide=console.width >= 90)
                yield Text()
        yield self._bar


def _append(rows: deque[dict[str, Any]], row: dict[str, Any]) -> None:
    """Keep what is needed for a mean over RATE_WINDOW_S."""
    rows.append(row)
    while len(rows) > 2 and int(row["t_ns"]) - int(rows[1]["t_ns"]) >= RATE_WINDOW_S * 1e9:
        rows.popleft()


def _shares(words: Sequence[str]) -> str:
    return ", ".join(f"{word} {count / len(words):.0%}" for word, count in Counter(words).most_common(4))


def _split(room: int, links: int, nodes: int) -> tuple[int, int]:
    """Lines for links and for nodes: all when they fit, else half each, and what one does not need goes to the other."""
    if links + nodes <= room:
        return links, nodes
    half = room // 2
    for_links = min(links, max(half, room - nodes))
    return for_links, room - for_links


def _busiest(names: Sequence[str], room: int, busy: Any) -> list[str]:
    """All names in their order when there is room, else the busiest, leaving a line to say that there are more."""
    if len(names) <= room:
        return list(names)
    kept = set(sorted(names, key=busy, reverse=True)[: max(1, room - 1)])
    return [n for n in names if n in kept]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _link_table(links: Mapping[tuple[str, str], LinkRow], names: Sequence[str], hidden: int, wide: bool) -> Table:
    """One line per link: rate now / target in Mbit/s, backlog and drops, up and down."""
    unit = " Mbit/s" if wide else ""
    table = _table("link" if wide else "Mbit/s", f"up{unit} now/target", "backlog", "drops", f"down{unit} now/target", "backlog",
                   "drops")
    for name in names:
        cells: list[Text] = []
        for direction in ("up", "down"):
            row = links[name, direction]
            target = "no limit" if row.target_bps is None else "link down" if row.down else _mbit(row.target_bps)
            cells += [Text(f"{_mbit(row.rate_bps)} / {target}", style="red" if row.down else ""),
                      Text(fmt.size(row.backlog_bytes), style="" if row.backlog_bytes else "dim"),
                      Text(str(row.dropped), style="red" if row.dropped else "dim")]
        table.add_row(name, *cells)
    if hidden:
        table.add_row(Text(f"and {hidden} less busy links", style="dim"))
    return table


def _node_table(names: Sequence[str], cpu: Mapping[str, float], queues: Mapping[str, tuple[int, int]], hidden: int) -> Table:
    """One line per node: CPU in percent of a core; waiting and in flight for servers (a device has no such queue)."""
    table = _table("node", "CPU", "queue", "in flight")
    for name in names:
        used = cpu.get(name)
        waiting, inflight = queues.get(name, ("-", "-"))
        table.add_row(name, Text("-" if used is None else f"{used:.0%}", style="yellow" if used and used > BUSY else ""),
                      Text(str(waiting), style="yellow" if waiting not in ("-", 0) else ""), str(inflight))
    if hidden:
        table.add_row(Text(f"and {hidden} less busy nodes", style="dim"))
    return table


def _mbit(rate_bps: float) -> str:
    """Mbit/s with two decimals, fewer when it is large: columns stay narrow and in line."""
    value = rate_bps / 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
