"""Offline INFIDA: mirror ascent over demand that is replayed, its fractions averaged, rounded once."""

from __future__ import annotations

import numpy as np

from testbed.placement.base import Fixed
from testbed.placement.gain import subgradient
from testbed.placement.infida import MirrorAscent
from testbed.placement.problem import FloatArray, Problem
from testbed.placement.rounding import depround


def average_fractions(problem: Problem, demands: FloatArray, slots: FloatArray, *, rounds: int = 200,
                      eta: float = 3.0) -> FloatArray:
    """Time-averaged y (V, M) after `rounds` steps on the gain of mean demands (P, R) that last `slots` (P,).

    The gain is concave, so the average of y reaches its maximum up to O(1 / sqrt(rounds)); rounding keeps 1 - 1/e of that.
    """
    ascent = MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable, eta=eta, schedule="sqrt")
    potentials = [problem.potential(d) for d in demands]
    weight = slots / slots.sum()
    mean = weight @ demands
    total = np.zeros(problem.pinned.shape)
    for _ in range(rounds):
        y = ascent.y
        total += y
        gradient = np.zeros(y.shape)
        for demand, potential, share in zip(demands, potentials, weight, strict=True):
            gradient += share * subgradient(problem, demand, potential, y)
        ascent.step(gradient, problem.passing(mean), float(mean.sum()))
    return total / rounds


class OfflineInfida(Fixed):
    """A placement rounded from `average_fractions`, kept for all slots."""

    id = "infida-offline"
    hindsight = True

    def __init__(self, problem: Problem, seed: int, *, demands: FloatArray, slots: FloatArray, rounds: int = 200,
                 eta: float = 3.0) -> None:
        super().__init__(problem, seed)
        y = average_fractions(problem, demands, slots, rounds=rounds, eta=eta)
        self.placed = depround(y, problem.size_bytes, self.rng) & problem.choosable
