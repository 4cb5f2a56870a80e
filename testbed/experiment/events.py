"""Timed faults and changes: links that fail, nodes that crash, tiers cut off; applied on the trial's one clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.emulation.fabric import LinkFabric
from testbed.emulation.network import Network
from testbed.experiment.nodes import NodeSet
from testbed.schema.scenario import Event

BOTH = ("up", "down")
# what ends a change that has a duration
_ENDS = {"link_down": "link_up", "handover": "handover_end", "partition": "heal", "node_crash": "node_restart",
         "node_pause": "node_resume", "rate": "rate_end"}


@dataclass(frozen=True)
class Action:
    """One change: seconds after the start, how the manifest names it, and what it does."""

    at_s: float
    kind: str
    target: dict[str, str]
    act: Callable[[], None]


class EventSchedule:
    """Runs the scenario's events in a thread.

    `log` has one entry per change: kind, its link, node or tier, `due_ns`, `t_ns` (when it was done, None when the load
    ended first) and `error`.
    """

    def __init__(self, events: Sequence[Event], network: Network, fabric: LinkFabric, nodes: NodeSet) -> None:
        self._network, self._fabric, self._nodes = network, fabric, nodes
        self.log: list[dict[str, Any]] = []
        self._actions = sorted((a for e in events for a in self._of(e)), key=lambda a: a.at_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._start_ns = 0

    def start(self, start_ns: int) -> None:
        """Begin; times count from `start_ns` on CLOCK_MONOTONIC."""
        self._start_ns = start_ns
        self._thread.start()

    def stop(self) -> None:
        """End; events that were not yet due are logged as such."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        for action in self._actions:
            due_ns = self._start_ns + int(action.at_s * 1e9)
            entry: dict[str, Any] = {"kind": action.kind, **action.target, "due_ns": due_ns, "t_ns": None, "error": None}
            self.log.append(entry)
            if self._stop.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9)):
                entry["error"] = "the load ended before it was due"
                continue
            entry["t_ns"] = time.monotonic_ns()
            try:
                action.act()
            except Exception as problem:  # must be seen in the manifest, and must not end the thread
                entry["error"] = f"{type(problem).__name__}: {problem}"

    def _of(self, event: Event) -> list[Action]:
        """The change of one event, and the change back when it has a duration."""
        target = {key: value for key in ("link", "node", "tier") if (value := getattr(event, key)) is not None}
        begin, end = self._pair(event)
        if event.kind in ("link_up", "heal", "node_restart", "node_resume"):
            return [Action(event.at, event.kind, target, end)]
        actions = [Action(event.at, event.kind, target, begin)]
        if event.duration is not None:
            actions.append(Action(event.at + event.duration, _ENDS[event.kind], target, end))
        return actions

    def _pair(self, event: Event) -> tuple[Callable[[], None], Callable[[], None]]:
        """What the event does, and what undoes it."""
        network, fabric, nodes = self._network, self._fabric, self._nodes
        directions = BOTH if event.direction == "both" else (event.direction,)
        link, node = event.link or "", event.node or ""
        if event.kind in ("link_down", "link_up", "handover"):
            return (lambda: network.set_link_down(link, True, directions),
                    lambda: network.set_link_down(link, False, directions))
        if event.kind in ("partition", "heal"):
            crossing = self._crossing(event.tier or "")
            return (lambda: _each(crossing, lambda name: network.set_link_down(name, True, BOTH)),
                    lambda: _each(crossing, lambda name: network.set_link_down(name, False, BOTH)))
        if event.kind == "rate":
            return (lambda: _each(directions, lambda d: fabric.set_rate(link, d, event.rate)),
                    lambda: _each(directions, lambda d: fabric.set_rate(link, d, None)))
        if event.kind in ("node_crash", "node_restart"):
            return lambda: nodes.crash(node), lambda: nodes.restart(node)
        return lambda: nodes.pause(node), lambda: nodes.resume(node)

    def _crossing(self, tier: str) -> list[str]:
        """Links with exactly one end in the tier."""
        inside = next(t.nodes for t in self._nodes.topology.tiers if t.name == tier)
        return [f"{a}-{b}" for _, a, b in self._nodes.topology.node_links() if (a in inside) != (b in inside)]


def _each(items: Sequence[str], act: Callable[[str], None]) -> None:
    for item in items:
        act(item)
