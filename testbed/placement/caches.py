"""What operators would try first: every node is a cache of models, least recently or least frequently used goes out.

A node caches, per task, copies of the one variant that costs least when served there (delay + alpha * inaccuracy). Copy c
of a task is asked for by those requests of a slot that copies 0 to c-1 had no capacity for, so that a task that needs two
copies asks for two. Only requests that reach the node count: those that it served or that were served further up.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from testbed.placement.base import Placement, Slot
from testbed.placement.problem import BoolArray, FloatArray, IntArray, Problem


class _Cache(Placement):
    """Fills every node in the order of a score that a subclass keeps, (V, M), larger first; nothing with score 0."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self.candidates, self.copy = _preferred(problem)
        self.score = np.zeros(problem.pinned.shape)

    def first(self) -> BoolArray:
        return np.zeros(self.problem.pinned.shape, dtype=bool)

    def update(self, slot: Slot) -> BoolArray:
        self.hit(asked(self.problem, slot, self.candidates, self.copy), slot)
        return self._fill()

    @abstractmethod
    def hit(self, requests: FloatArray, slot: Slot) -> None:
        """Update the scores with what was asked of every model (V, M) in the slot."""

    def _fill(self) -> BoolArray:
        problem = self.problem
        order = np.argsort(-self.score, axis=1, kind="stable")
        left = problem.free_bytes.copy()
        placed = np.zeros(problem.pinned.shape, dtype=bool)
        rows = np.arange(len(left))
        for place in range(order.shape[1]):
            m = order[:, place]
            wanted = self.score[rows, m] > 0
            if not wanted.any():
                break
            fits = wanted & problem.choosable[rows, m] & (problem.size_bytes[rows, m] <= left)
            placed[rows[fits], m[fits]] = True
            left[fits] -= problem.size_bytes[rows[fits], m[fits]]
        return placed


class Lru(_Cache):
    """Least recently used: the score is the instant of the last request, drawn as the last of n uniform ones in the slot."""

    id = "lru"

    def hit(self, requests: FloatArray, slot: Slot) -> None:
        last = self.rng.random(requests.shape) ** (1.0 / np.maximum(requests, 1.0))
        self.score = np.where(requests >= 1.0, slot.index + 1 + last, self.score)


class Lfu(_Cache):
    """Least frequently used: the score is the number of requests, of which every slot keeps a share `memory`."""

    id = "lfu"

    def __init__(self, problem: Problem, seed: int, *, memory: float = 1.0) -> None:
        super().__init__(problem, seed)
        if not 0 <= memory <= 1:
            raise ValueError(f"memory is between 0 and 1, got {memory}")
        self.memory = memory

    def hit(self, requests: FloatArray, slot: Slot) -> None:
        self.score = self.memory * self.score + requests


def _preferred(problem: Problem) -> tuple[BoolArray, IntArray]:
    """Models (V, M) that a node would cache, and their number among the copies of the variant (M,)."""
    cost = problem.delay_ms + problem.alpha_ms * (100.0 - problem.accuracy)
    candidates = np.zeros(problem.pinned.shape, dtype=bool)
    copy = np.zeros(len(problem.models), dtype=np.int64)
    for i in range(problem.num_tasks):
        mine = np.flatnonzero(problem.task == i)
        usable = np.where(problem.choosable[:, mine], cost[:, mine], np.inf)
        best = usable.min(axis=1, keepdims=True)
        candidates[:, mine] = np.isfinite(usable) & (usable == best)
        seen: dict[tuple[float, ...], int] = {}
        for m in mine:  # copies are alike on every node
            like = (float(problem.accuracy[m]), *problem.delay_ms[:, m], *problem.size_bytes[:, m])
            copy[m] = seen.get(like, 0)
            seen[like] = int(copy[m]) + 1
    return candidates, copy


def reaching(problem: Problem, slot: Slot) -> FloatArray:
    """Requests (V, tasks) that reach every node: served there or further up the path."""
    position = problem.options.position
    result = np.zeros(len(problem.nodes) * problem.num_tasks)
    for place in range(problem.path.shape[1]):
        on = problem.path[:, place] >= 0
        amount = np.where(position >= place, slot.served, 0.0).sum(axis=1)
        key = problem.path[:, place] * problem.num_tasks + problem.type_task
        result += np.bincount(key[on], weights=amount[on], minlength=len(result))
    return np.asarray(result.reshape(len(problem.nodes), problem.num_tasks), dtype=np.float64)


def asked(problem: Problem, slot: Slot, candidates: BoolArray, copy: IntArray) -> FloatArray:
    """Requests (V, M) for every candidate: those that the copies before it have no capacity for, up to its own capacity."""
    here = reaching(problem, slot)[:, problem.task]  # (V, M)
    room = np.minimum(problem.capacity, 1e18)
    return np.where(candidates, np.clip(here - copy[None, :] * room, 0.0, room), 0.0)
