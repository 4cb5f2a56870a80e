"""What orchestration is compared with: one tier for all with the best model, and placement without a choice of model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.oracle import BoolArray, Constraint, Problem, Solution, optimum

FIXED = ("all-local", "all-edge", "all-cloud")


def fixed(problem: Problem, condition: Condition, name: str) -> Solution:
    """`all-local`, `all-edge` or `all-cloud`, each with the most accurate model."""
    tier = FIXED.index(name)
    best = max(problem.accuracy)
    action = next(k for k, t in enumerate(problem.actions.tier)
                  if t == tier and problem.accuracy[problem.actions.model[k]] == best)
    return problem.solution(condition, problem.index((action,) * problem.devices))


def placement_actions(problem: Problem) -> BoolArray:
    """(A,) joint actions that use the most accurate model everywhere."""
    best = np.array(problem.accuracy)[np.array(problem.actions.model)] == max(problem.accuracy)
    found: BoolArray = best[problem.joint].all(1)
    return found


def placement_only(problem: Problem, condition: Condition) -> Solution:
    """The best placement of the most accurate model: what the published comparison calls state of the art.

    Needs no constraint: the most accurate model meets any that can be met.
    """
    return optimum(replace(problem, constraint=Constraint("min")), condition, placement_actions(problem))
