"""Timed faults and changes: links that fail, nodes that crash, tiers cut off; applied on the trial's one clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from testbed.emulation.fabric import LinkFabric
from testbed.emulation.network import Network
from testbed.experiment.nodes import NodeSet
from testbed.schema.scenario import Event

Action = tuple[float, str, Callable[[], None]]  # seconds after the start, what it is called, what it does


class EventSchedule:
    """Runs the scenario's events in a thread; `log` says when each was due, done, and whether it worked."""

    def __init__(self, events: Sequence[Event], network: Network, fabric: LinkFabric, nodes: NodeSet) -> None:
        self._network, self._fabric, self._nodes = network, fabric, nodes
        self.log: list[dict[str, Any]] = []
        self._actions = sorted((a for e in events for a in self._of(e)), key=lambda a: a[0])
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
        self._thread.join(10)

    def _run(self) -> None:
        for position, (at_s, name, action) in enumerate(self._actions):
            due_ns = self._start_ns + int(at_s * 1e9)
            if self._stop.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9)):
                for later_s, later, _ in self._actions[position:]:
                    self.log.append({"event": later, "due_ns": self._start_ns + int(later_s * 1e9), "done_ns": None,
                                     "error": "the load ended before it was due"})
                return
            error = None
            try:
                action()
            except Exception as problem:  # an event that fails must be seen in the manifest, not end the thread
                error = f"{type(problem).__name__}: {problem}"
            self.log.append({"event": name, "due_ns": due_ns, "done_ns": time.monotonic_ns(), "error": error})

    def _of(self, event: Event) -> list[Action]:
        """The actions of one event; one with a duration ends by itself."""
        at = event.at
        if event.kind in ("link_down", "link_up", "handover"):
            begin, end = self._link(event, True), self._link(event, False)
            if event.kind == "link_up":
                return [(at, f"link_up {event.link}", end)]
            actions = [(at, f"{event.kind} {event.link}", begin)]
            if event.duration is not None:
                over = "handover done" if event.kind == "handover" else "link_up"
                actions.append((at + event.duration, f"{over} {event.link}", end))
            return actions
        if event.kind in ("partition", "heal"):
            begin, end = self._partition(event, True), self._partition(event, False)
            if event.kind == "heal":
                return [(at, f"heal {event.tier}", end)]
            actions = [(at, f"partition {event.tier}", begin)]
            if event.duration is not None:
                actions.append((at + event.duration, f"heal {event.tier}", end))
            return actions
        if event.kind == "rate":
            rate_bps = int(event.rate or 0)
            return [(at, f"rate {event.link} {event.direction} {rate_bps} bit/s", lambda: self._rate(event, rate_bps))]
        node = event.node or ""
        begin, finish, back = {
            "node_crash": (lambda: self._nodes.crash(node), lambda: self._nodes.restart(node), "node_restart"),
            "node_pause": (lambda: self._nodes.pause(node), lambda: self._nodes.resume(node), "node_resume"),
            "node_restart": (lambda: self._nodes.restart(node), None, ""),
            "node_resume": (lambda: self._nodes.resume(node), None, ""),
        }[event.kind]
        actions = [(at, f"{event.kind} {node}", begin)]
        if event.duration is not None and finish is not None:
            actions.append((at + event.duration, f"{back} {node}", finish))
        return actions

    def _directions(self, event: Event) -> list[str]:
        return ["up", "down"] if event.direction == "both" else [event.direction]

    def _link(self, event: Event, down: bool) -> Callable[[], None]:
        def act() -> None:
            self._network.set_link_down(event.link or "", down, self._directions(event))
        return act

    def _partition(self, event: Event, down: bool) -> Callable[[], None]:
        inside = next(t.nodes for t in self._nodes.topology.tiers if t.name == event.tier)
        crossing = [f"{a}-{b}" for _, a, b in self._nodes.topology.node_links() if (a in inside) != (b in inside)]

        def act() -> None:
            for link in crossing:
                self._network.set_link_down(link, down, ["up", "down"])
        return act

    def _rate(self, event: Event, rate_bps: int) -> None:
        for direction in self._directions(event):
            self._fabric.set_rate(event.link or "", direction, rate_bps)
