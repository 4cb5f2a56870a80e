"""Schedules: seeded, paired over policies, with the rate that was asked."""

import numpy as np
import pytest

from testbed.schema.scenario import Load
from testbed.workload.arrivals import deadlines_s, generator, sample_indices, schedule_ns


@pytest.mark.parametrize("kind", ["poisson", "periodic"])
def test_same_seed_same_schedule_and_other_purposes_are_independent(kind: str) -> None:
    one = schedule_ns(kind, 5.0, 1000, generator(7, 0, "schedule", 1))
    assert np.array_equal(one, schedule_ns(kind, 5.0, 1000, generator(7, 0, "schedule", 1)))
    for other in (generator(8, 0, "schedule", 1), generator(7, 1, "schedule", 1), generator(7, 0, "schedule", 2),
                  generator(7, 0, "samples", 1)):
        assert not np.array_equal(one, schedule_ns(kind, 5.0, 1000, other))


def test_poisson_gaps_are_exponential() -> None:
    gaps_s = np.diff(schedule_ns("poisson", 4.0, 200_000, generator(1, 0, "schedule"))) / 1e9
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.01)  # closed form: mean 1/rate
    assert gaps_s.std() == pytest.approx(0.25, rel=0.01)  # closed form: coefficient of variation 1
    assert (gaps_s > 0.5).mean() == pytest.approx(np.exp(-2), rel=0.03)


def test_periodic_gaps_are_exact_to_the_nanosecond() -> None:
    gaps = np.diff(schedule_ns("periodic", 4.0, 1000, generator(1, 0, "schedule")))
    assert set(np.abs(gaps - 250_000_000)) <= {0, 1}


def test_every_sample_is_used_once_per_lap() -> None:
    chosen = sample_indices(10, 25, generator(3, 0, "samples"))
    assert sorted(chosen[:10]) == sorted(chosen[10:20]) == list(range(10))
    assert len(chosen) == 25


def test_deadlines_are_the_nominal_one_or_drawn_per_request() -> None:
    assert set(deadlines_s(Load(requests_per_device=5, deadline="2s"), generator(1, 0, "deadlines"))) == {2.0}
    load = Load(requests_per_device=20_000, deadlines={"uniform": ["250ms", "3.5s"]})
    drawn = deadlines_s(load, generator(1, 0, "deadlines"))
    assert len(drawn) == 20_005 and drawn.min() >= 0.25 and drawn.max() <= 3.5
    assert drawn.mean() == pytest.approx(1.875, rel=0.01)  # closed form: middle of the range
    assert drawn.std() == pytest.approx(3.25 / 12**0.5, rel=0.01)  # closed form: width / sqrt(12)


def test_a_pivot_moves_its_own_requests_only() -> None:
    plain = Load(requests_per_device=30, warmup_requests=3, deadlines={"uniform": ["1s", "2s"]})
    moved = Load(requests_per_device=30, warmup_requests=3, deadlines={
        "uniform": ["1s", "2s"], "pivot": [{"requests": [10, 20], "uniform": ["100ms", "200ms"]},
                                           {"requests": [25, 99], "uniform": ["5s", "5s"]}]})
    one, two = (deadlines_s(load, generator(4, 0, "deadlines", 1)) for load in (plain, moved))
    changed = np.zeros(33, bool)
    changed[13:23] = changed[28:] = True
    assert np.array_equal(one[~changed], two[~changed])
    assert np.allclose(two[13:23], 0.1 + (one[13:23] - 1.0) * 0.1)  # the same place within the other range
    assert set(two[28:]) == {5.0}
