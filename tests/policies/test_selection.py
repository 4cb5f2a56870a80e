"""Selection rules against brute force over all variants, and how the choice moves with budget, bandwidth and round trip."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from testbed.policies.selection import (
    Choice,
    Variant,
    fast_enough,
    fastest,
    in_cloud,
    layercake,
    modipick_weights,
    most_accurate,
)


def instances(seed: int, count: int, sizes: tuple[int, int] = (1, 7)) -> Iterator[tuple[list[Variant], float, float]]:
    """Random variants on a coarse grid, so that ties of accuracy and of time are common; with a budget and a least accuracy."""
    rng = random.Random(seed)
    for _ in range(count):
        variants = []
        for i in range(rng.randint(*sizes)):
            local = rng.random() < 0.5
            variants.append(Variant("d" if local else "c", f"m{i}", local, rng.randint(0, 4) / 4, rng.randint(1, 8) / 10,
                                    network_s=0 if local else rng.randint(0, 4) / 10, available=rng.random() < 0.7))
        yield variants, rng.randint(-1, 14) / 10, rng.choice((0.0, 0.5, 1.0))


def best(allowed: Sequence[Variant]) -> Variant | None:
    """Oracle: the one that no other beats in accuracy, nor in time at the same accuracy; the first of equals."""
    for v in allowed:
        if not any(w.accuracy > v.accuracy or (w.accuracy == v.accuracy and w.total_s < v.total_s) for w in allowed):
            return v
    return None


def quickest(allowed: Sequence[Variant]) -> Variant:
    for v in allowed:
        if not any(w.total_s < v.total_s or (w.total_s == v.total_s and w.accuracy > v.accuracy) for w in allowed):
            return v
    raise AssertionError("nothing to choose from")


@pytest.mark.parametrize("faithful", [False, True])
def test_layercake_equals_the_six_steps_carried_out_one_by_one(faithful: bool) -> None:
    seen = set()
    for variants, budget_s, least in instances(1, 3000):
        local, remote = [v for v in variants if v.local], [v for v in variants if not v.local]
        limit_s = 0.8 * (budget_s - 0.05)
        chosen = layercake(variants, budget_s, min_accuracy=least, faithful=faithful)
        feasible = [v for v in variants if v.accuracy >= least and v.available and v.total_s <= limit_s]
        if faithful and local and all(v.latency_s > budget_s for v in local):
            case, expected = "step 1: no local one in time", quickest(local)
        elif not remote:
            good = best([v for v in local if v.latency_s <= budget_s and v.accuracy >= least])
            case, expected = ("step 3: no remote one", good) if good else ("step 3: none", quickest(local))
        elif feasible:
            found = best(feasible)
            assert found is not None
            case, expected = "step 6", found
        elif faithful and local:
            case, expected = "step 6: none, published", quickest(local)
        else:
            case, expected = "step 6: none", quickest([v for v in variants if v.local or v.available] or variants)
        assert chosen.variant is expected, case
        seen.add(case)
    assert len(seen) == (6 if faithful else 4)  # every case occurs


def test_the_published_flaw_and_its_repair_differ_only_when_no_local_variant_is_in_time() -> None:
    slow_local = Variant("d", "m", True, 0.6, 0.5)
    cloud = Variant("c", "m", False, 0.9, 0.05, network_s=0.05)
    assert layercake([slow_local, cloud], 0.3, faithful=True) == Choice(slow_local, False)
    assert layercake([slow_local, cloud], 0.3) == Choice(cloud, True)
    for variants, budget_s, least in instances(2, 500):
        one, other = (layercake(variants, budget_s, min_accuracy=least, faithful=f) for f in (False, True))
        if one.feasible and any(v.local and v.latency_s <= budget_s for v in variants):
            assert one == other


def test_nothing_is_feasible_when_all_are_busy_and_then_the_fastest_answers() -> None:
    busy = [Variant("d", "a", True, 0.5, 0.2, available=False), Variant("d", "b", True, 0.9, 0.4, available=False),
            Variant("c", "c", False, 1.0, 0.1, network_s=0.05, available=False)]
    assert layercake(busy, 10.0) == Choice(busy[0], False)
    with pytest.raises(ValueError):
        layercake([], 1.0)


def test_the_in_cloud_baseline_equals_brute_force() -> None:
    for variants, budget_s, least in instances(3, 1000):
        good = [v for v in variants if v.accuracy >= least]
        expected = best([v for v in good if v.available and v.total_s <= budget_s]) or quickest(good or variants)
        assert in_cloud(variants, budget_s, least).variant is expected


def ladder(node: str, network_s: float = 0.0, speed: float = 1.0) -> list[Variant]:
    return [Variant(node, f"m{i}", node == "d", 0.5 + i / 10, speed * 0.05 * 2**i, network_s=network_s) for i in range(5)]


@pytest.mark.parametrize("faithful", [False, True])
def test_accuracy_never_falls_with_budget_or_bandwidth_and_never_rises_with_the_round_trip(faithful: bool) -> None:
    """The same ladder on the device and, ten times as fast, in the cloud; network time = rtt + bits / rate."""

    def accuracy(budget_s: float, rate_bps: float, rtt_s: float) -> float:
        variants = ladder("d") + ladder("c", rtt_s + 100_000 / rate_bps, 0.1)
        return layercake(variants, budget_s, faithful=faithful).variant.accuracy

    budgets = [i / 40 for i in range(0, 80)]
    rates = [10_000 * 1.3**i for i in range(30)]
    rtts = [i / 50 for i in range(40)]
    for budget_s in (0.04, 0.1, 0.3, 0.6, 1.2):
        for rtt_s in (0.01, 0.1, 0.3):
            row = [accuracy(budget_s, rate, rtt_s) for rate in rates]
            assert row == sorted(row)
        row = [accuracy(budget_s, 1e6, rtt_s) for rtt_s in rtts]
        assert row == sorted(row, reverse=True)
    for rate in rates[::5]:
        row = [accuracy(budget_s, rate, 0.05) for budget_s in budgets]
        assert row == sorted(row) and row[0] < row[-1]


def test_with_both_places_accuracy_is_at_least_that_of_either_alone_where_either_is_feasible() -> None:
    """Dynamic selection is the upper envelope of device-only and cloud-only when it pays the same margin."""
    for variants, budget_s, _ in instances(4, 1000, (2, 8)):
        variants = [replace(v, available=True) for v in variants]
        local, remote = [v for v in variants if v.local], [v for v in variants if not v.local]
        if not (local and remote):
            continue
        both = layercake(variants, budget_s, margin=1.0, allowance_s=0.0)
        for part in (local, remote):
            alone = layercake(part, budget_s, margin=1.0, allowance_s=0.0)
            if alone.feasible:
                assert both.feasible and both.variant.accuracy >= alone.variant.accuracy


def test_fast_enough_is_the_definition_and_never_empty() -> None:
    for variants, budget_s, _ in instances(5, 500):
        spread = [replace(v, spread_s=v.accuracy / 10) for v in variants]
        expected = [v for v in spread if v.latency_s + v.network_s + v.spread_s < budget_s]
        found = fast_enough(spread, budget_s)
        if expected:
            assert found == expected
        else:
            assert found == [quickest(spread)]


def test_modipick_weights_are_a_distribution_over_variants_within_the_hard_limit() -> None:
    for variants, hard_s, _ in instances(6, 1000):
        spread = [replace(v, spread_s=0.15) for v in variants]
        weights = modipick_weights(spread, hard_s, hard_s - 0.1)
        assert sum(weights.values()) == pytest.approx(1) and all(w >= 0 for w in weights.values())
        inside = [v for v in spread if v.total_s + 0.15 < hard_s and v.total_s - 0.15 < hard_s - 0.1]
        assert set(weights) <= set(inside) if inside else len(weights) == 1


def test_ties_go_to_the_faster_then_to_the_more_accurate_then_to_the_first() -> None:
    a, b = Variant("d", "a", True, 0.8, 0.2), Variant("d", "b", True, 0.8, 0.1)
    assert most_accurate([a, b]) is b and fastest([a, replace(a, accuracy=0.9)]).accuracy == 0.9
    assert most_accurate([a, replace(a, model="z")]) is a
