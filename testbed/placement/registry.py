"""From what a study names to a placement object: built-in ones by name, a user's `file.py:Class`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from testbed.errors import InputError
from testbed.placement.base import Fixed, Placement
from testbed.placement.caches import Lfu, Lru
from testbed.placement.greedy import StaticGreedy
from testbed.placement.infida import Infida
from testbed.placement.offline import OfflineInfida
from testbed.placement.olag import Olag
from testbed.placement.popularity import Demand
from testbed.placement.problem import Problem
from testbed.placement.topologies import Tier, tree
from testbed.schema.user_class import load_user_class

BUILT_IN: dict[str, type[Placement]] = {cls.id: cls for cls in (Fixed, Infida, OfflineInfida, Olag, StaticGreedy, Lru, Lfu)}


def make_placement(policy: str, options: Mapping[str, Any], problem: Problem, seed: int, demand: Demand,
                   key: str = "policies") -> Placement:
    """The placement object that `policy` names; `demand` is the hindsight of those that take it. Raises InputError."""
    cls = BUILT_IN.get(policy) or _load_class(policy, key)
    known: dict[str, Any] = {}
    if cls.hindsight:
        known["demands"], known["slots"] = demand.means()
    try:
        return cls(problem, seed, **known, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"placement {policy} refuses its options: {error}", key=f"{key}.options", value=dict(options),
                         remedy="see the class's docstring for what it takes") from error


def check_options(policy: str, options: Mapping[str, Any], key: str = "policies") -> None:
    """Refuse options that the class does not take; of a built-in one also their values, on a network of two nodes.

    Raises InputError.
    """
    if policy in BUILT_IN:
        small = tree((Tier("edge", 1, 1.0, 1e9, "lower"), Tier("cloud", 1, 0.0, np.inf, "upper")), tasks=1, copies=1)
        make_placement(policy, options, small, 0, Demand(np.ones((1, 1)), np.zeros(1, dtype=np.int64)), key)
        return
    try:
        inspect.signature(_load_class(policy, key)).bind(None, 0, **options)
    except TypeError as error:
        raise InputError(f"placement {policy} refuses its options: {error}", key=f"{key}.options", value=dict(options),
                         remedy="see the class's docstring for what it takes") from None


def _load_class(name: str, key: str) -> type[Placement]:
    if not name.rpartition(":")[0].endswith(".py"):
        raise InputError("there is no such placement", key=f"{key}.policy", value=name,
                         remedy=f"use one of {', '.join(sorted(BUILT_IN))}, or a file such as my_placement.py:MyPlacement")
    found: type[Placement] = load_user_class(name, Placement, "placement", f"{key}.policy")
    return found
