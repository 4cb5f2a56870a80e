"""OLAG: every node counts what it could have served more cheaply than what was served without it, and fills up greedily.

Online load-aware greedy, the heuristic that INFIDA is compared with (arXiv 2105.02510). The paper's text was not at hand: the
counters follow a summary of it, the details below are choices made here. In every slot, per request type and model of a
node: the requests that would go past the node if it held nothing, to a cost above the model's, up to the model's capacity,
are added to a counter, and counter * (mean cost of these - the model's cost) to its value. A node then takes the model with
the largest value per byte, takes what it covers off the requests that are left for the others of its task, and so on
until nothing fits. One counter per copy, so copies of a model are taken while requests are left.
"""

from __future__ import annotations

import numpy as np

from testbed.placement.base import Placement, Slot
from testbed.placement.gain import ranked
from testbed.placement.messages import message_count
from testbed.placement.problem import BoolArray, IntArray, Problem


class Olag(Placement):
    """OLAG on all nodes. `memory`: share of the counters that every slot keeps (1 = since the start); `refresh`: slots
    between two placements."""

    id = "olag"

    def __init__(self, problem: Problem, seed: int, *, memory: float = 1.0, refresh: int = 1) -> None:
        super().__init__(problem, seed)
        if not 0 <= memory <= 1 or refresh < 1:
            raise ValueError(f"memory is between 0 and 1, refresh at least 1; got {memory}, {refresh}")
        self.memory, self.refresh = memory, refresh
        shape = problem.options.cost_ms.shape
        self.counter, self.value, self.forwarded, self.room = (np.zeros(shape) for _ in range(4))  # (R, K) each
        self._placed = np.zeros(problem.pinned.shape, dtype=bool)
        self._groups = _groups(problem)

    def first(self) -> BoolArray:
        return self._placed

    def update(self, slot: Slot) -> BoolArray:
        self._count(slot)
        if (slot.index + 1) % self.refresh == 0:
            self._placed = self._fill()
        return self._placed

    def messages(self, slot: Slot) -> int:
        return message_count(self.problem, slot.demand)

    def _count(self, slot: Slot) -> None:
        options = self.problem.options
        z = ranked(self.problem, slot.placed) * slot.potential
        beyond, paid = np.zeros(z.shape), np.zeros(z.shape)
        for place in range(self.problem.path.shape[1]):
            here = options.position == place
            filled = np.minimum(np.cumsum(np.where(here & ~_pinned(self.problem), 0.0, z), axis=1), slot.demand[:, None])
            n = np.diff(filled, axis=1, prepend=0.0)
            n = np.where(options.position > place, n, 0.0)  # served further up, were this node empty
            above = np.cumsum(n[:, ::-1], axis=1)[:, ::-1] - n  # of them at a worse rank
            costs = n * options.cost_ms
            paid_above = np.cumsum(costs[:, ::-1], axis=1)[:, ::-1] - costs
            beyond = np.where(here, above, beyond)
            paid = np.where(here, paid_above, paid)
        count = np.minimum(beyond, slot.potential)
        mean = paid / np.maximum(beyond, 1e-12)
        self.counter = self.memory * self.counter + count
        self.value = self.memory * self.value + count * np.maximum(mean - options.cost_ms, 0.0)
        self.forwarded = self.memory * self.forwarded + beyond
        self.room = self.memory * self.room + slot.potential

    def _fill(self) -> BoolArray:
        """Greedy on every node at once: each round every node takes its best model that fits."""
        problem = self.problem
        kinds, entries, node_task = self._groups
        total = problem.pinned.size
        flat = problem.options.flat.ravel()[entries]
        forwarded = self.forwarded.ravel()[entries].copy()
        room, size = self.room.ravel()[entries], problem.size_bytes.ravel()
        per_request = self.value.ravel()[entries] / np.maximum(self.counter.ravel()[entries], 1e-12)  # ms saved each
        placed = np.zeros(total, dtype=bool)
        left = problem.free_bytes.copy()
        rows = np.arange(len(left))
        while True:
            cover = np.minimum(forwarded, room)
            weight = np.bincount(flat, weights=cover * per_request, minlength=total) / size
            fits = problem.choosable & ~placed.reshape(problem.pinned.shape) & (problem.size_bytes <= left[:, None])
            score = np.where(fits, weight.reshape(problem.pinned.shape), 0.0)
            best = np.argmax(score, axis=1)
            takes = score[rows, best] > 0
            if not takes.any():
                return placed.reshape(problem.pinned.shape)
            chosen = np.zeros(total, dtype=bool)
            chosen[(rows * problem.pinned.shape[1] + best)[takes]] = True
            placed |= chosen
            left[takes] -= problem.size_bytes[rows[takes], best[takes]]
            # what the chosen model covers of a type is no longer there for the node's other models of that type
            covered = np.bincount(kinds, weights=np.where(chosen[flat], cover, 0.0), minlength=node_task)
            forwarded = np.maximum(forwarded - covered[kinds], 0.0)


def _pinned(problem: Problem) -> BoolArray:
    """Permanent options (R, K)."""
    result: BoolArray = problem.pinned.ravel()[problem.options.flat] & problem.options.valid
    return result


def _groups(problem: Problem) -> tuple[IntArray, IntArray, int]:
    """Valid options as a flat list: the (type, place on its path) that each belongs to, its index, number of groups."""
    options = problem.options
    entries = np.flatnonzero(options.valid.ravel())
    length = problem.path.shape[1]
    kinds = np.repeat(np.arange(problem.num_types), options.flat.shape[1])[entries] * length + options.position.ravel()[entries]
    return kinds.astype(np.int64), entries.astype(np.int64), problem.num_types * length
