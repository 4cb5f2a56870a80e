"""Who asks for what: Zipf popularity of tasks, fixed or shifting, and the requests of every slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.placement.problem import FloatArray, IntArray


def zipf(tasks: int, exponent: float) -> FloatArray:
    """Shares (tasks,) proportional to 1 / rank^exponent, most popular first, summing to 1."""
    weight = 1.0 / np.arange(1, tasks + 1) ** exponent
    return np.asarray(weight / weight.sum(), dtype=np.float64)


@dataclass(frozen=True)
class Demand:
    """Requests per slot and request type, (T, R), and which slots have one and the same popularity."""

    requests: FloatArray
    phase: IntArray  # (T,) number of shifts so far

    def means(self) -> tuple[FloatArray, FloatArray]:
        """Mean demand of every phase (P, R), and its slots (P,): the hindsight of the offline policies."""
        phases = np.unique(self.phase)
        return (np.stack([self.requests[self.phase == p].mean(axis=0) for p in phases]),
                np.array([float((self.phase == p).sum()) for p in phases]))


def draw(entries: int, tasks: int, slots: int, *, rate_per_s: float, slot_s: float, exponent: float, shift_every: int = 0,
         shift_by: int = 0, seed: int) -> Demand:
    """Poisson requests of every task at every entry node, type = entry * tasks + task.

    Entries share the rate equally. After every `shift_every` slots (0 = never) the ranks rotate by `shift_by`: the
    `shift_by` most popular tasks become the least popular, and all others move up.
    """
    phase = np.arange(slots) // shift_every if shift_every else np.zeros(slots, dtype=int)
    rank = (np.arange(tasks)[None, :] - phase[:, None] * shift_by) % tasks  # (T, tasks)
    mean = zipf(tasks, exponent)[rank] * rate_per_s * slot_s / entries
    requests = np.random.default_rng(seed).poisson(np.tile(mean, (1, entries)))
    return Demand(requests.astype(np.float64), phase)
