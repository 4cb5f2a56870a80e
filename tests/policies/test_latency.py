"""Predictors of service times: the table, the online percentile against its definition, the load factor's convergence."""

import math
import random

import pytest

from testbed.policies import Computation, Context, NodeInfo
from testbed.policies.latency import LoadFactor, OnlinePercentile, ProfileTable

S = 1_000_000_000


def worked(queue_s: float, duration_s: float, load_s: float = 0.0) -> Computation:
    return Computation("edge1", "net", 0, 2, queue_s, duration_s, load_s)


def test_the_table_is_the_profile_and_says_what_it_lacks() -> None:
    context = Context("device1", {"device": "device1"}, ("device",), {}, "net", 0.1, 1,
                      {"device1": NodeInfo("device1", "device", {"net": (0.1, 0.2)})})
    assert ProfileTable(context).stage_s("device1", "net") == (0.1, 0.2)
    for node, model in (("device1", "other"), ("edge1", "net")):
        with pytest.raises(ValueError, match="profile"):
            ProfileTable(context).stage_s(node, model)


@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 1.0, None])
def test_percentile_equals_its_definition_after_every_measurement(q: float | None, window: int | None) -> None:
    draw = random.Random(5)
    estimate, seen = OnlinePercentile(q, window), []
    assert estimate.value(7.0) == 7.0
    for _ in range(80):
        seen.append(draw.choice([0.1, 0.2, draw.random()]))  # with ties
        estimate.add(seen[-1])
        kept = sorted(seen[-window:] if window else seen)
        expected = sum(kept) / len(kept) if q is None else kept[min(math.floor(q * len(kept)), len(kept) - 1)]
        assert estimate.value(0) == pytest.approx(expected)
        assert len(estimate) == len(kept)


def test_a_borderline_budget_is_missed_in_about_one_of_ten() -> None:
    draw = random.Random(2)
    estimate, missed, n = OnlinePercentile(0.9), 0, 5000
    for i in range(n):
        x = draw.lognormvariate(0, 0.5)
        missed += i > 100 and x > estimate.value(0)
        estimate.add(x)
    assert missed / (n - 101) == pytest.approx(0.1, abs=0.015)


def test_load_factor_halves_its_error_and_ignores_cold_starts() -> None:
    load = LoadFactor(half_life_s=1e9)
    assert load.k(0) == 1.0
    load.update(worked(0.0, 0.02, load_s=3.0), 0.02, 0)
    assert load.k(0) == pytest.approx(1.0)
    for n in range(1, 12):
        load.update(worked(0.05, 0.05), 0.02, 0)  # five times what was predicted
        assert 5 - load.k(0) == pytest.approx(4 * 0.5**n)


def test_load_factor_of_many_sizes_is_the_ratio_and_hostile_input_is_refused() -> None:
    draw = random.Random(1)
    load = LoadFactor()
    for _ in range(100):
        predicted_s = draw.uniform(0.001, 0.1)
        load.update(worked(predicted_s, 2 * predicted_s), predicted_s, S)
    assert load.k(S) == pytest.approx(3.0)
    for queue_s, predicted_s in ((0.1, 0.0), (0.1, -1.0), (math.nan, 0.1), (math.inf, 0.1), (-1.0, 0.1)):
        assert not load.update(worked(queue_s, 0.1), predicted_s, S)
    assert load.k(S) == pytest.approx(3.0)


def test_what_was_measured_long_ago_counts_half_per_half_life() -> None:
    load = LoadFactor(half_life_s=10)
    load.update(worked(0.0, 0.09), 0.01, 0)
    assert [load.k(t * S) for t in (0, 10, 20, 1000)] == pytest.approx([9, 5, 3, 1])


def test_bad_options_are_refused() -> None:
    for make in (lambda: OnlinePercentile(1.5), lambda: OnlinePercentile(0.9, 0), lambda: LoadFactor(0), lambda: LoadFactor(half_life_s=0)):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError):
        OnlinePercentile().add(math.nan)
