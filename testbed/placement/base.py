"""The seam of placement: what a slot showed -> which models the nodes keep in the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from testbed.errors import InputError
from testbed.placement.problem import BoolArray, FloatArray, Problem


@dataclass(frozen=True, eq=False)
class Slot:
    """What is known once a slot is over.

    | field | shape, unit | meaning |
    |---|---|---|
    | index | - | number of the slot, from 0 |
    | demand | (R,) requests | that arrived in the slot, per request type |
    | potential | (R, K) requests | that each option could have served, deployed or not; order of `problem.options` |
    | placed | (V, M) | what was placed during the slot, without the permanent models |
    | served | (R, K) requests | that each option did serve |
    """

    index: int
    demand: FloatArray
    potential: FloatArray
    placed: BoolArray
    served: FloatArray


class Placement(ABC):
    """Decides per slot which models every node keeps beside its permanent ones.

    A user's own is a subclass in any file, named as `policy: my_placement.py:MyPlacement`; its `options:` arrive as keyword
    arguments after the problem and the seed. A placement (V, M) must keep sum of sizes <= `problem.free_bytes` on every
    node and place only what is `problem.choosable`; the engine refuses any other.
    """

    id: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raised when the same input would give other placements
    hindsight: ClassVar[bool] = False  # whether the constructor takes demands= (P, R) and slots= (P,), known beforehand
    exceeds_budget: bool = False  # whether a node may exceed its budget by less than one model

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def first(self) -> BoolArray:
        """The placement (V, M) of slot 0."""

    @abstractmethod
    def update(self, slot: Slot) -> BoolArray:
        """The placement (V, M) of the slot after `slot`."""

    def fractions(self) -> FloatArray | None:
        """What the placement is rounded from, (V, M) in [0, 1]; None where there is no such thing. For the record only."""
        return None

    def messages(self, slot: Slot) -> int:
        """Control messages over links, hop by hop, that the update after `slot` took; the default is none."""
        return 0


class Fixed(Placement):
    """Keeps one placement: the permanent models alone, or what is given as `placed` (V, M)."""

    id = "fixed"

    def __init__(self, problem: Problem, seed: int = 0, placed: BoolArray | None = None) -> None:
        super().__init__(problem, seed)
        self.placed = np.zeros(problem.pinned.shape, dtype=bool) if placed is None else placed

    def first(self) -> BoolArray:
        return self.placed

    def update(self, slot: Slot) -> BoolArray:
        return self.placed


def check(problem: Problem, placed: BoolArray, name: str, *, exceeds_budget: bool = False) -> None:
    """Raises InputError when a placement is not one of the problem's: shape, budget, or what may be placed where."""
    if placed.shape != problem.pinned.shape or placed.dtype != np.bool_:
        raise InputError("is not a boolean array (nodes, models)", key=name, value=(placed.shape, str(placed.dtype)),
                         remedy=f"return shape {problem.pinned.shape}")
    if (placed & ~problem.choosable).any():
        node = problem.nodes[int(np.argmax((placed & ~problem.choosable).any(axis=1)))]
        raise InputError("places a model that is permanent there, or that can never fit", key=name, value=node,
                         remedy="place only what problem.choosable allows")
    used = (problem.size_bytes * placed).sum(axis=1)
    most = problem.free_bytes + (np.where(placed, problem.size_bytes, 0.0).max(axis=1) if exceeds_budget else 0.0)
    over = used > most * (1 + 1e-9) + 1e-6
    if over.any():
        worst = int(np.argmax(over))
        raise InputError(f"exceeds the budget of {problem.nodes[worst]} ({problem.free_bytes[worst]:.0f} bytes)", key=name,
                         value=float(used[worst]), remedy="keep the sizes' sum within problem.free_bytes")
