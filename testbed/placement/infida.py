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
from testbed.placement.rounding import Leftover, depround, fill

Schedule = Literal["constant", "sqrt"]
Normalise = Literal["node", "network", "none"]


class MirrorAscent:
    """The state of one or more nodes: logarithm of the fractions y, (V, M), and the step that a subgradient makes.

    Parameters
    ----------
    size, budget, choosable: (V, M) bytes, (V,) bytes, (V, M).
    eta: learning rate; per ms of gain, but for `normalise: none`.
    schedule: `constant`, or `sqrt` for eta / sqrt(t).
    normalise: the exponent is eta * g / s, times the node's mean model size, over the slot's requests that pass the node
        (`node`, what it knows itself) or over all of the slot (`network`); `none`: the exponent is eta * g / s.
    max_step: no exponent of a slot is larger than this (0 = no limit): a node whose step would be takes a smaller one, so
        that fractions grow at most e^max_step times per slot and do not swing.
    floor: fractions never fall below this before the projection, so that a model can come back after a change; 0 = none.
    """

    def __init__(self, size: FloatArray, budget: FloatArray, choosable: BoolArray, *, eta: float = 1.0,
                 schedule: Schedule = "constant", normalise: Normalise = "node", max_step: float = 2.0,
                 floor: float = 0.0) -> None:
        if not eta > 0:
            raise ValueError(f"eta must be positive, got {eta}")
        if schedule not in ("constant", "sqrt") or normalise not in ("node", "network", "none"):
            raise ValueError(f"schedule is constant or sqrt, normalise is node, network or none; got {schedule}, {normalise}")
        if not 0 <= floor < 1 or max_step < 0:
            raise ValueError(f"floor is at least 0 and below 1, max_step at least 0; got {floor}, {max_step}")
        self.size, self.budget, self.choosable = size, budget, choosable
        self.eta, self.schedule, self.normalise, self.max_step = eta, schedule, normalise, max_step
        self.log_floor = np.log(floor) if floor else -np.inf
        self.log_y = start(size, budget, choosable)
        self.steps = 0
        self._mean_size = size.mean(axis=1, keepdims=True)

    @property
    def y(self) -> FloatArray:
        """Fractions (V, M) in [0, 1]."""
        return np.exp(self.log_y)

    def step(self, gradient_ms: FloatArray, passing: FloatArray, total: float) -> None:
        """Climb along a subgradient (V, M) of the gain, in ms, of a slot with `total` requests of which `passing` (V,) pass."""
        self.steps += 1
        slope = gradient_ms / self.size
        if self.normalise != "none":
            requests = passing[:, None] if self.normalise == "node" else total
            slope = slope * self._mean_size / np.maximum(requests, 1.0)
        exponent = slope * (self.eta / np.sqrt(self.steps) if self.schedule == "sqrt" else self.eta)
        if self.max_step:
            largest = np.where(self.choosable, exponent, 0.0).max(axis=1, keepdims=True)
            exponent = exponent * np.minimum(1.0, self.max_step / np.maximum(largest, 1e-300))
        self.log_y = project(np.maximum(self.log_y, self.log_floor) + exponent, self.size, self.budget, self.choosable)


class Infida(Placement):
    """INFIDA on all nodes.

    Parameters
    ----------
    eta, schedule, normalise, max_step, floor: see MirrorAscent.
    refresh: x is sampled anew every so many slots; y is updated in every slot.
    stretch_slots: over so many slots the refresh period grows from 1 to `refresh`; 0 = `refresh` from the start.
    leftover: what becomes of DepRound's last fractional entry per node: drop, bernoulli, or fill (drop it, then add the
        models with the largest y that still fit).
    coupled: sample always with the same random numbers, so that like y gives like x.
    """

    id = "infida"

    def __init__(self, problem: Problem, seed: int, *, eta: float = 1.0, schedule: Schedule = "constant",
                 normalise: Normalise = "node", max_step: float = 2.0, floor: float = 0.0, refresh: int = 1,
                 stretch_slots: int = 0, leftover: Leftover = "drop", coupled: bool = False) -> None:
        super().__init__(problem, seed)
        if refresh < 1 or stretch_slots < 0:
            raise ValueError(f"refresh is at least 1, stretch_slots at least 0; got {refresh}, {stretch_slots}")
        if leftover not in ("drop", "bernoulli", "fill"):
            raise ValueError(f"leftover is drop, bernoulli or fill, got {leftover}")
        self.ascent = MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable, eta=eta, schedule=schedule,
                                   normalise=normalise, max_step=max_step, floor=floor)
        self.refresh, self.stretch_slots, self.leftover, self.coupled = refresh, stretch_slots, leftover, coupled
        self.exceeds_budget = leftover == "bernoulli"
        self._seed, self._sampled = seed, 0
        self._placed = self._sample()

    def first(self) -> BoolArray:
        return self._placed

    def update(self, slot: Slot) -> BoolArray:
        gradient = subgradient(self.problem, slot.demand, slot.potential, self.ascent.y)
        self.ascent.step(gradient, self.problem.passing(slot.demand), float(slot.demand.sum()))
        if slot.index + 1 - self._sampled >= self.period(slot.index + 1):
            self._sampled = slot.index + 1
            self._placed = self._sample()
        return self._placed

    def period(self, index: int) -> int:
        """Slots between two samples of x, at slot `index`."""
        if index >= self.stretch_slots:
            return self.refresh
        return 1 + (self.refresh - 1) * index // self.stretch_slots

    def fractions(self) -> FloatArray:
        return self.ascent.y

    def messages(self, slot: Slot) -> int:
        return message_count(self.problem, slot.demand)

    def _sample(self) -> BoolArray:
        rng = np.random.default_rng(self._seed) if self.coupled else self.rng
        y, problem = self.ascent.y, self.problem
        x = depround(y, problem.size_bytes, rng, self.leftover) & problem.choosable
        return fill(x, y, problem.size_bytes, problem.free_bytes, problem.choosable) if self.leftover == "fill" else x
