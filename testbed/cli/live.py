"""`testbed run --live`: links, nodes, plans and latency of the running trials, drawn in the terminal twice a second."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from testbed.cli.live_state import LATENCY_REQUESTS, PLANS_WINDOW_S, LinkRow, TrialState
from testbed.measurement import format as fmt
from testbed.measurement.tables import MACHINE

PERIOD_S = 0.5
TAIL_REQUESTS = 20  # p95 of fewer says nothing
BUSY = 0.9  # of a core
WIDE_COLUMNS = 90
BESIDE_COLUMNS = 125  # from here on nodes stand beside links


class LiveView:
    """All running trials in their `order` (run_id -> number), and `bar` below them; drawn by a thread of its own."""

    def __init__(self, console: Console, bar: RenderableType, order: Mapping[str, int]) -> None:
        self._bar, self._order = bar, order
        self._lock = threading.Lock()
        self._trials: dict[str, TrialState] = {}
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

    def add(self, name: str, trial: TrialState) -> None:
        """Show a trial."""
        with self._lock:
            self._trials[name] = trial
            self._trials = dict(sorted(self._trials.items(), key=lambda item: self._order[item[0]]))

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
            lines = (console.height - 2) // max(1, len(self._trials)) - 1  # the bar, and a line between trials
            for trial in self._trials.values():
                trial.read()
                yield draw(trial, lines, options.max_width)
                yield Text()
        yield self._bar


def draw(trial: TrialState, lines: int, width: int) -> RenderableType:
    """The trial in `lines` lines when it can be: the busiest links and nodes, when not all of them fit."""
    parts: list[RenderableType] = [_head(trial)]
    links, cpu, gone = trial.links(), trial.cpu(), trial.gone()
    if not links or trial.phase != "load":
        return Group(*parts)
    parts += [_latency(trial), _plans(trial)]
    names = list(dict.fromkeys(name for name, _ in links))
    nodes = [n for n in trial.nodes() if n != MACHINE]
    beside = width >= BESIDE_COLUMNS
    room = lines - len(parts) - (1 if beside else 2)  # below the headings
    for_links, for_nodes = (room, room) if beside else _split(room, len(names), len(nodes))
    if len(names) > for_links or len(nodes) > for_nodes:  # a line says so
        for_links, for_nodes = (room - 1, room - 1) if beside else _split(room - 1, len(names), len(nodes))

    def attention(node: str) -> tuple[bool, int, float]:
        return node in gone and node in trial.queues, sum(trial.queues.get(node, (0, 0))), cpu.get(node, 0.0)

    shown = _busiest(names, for_links, lambda n: max(links[n, d].load for d in ("up", "down")))
    shown_nodes = _busiest(nodes, for_nodes, attention)
    tables = [_link_table(links, shown, wide=width >= WIDE_COLUMNS), _node_table(shown_nodes, cpu, trial.queues, gone)]
    if beside:
        grid = Table.grid(padding=(0, 4, 0, 0))
        grid.add_row(*tables)
        parts.append(grid)
    else:
        parts += tables
    hidden = {"link": len(names) - len(shown), "node": len(nodes) - len(shown_nodes)}
    if any(hidden.values()):
        words = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in hidden.items() if count]
        parts.append(Text(f"and {' and '.join(words)} less busy", style="dim"))
    return Group(*parts)


def _head(trial: TrialState) -> Text:
    text = Text(trial.head, style="bold", no_wrap=True, overflow="ellipsis")
    text.append(f"  {trial.phase}", style="cyan")
    if trial.total and trial.phase in ("load", "outputs"):
        text.append(f" {trial.done}/{trial.total} {'requests' if trial.phase == 'load' else 'samples'}", style="not bold")
    text.append(f"  {time.monotonic() - trial.began_s:.0f} s", style="not bold")
    machine = trial.cpu().get(MACHINE)
    if machine is not None:
        text.append(f"  CPU {machine:.1f} of {len(os.sched_getaffinity(0))} cores", style="not bold")
    return text


def _latency(trial: TrialState) -> Text:
    last = trial.requests[-LATENCY_REQUESTS:]
    if not last:
        return Text("latency  -", no_wrap=True)
    times = [r.latency_s for r in last if r.ok]
    p50 = fmt.seconds(float(np.percentile(times, 50))) if times else "-"
    p95 = fmt.seconds(float(np.percentile(times, 95))) if len(times) >= TAIL_REQUESTS else "-"
    in_time = sum(r.in_time for r in last) / len(last)
    text = Text(f"latency  p50 {p50}  p95 {p95}  in time {in_time:.0%}  (last {len(last)} requests)", no_wrap=True,
                overflow="ellipsis")
    fell_back = sum(r.fell_back for r in last)
    if fell_back:
        text.append(f"  fallback {fell_back / len(last):.0%}", style="yellow")
    return text.append(f"  failed {trial.failed}", style="red") if trial.failed else text


def _plans(trial: TrialState) -> Text:
    recent = trial.recent(time.monotonic_ns())
    text = Text("plans    ", no_wrap=True, overflow="ellipsis")
    if not recent:
        return text.append("-")
    text.append(_shares([r.plan for r in recent]))
    exits = [r.exit for r in recent if r.exit]
    if len(set(exits)) > 1:
        text.append(f"  exits {_shares(exits)}")
    return text.append(f"  (last {PLANS_WINDOW_S:.0f} s, {len(recent) / PLANS_WINDOW_S:.1f}/s)")


def _shares(words: Sequence[str]) -> str:
    return ", ".join(f"{word} {count / len(words):.0%}" for word, count in Counter(words).most_common(4))


def _split(room: int, links: int, nodes: int) -> tuple[int, int]:
    """Lines for links and for nodes: half each, what one does not need goes to the other, and one at the least."""
    for_links = min(links, max(room // 2, room - nodes, 1))
    return for_links, min(nodes, max(room - for_links, 1))


def _busiest(names: Sequence[str], room: int, busy: Callable[[str], Any]) -> list[str]:
    """The busiest names, in their own order; at least one."""
    kept = set(sorted(names, key=busy, reverse=True)[: max(1, room)])
    return [n for n in names if n in kept]


def _table(*columns: str, gap: int = 2) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _link_table(links: Mapping[tuple[str, str], LinkRow], names: Sequence[str], wide: bool) -> Table:
    """One line per link: rate now / target in Mbit/s, backlog and drops, up and down."""
    unit = " Mbit/s" if wide else ""
    table = _table("link" if wide else "Mbit/s", f"up{unit} now/target", "backlog", "drops", f"down{unit} now/target", "backlog",
                   "drops", gap=2 if wide else 1)
    for name in names:
        cells: list[Text] = []
        for direction in ("up", "down"):
            row = links[name, direction]
            target = "no limit" if row.target_bps is None else "link down" if row.down else _mbit(row.target_bps)
            cells += [Text(f"{_mbit(row.rate_bps)} / {target}", style="red" if row.down else ""),
                      Text(fmt.size(row.backlog_bytes), style="" if row.backlog_bytes else "dim"),
                      Text(str(row.dropped), style="red" if row.dropped else "dim")]
        table.add_row(name, *cells)
    return table


def _node_table(names: Sequence[str], cpu: Mapping[str, float], queues: Mapping[str, tuple[int, int]],
                gone: Collection[str]) -> Table:
    """One line per node: CPU in percent of a core; waiting and in flight for servers (devices do not write them)."""
    table = _table("node", "CPU", "queue", "in flight")
    for name in names:
        used = cpu.get(name)
        if name in gone:
            table.add_row(name, Text("gone", style="red") if name in queues else Text("ended", style="dim"), "-", "-")
            continue
        waiting, inflight = queues.get(name, ("-", "-"))
        table.add_row(name, Text("-" if used is None else f"{used:.0%}", style="yellow" if used and used > BUSY else ""),
                      Text(str(waiting), style="yellow" if waiting not in ("-", 0) else ""), str(inflight))
    return table


def _mbit(rate_bps: float) -> str:
    """Mbit/s with two decimals, fewer when it is large: columns stay narrow and in line."""
    value = rate_bps / 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
