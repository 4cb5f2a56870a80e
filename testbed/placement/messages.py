"""The subgradient as messages along the path: one up with (cost, capacity) pairs, one down with the cost that matters.

Per request type and slot, a message climbs from the entry to the repository and collects what every node holds for it;
the reply carries gamma_K*, the cost of the worst option that is still needed, and every node adds its own terms.
A node knows: its own allocation, its potential capacities, the round trip below it (carried by the message).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from testbed.placement.problem import FloatArray, Problem


@dataclass
class Climb:
    """The message on its way up: the type's demand and, per held model, (cost in ms, capacity in requests)."""

    kind: int
    demand: float
    pairs: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """The message on its way down: cost of the worst option that the demand still needs (ms)."""

    kind: int
    needed_ms: float


@dataclass(frozen=True)
class NodeView:
    """What one node knows of one request type: its models for the task, with their cost, capacity and allocation, (n,)."""

    flat: tuple[int, ...]
    cost_ms: FloatArray
    potential: FloatArray
    held: FloatArray

    def collect(self, climb: Climb) -> None:
        """Add what this node holds to the message."""
        climb.pairs.extend((float(c), float(z)) for c, z in zip(self.cost_ms, self.held * self.potential, strict=True) if z > 0)

    def terms(self, reply: Reply) -> FloatArray:
        """This node's terms of the subgradient (n,), in ms."""
        return self.potential * np.maximum(reply.needed_ms - self.cost_ms, 0.0)


def answer(climb: Climb) -> Reply:
    """What the repository replies: the cost at which the collected capacity first covers the demand."""
    total = 0.0
    for cost, capacity in sorted(climb.pairs):
        total += capacity
        if total >= climb.demand:
            return Reply(climb.kind, cost)
    return Reply(climb.kind, max(climb.pairs)[0])


def exchange(problem: Problem, demand: FloatArray, potential: FloatArray, allocation: FloatArray) -> tuple[FloatArray, int]:
    """Subgradient (V, M) at `allocation` (V, M) from messages alone, and how many messages crossed a link."""
    result = np.zeros(problem.pinned.size)
    full = np.where(problem.pinned, 1.0, allocation).ravel()
    options, sent = problem.options, 0
    for kind in np.flatnonzero(demand > 0):
        views = []
        for place in range(int(problem.hops[kind]) + 1):
            mine = np.flatnonzero(options.valid[kind] & (options.position[kind] == place))
            flat = options.flat[kind, mine]
            views.append(NodeView(tuple(flat), options.cost_ms[kind, mine], potential[kind, mine], full[flat]))
        climb = Climb(int(kind), float(demand[kind]))
        for place, view in enumerate(views):
            sent += place > 0
            view.collect(climb)
        reply = answer(climb)
        for place, view in enumerate(reversed(views)):
            sent += place > 0
            result[list(view.flat)] += view.terms(reply)
    return result.reshape(problem.pinned.shape), sent


def message_count(problem: Problem, demand: FloatArray) -> int:
    """Messages that cross links in a slot with `demand` (R,): up and down, for every type that has requests."""
    return int(2 * problem.hops[demand > 0].sum())
