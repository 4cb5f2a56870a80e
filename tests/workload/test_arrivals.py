"""Schedules: seeded, paired over policies, with the rate that was asked."""

import numpy as np
import pytest

from testbed.workload.arrivals import generator, sample_indices, schedule_ns


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
