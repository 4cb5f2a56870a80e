"""Selection among model variants: pure rules of LayerCake, its in-cloud baseline, MDInference and ModiPick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One model on one node, as a selection sees it.

    accuracy: nominal, 0 to 1. latency_s: what it is expected to take on its node, waiting and loading included.
    spread_s: standard deviation of that. network_s: what the way there and back adds; 0 on the device.
    available: neither busy nor cold after a failure.
    """

    node: str
    model: str
    local: bool
    accuracy: float
    latency_s: float
    spread_s: float = 0.0
    network_s: float = 0.0
    available: bool = True

    @property
    def total_s(self) -> float:
        """Expected time until the answer is there."""
        return self.latency_s + self.network_s


@dataclass(frozen=True)
class Choice:
    """A chosen variant. `feasible` is False when none met the conditions and it is the best of a bad lot."""

    variant: Variant
    feasible: bool


def fastest(variants: Iterable[Variant]) -> Variant:
    """The least total time; among equals the more accurate, then the first. Raises ValueError when there is none."""
    return min(variants, key=lambda v: (v.total_s, -v.accuracy))


def most_accurate(variants: Iterable[Variant]) -> Variant:
    """The highest accuracy; among equals the faster, then the first. Raises ValueError when there is none."""
    return min(variants, key=lambda v: (-v.accuracy, v.total_s))


def layercake(variants: Sequence[Variant], budget_s: float, *, min_accuracy: float = 0.0, margin: float = 0.8,
              allowance_s: float = 0.05, faithful: bool = False) -> Choice:
    """LayerCake's selection (CCGrid 2023, from its code): the most accurate variant that is expected to be in time.

    A variant is feasible when its accuracy reaches `min_accuracy`, it is available, and
    total <= margin * (budget - allowance). Without remote variants a local one has the whole budget. When none is feasible:
    the fastest, of the local ones and the remote ones that are available.

    `faithful` reproduces what the published code does when the budget is tight: remote variants are not considered when no local
    one meets the budget, and when none is feasible the answer is the fastest local one. Raises ValueError without variants.
    """
    local = [v for v in variants if v.local]
    remote = [v for v in variants if not v.local]
    in_time = [v for v in local if v.total_s <= budget_s]
    if faithful and local and not in_time:
        return Choice(fastest(local), False)
    if not remote:
        good = [v for v in in_time if v.accuracy >= min_accuracy]
        return Choice(most_accurate(good), True) if good else Choice(fastest(local), False)
    limit_s = margin * (budget_s - allowance_s)
    feasible = [v for v in variants if v.available and v.accuracy >= min_accuracy and v.total_s <= limit_s]
    if feasible:
        return Choice(most_accurate(feasible), True)
    reachable = local if faithful and local else [v for v in variants if v.local or v.available]
    return Choice(fastest(reachable or variants), False)


def in_cloud(variants: Sequence[Variant], budget_s: float, min_accuracy: float = 0.0) -> Choice:
    """The in-cloud baseline of LayerCake's evaluation (after INFaaS): the most accurate variant with total <= budget, else
    the fastest that reaches `min_accuracy`, else the fastest. Raises ValueError without variants."""
    good = [v for v in variants if v.accuracy >= min_accuracy]
    in_time = [v for v in good if v.available and v.total_s <= budget_s]
    return Choice(most_accurate(in_time), True) if in_time else Choice(fastest(good or variants), False)


def fast_enough(variants: Sequence[Variant], budget_s: float, gamma: float = 1.0) -> list[Variant]:
    """MDInference's eligible set: total mean + gamma standard deviations < budget; the fastest alone when that is empty.

    Raises ValueError without variants."""
    return [v for v in variants if v.total_s + gamma * v.spread_s < budget_s] or [fastest(variants)]


def modipick_weights(variants: Sequence[Variant], hard_s: float, soft_s: float) -> dict[Variant, float]:
    """ModiPick's exploration set with the probability of each (arXiv 1909.02053, as recalled: not checked with the paper).

    The base is the most accurate variant with mean + sigma < hard and mean - sigma < soft (the fastest when there is none).
    Explored are the variants that meet the same and whose mean lies within a sigma of the base's. The weight is
    accuracy * (hard - (mean + sigma)) / |soft - mean|, where the divisor is at least a millisecond. A mean includes the network.
    """
    eligible = [v for v in variants if v.total_s + v.spread_s < hard_s and v.total_s - v.spread_s < soft_s]
    if not eligible:
        return {fastest(variants): 1.0}
    base = most_accurate(eligible)
    weights = {v: v.accuracy * (hard_s - v.total_s - v.spread_s) / max(abs(soft_s - v.total_s), 1e-3)
               for v in eligible if abs(v.total_s - base.total_s) <= base.spread_s}
    total = sum(weights.values())
    return {v: w / total for v, w in weights.items()} if total > 0 else {base: 1.0}
