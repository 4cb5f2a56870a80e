"""INFIDA: every node learns its models by online mirror ascent on the gain, and rounds them to what it loads.

Si Salem et al., Towards Inference Delivery Networks, arXiv 2105.02510; ToN 32(1), 2024. Dual step with the weighted negative
entropy: y' = y * exp(eta * g / s), projection onto {0 <= y <= 1, sum s y = b}, DepRound.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from testbed.placement.base import Placement, Slot
from testbed.placement.gain import subgradient
from testbed.placement.messages import message_count
from testbed.placement.problem import BoolArray, FloatArray, Problem
from testbed.placement.projection import project, start
from testbed.placement.rounding import Leftover, depround

Schedule = Literal["constant", "sqrt"]
Normalise = Literal["max", "requests", "none"]


class MirrorAscent:
    """The state of one or more nodes: logarithm of the fractions y, (V, M), and the step that a subgradient makes.

    Parameters
    ----------
    size, budget, choosable: (V, M) bytes, (V,) bytes, (V, M).
    eta: learning rate; of dimension one with `normalise: max`.
    schedule: `constant`, or `sqrt` for eta / sqrt(t).
    normalise: the exponent is eta * (g / s) over: `max`, the node's largest g / s so far; `requests`, the slot's requests
        and the node's mean model size in inverse (g in ms per request); `none`, nothing.
    floor: fractions never fall below this before the projection, so that a model can come back after a change; 0 = none.
    """

    def __init__(self, size: FloatArray, budget: FloatArray, choosable: BoolArray, *, eta: float = 0.05,
                 schedule: Schedule = "constant", normalise: Normalise = "max", floor: float = 0.0) -> None:
        if not eta > 0:
            raise ValueError(f"eta must be positive, got {eta}")
        if schedule not in ("constant", "sqrt") or normalise not in ("max", "requests", "none"):
            raise ValueError(f"schedule is constant or sqrt, normalise is max, requests or none; got {schedule}, {normalise}")
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be at least 0 and below 1, got {floor}")
        self.size, self.budget, self.choosable = size, budget, choosable
        self.eta, self.schedule, self.normalise = eta, schedule, normalise
        self.log_floor = np.log(floor) if floor else -np.inf
        self.log_y = start(size, budget, choosable)
        self.steps = 0
        self._largest = np.zeros((len(budget), 1))
        self._mean_size = size.mean(axis=1, keepdims=True)

    @property
    def y(self) -> FloatArray:
        """Fractions (V, M) in [0, 1]."""
        return np.exp(self.log_y)

    def step(self, gradient_ms: FloatArray, requests: float = 1.0) -> None:
        """Climb along a subgradient (V, M) of the gain, in ms, of a slot with this many requests."""
        self.steps += 1
        slope = gradient_ms / self.size
        if self.normalise == "max":
            self._largest = np.maximum(self._largest, np.where(self.choosable, slope, 0.0).max(axis=1, keepdims=True))
            slope = slope / np.where(self._largest > 0, self._largest, 1.0)
        elif self.normalise == "requests":
            slope = slope * self._mean_size / max(requests, 1.0)
        rate = self.eta / np.sqrt(self.steps) if self.schedule == "sqrt" else self.eta
        with np.errstate(invalid="ignore"):  # -inf where not choosable
            self.log_y = project(np.maximum(self.log_y, self.log_floor) + rate * slope, self.size, self.budget, self.choosable)


class Infida(Placement):
    """INFIDA on all nodes.

    Parameters
    ----------
    eta, schedule, normalise, floor: see MirrorAscent.
    refresh: x is sampled anew every so many slots; y is updated in every slot.
    stretch_slots: over so many slots the refresh period grows from 1 to `refresh`; 0 = `refresh` from the start.
    leftover: what DepRound does with its last fractional entry per node: drop or bernoulli.
    coupled: sample always with the same random numbers, so that like y gives like x.
    """

    id = "infida"

    def __init__(self, problem: Problem, seed: int, *, eta: float = 0.05, schedule: Schedule = "constant",
                 normalise: Normalise = "max", floor: float = 0.0, refresh: int = 1, stretch_slots: int = 0,
                 leftover: Leftover = "drop", coupled: bool = False) -> None:
        super().__init__(problem, seed)
        if refresh < 1 or stretch_slots < 0:
            raise ValueError(f"refresh is at least 1, stretch_slots at least 0; got {refresh}, {stretch_slots}")
        if leftover not in ("drop", "bernoulli"):
            raise ValueError(f"leftover is drop or bernoulli, got {leftover}")
        self.ascent = MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable, eta=eta, schedule=schedule,
                                   normalise=normalise, floor=floor)
        self.refresh, self.stretch_slots, self.leftover, self.coupled = refresh, stretch_slots, leftover, coupled
        self.exceeds_budget = leftover == "bernoulli"
        self._seed, self._sampled = seed, 0
        self._placed = self._sample()

    def first(self) -> BoolArray:
        return self._placed

    def update(self, slot: Slot) -> BoolArray:
        gradient = subgradient(self.problem, slot.demand, slot.potential, self.ascent.y)
        self.ascent.step(gradient, float(slot.demand.sum()))
        if slot.index + 1 - self._sampled >= self.period(slot.index + 1):
            self._sampled = slot.index + 1
            self._placed = self._sample()
        return self._placed

    def period(self, index: int) -> int:
        """Slots between two samples of x, at slot `index`."""
        if index >= self.stretch_slots:
            return self.refresh
        return 1 + (self.refresh - 1) * index // self.stretch_slots

    def messages(self, slot: Slot) -> int:
        return message_count(self.problem, slot.demand)

    def _sample(self) -> BoolArray:
        rng = np.random.default_rng(self._seed) if self.coupled else self.rng
        return depround(self.ascent.y, self.problem.size_bytes, rng, self.leftover) & self.problem.choosable
