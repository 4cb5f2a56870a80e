"""The analytic engine: slot by slot a policy's placement is checked, serves the demand, and is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from testbed.placement.base import Placement, Slot, check
from testbed.placement.gain import served
from testbed.placement.problem import BoolArray, FloatArray, IntArray, Problem


@dataclass(frozen=True, eq=False)
class Trace:
    """What every slot came to. Arrays (T,), but `tier_share` (T, tiers).

    | field | unit | meaning |
    |---|---|---|
    | gain_ms | ms per request | gain over the permanent models alone, over the slot's requests (a term of NTAG) |
    | fraction_gain_ms | ms per request | the same of the fractions before rounding; NaN where the policy has none |
    | latency_ms | ms | mean round trip and inference over the slot's requests |
    | inaccuracy | points | mean 100 - accuracy over the slot's requests |
    | updates | models | placed now and not in the slot before (none in slot 0) |
    | update_bytes | bytes | their size: what would be fetched |
    | messages | messages | control messages over links after the slot |
    | used_share | - | placed bytes over the free budgets of the nodes that cannot hold everything |
    | tier_share | - | share of the requests that each tier served |
    """

    gain_ms: FloatArray
    fraction_gain_ms: FloatArray
    latency_ms: FloatArray
    inaccuracy: FloatArray
    updates: IntArray
    update_bytes: FloatArray
    messages: IntArray
    used_share: FloatArray
    tier_share: FloatArray
    last: BoolArray  # (V, M) the last slot's placement

    @property
    def ntag_ms(self) -> float:
        """Normalised time-averaged gain: mean over slots of gain per request (ms)."""
        return float(self.gain_ms.mean())


def run(problem: Problem, policy: Placement, demand: FloatArray,
        on_slot: Callable[[int, Slot], None] | None = None) -> Trace:
    """Play `demand` (T, R) against a policy. Raises InputError when a placement does not keep the rules."""
    slots, options = len(demand), problem.options
    tier_of = problem.tier[options.flat // len(problem.models)]
    nothing = np.zeros(problem.pinned.shape, dtype=bool)
    scarce = problem.free_bytes < np.where(problem.choosable, problem.size_bytes, 0.0).sum(axis=1)
    gain, fractional, latency, inaccuracy, update_bytes, used = (np.zeros(slots) for _ in range(6))
    updates, messages = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=np.int64)
    share = np.zeros((slots, len(problem.tiers)))
    placed, before = policy.first(), nothing
    name = policy.id or type(policy).__name__
    for t in range(slots):
        if t == 0 or placed is not before:
            check(problem, placed, name, exceeds_budget=policy.exceeds_budget)
        potential = problem.potential(demand[t])
        n = served(problem, demand[t], potential, placed)  # (R, K)
        base = served(problem, demand[t], potential, nothing)
        total = max(float(demand[t].sum()), 1.0)
        gain[t] = ((base - n) * options.cost_ms).sum() / total
        y = policy.fractions()
        fractional[t] = np.nan if y is None else \
            ((base - served(problem, demand[t], potential, y)) * options.cost_ms).sum() / total
        latency[t] = (n * options.latency_ms).sum() / total
        inaccuracy[t] = (n * options.inaccuracy).sum() / total
        share[t] = np.bincount(tier_of.ravel(), weights=n.ravel(), minlength=len(problem.tiers)) / total
        if t:
            new = placed & ~before
            updates[t], update_bytes[t] = new.sum(), problem.size_bytes[new].sum()
        used[t] = (problem.size_bytes * placed)[scarce].sum() / max(float(problem.free_bytes[scarce].sum()), 1.0)
        slot = Slot(t, demand[t], potential, placed, n)
        if on_slot is not None:
            on_slot(t, slot)
        before = placed
        placed = policy.update(slot)
        messages[t] = policy.messages(slot)
    return Trace(gain, fractional, latency, inaccuracy, updates, update_bytes, messages, used, share, before)
