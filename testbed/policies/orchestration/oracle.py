"""The constrained problem, its safe set, and the exhaustive optimum over all joint actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from testbed.errors import InputError
from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.models import Variant
from testbed.policies.orchestration.response import Actions, FloatArray, IntArray, ResponseSource

BoolArray = npt.NDArray[np.bool_]
MAX_JOINT = 2_000_000  # joint actions that are enumerated
MARGIN = 1e-9  # of sums of nominal accuracies in floating point


@dataclass(frozen=True)
class Constraint:
    """A demand on the mean nominal accuracy: `min` (none), `max` (the most accurate model only), or above a share."""

    name: str
    above: float | None = None

    @classmethod
    def parse(cls, text: str | float) -> Constraint:
        """`min`, `max`, `89%` or 0.89. Raises InputError."""
        if text in ("min", "max"):
            return cls(str(text))
        try:
            share = float(str(text).removesuffix("%")) / (100 if str(text).endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError("is no accuracy constraint", key="constraints", value=text,
                             remedy="write min, max, or a share such as 89%")
        return cls(f"{100 * share:g}%", share)

    def met(self, accuracy: FloatArray, highest: float) -> BoolArray:
        """Whether mean accuracies (A,) meet it; `highest`: of the most accurate model."""
        if self.above is None:
            found: BoolArray = accuracy >= (highest - MARGIN if self.name == "max" else -1.0)
            return found
        met: BoolArray = accuracy > self.above + MARGIN
        return met


@lru_cache(maxsize=8)
def joint_actions(devices: int, actions: int) -> IntArray:
    """(actions^devices, devices) every joint action; the last device's changes fastest. Raises InputError: too many."""
    if actions**devices > MAX_JOINT:
        raise InputError(f"means {actions}^{devices} joint actions, more than {MAX_JOINT}", key="devices", value=devices,
                         remedy="use fewer devices or fewer actions per device")
    return np.stack(np.unravel_index(np.arange(actions**devices), (actions,) * devices), axis=1)


@dataclass(frozen=True)
class Solution:
    """A joint action (None: infeasible) with the mean response time and mean accuracy that it has, and its index."""

    action: tuple[int, ...] | None
    mean_s: float
    accuracy: float
    index: int = -1


@dataclass(frozen=True)
class Problem:
    """N devices, what each may do, how long it takes, and what accuracy is asked.

    accuracy: nominal, per model of the ladder. penalty_s: the response time that counts when the constraint is not met; it must
    exceed every reachable mean (`check_penalty`), or violating would be attractive.
    """

    devices: int
    ladder: tuple[Variant, ...]
    actions: Actions
    accuracy: tuple[float, ...]
    source: ResponseSource
    constraint: Constraint
    penalty_s: float = 10.0

    @cached_property
    def joint(self) -> IntArray:
        """(A, N) all joint actions."""
        return joint_actions(self.devices, len(self.actions))

    @cached_property
    def mean_accuracy(self) -> FloatArray:
        """(A,) of each joint action."""
        found: FloatArray = np.array(self.accuracy)[np.array(self.actions.model)][self.joint].mean(axis=1)
        return found

    @cached_property
    def feasible(self) -> BoolArray:
        """(A,) whether the constraint is met; known before anything runs, because accuracies are nominal."""
        return self.constraint.met(self.mean_accuracy, max(self.accuracy))

    def mean_s(self, condition: Condition) -> FloatArray:
        """(A,) expected mean response time of every joint action."""
        found: FloatArray = self.source.times_s(condition, self.joint).mean(axis=1)
        return found

    def rewards(self, condition: Condition) -> FloatArray:
        """(A,) expected reward: minus the mean response time, or minus the penalty."""
        return np.where(self.feasible, -self.mean_s(condition), -self.penalty_s)

    def check_penalty(self, condition: Condition) -> None:
        """Raises InputError when some mean response time is not below the penalty."""
        worst = float(self.mean_s(condition).max())
        if worst >= self.penalty_s:
            raise InputError(f"does not exceed the longest mean response time, {worst:.3g} s: violating would pay",
                             key="penalty", value=f"{self.penalty_s:g}s", remedy=f"write penalty: {2 * worst:.2g}s")

    def safe_set(self, condition: Condition, factor: float, predicted: ResponseSource | None = None) -> BoolArray:
        """(A,) joint actions that exploration may try: feasible, and predicted within `factor` of all-local with the best model.

        predicted: the model that predicts, by default the source itself.
        """
        mean_s = (predicted or self.source).times_s(condition, self.joint).mean(1)
        limit_s = factor * mean_s[self.index((self.best_local,) * self.devices)] * (1 + MARGIN)
        found: BoolArray = self.feasible & (mean_s <= limit_s)
        return found

    @cached_property
    def best_local(self) -> int:
        """The action that runs the most accurate model on the device."""
        local = [k for k, tier in enumerate(self.actions.tier) if tier == 0]
        return max(local, key=lambda k: (self.accuracy[self.actions.model[k]], -k))

    def index(self, action: Sequence[int]) -> int:
        """The place of a joint action among all."""
        return int(np.ravel_multi_index(tuple(action), (len(self.actions),) * self.devices))

    def solution(self, condition: Condition, index: int) -> Solution:
        """What a joint action, by place, brings."""
        times_s = self.source.times_s(condition, self.joint[index:index + 1])
        return Solution(tuple(int(k) for k in self.joint[index]), float(times_s.mean()), float(self.mean_accuracy[index]), index)


def optimum(problem: Problem, condition: Condition, among: BoolArray | None = None) -> Solution:
    """The least mean response time over all feasible joint actions (and `among`); infeasible: `action` is None."""
    allowed = problem.feasible if among is None else problem.feasible & among
    if not allowed.any():
        return Solution(None, float("nan"), float("nan"))
    return problem.solution(condition, int(np.argmin(np.where(allowed, problem.mean_s(condition), np.inf))))
