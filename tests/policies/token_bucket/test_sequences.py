"""Sequence generators: correlation in closed form, mean intervals as theory has them, uniform images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from testbed.policies.token_bucket import sequences as seq

N = 500


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_independent_images_are_uniform() -> None:
    index = seq.independent(20, 50, 400, rng())
    assert stats.chisquare(np.bincount(index.ravel(), minlength=20)).pvalue > 0.001


@pytest.mark.parametrize(("spread", "reset"), [(0.1, 0.1), (0.2, 0.5), (0.05, 0.02)])
def test_correlation_falls_by_one_minus_reset_per_lag(spread: float, reset: float) -> None:
    metric = rng().random(N)  # shuffled, so that sorting matters
    index = seq.location_reset(metric, spread, reset, 400, 2500, rng())
    assert np.bincount(index.ravel(), minlength=N).min() > 0, "every image occurs"
    # metric -> a wave on the sorted list that closes where the list closes: E[wave | location] is known
    rank = np.argsort(np.argsort(metric))
    wave = np.cos(2 * np.pi * rank / N)[index]
    offsets = np.arange(round(spread * N))
    attenuation = abs(np.exp(2j * np.pi * offsets / N).mean()) ** 2  # var of E[wave | location] over var of wave
    for lag in (1, 2, 5, 20):
        seen = (wave[:, :-lag] * wave[:, lag:]).mean() / (wave**2).mean()
        assert seen == pytest.approx(attenuation * (1 - reset) ** lag, abs=0.04), lag


def test_full_spread_or_constant_reset_is_independent() -> None:
    metric = np.arange(N)
    for spread, reset in ((1.0, 0.01), (0.1, 1.0)):
        index = seq.location_reset(metric, spread, reset, 100, 2000, rng())
        wave = np.cos(2 * np.pi * index / N)
        assert abs((wave[:, :-1] * wave[:, 1:]).mean() / (wave**2).mean()) < 0.02


def test_images_of_one_location_lie_together() -> None:
    index = seq.location_reset(np.arange(N), 0.1, 0.0, 5, 200, rng())
    for row in index:
        shifted = (row - row[0] + N // 2) % N
        assert np.ptp(shifted) < 0.1 * N


@pytest.mark.parametrize(("intervals", "leave"), [((1, 3), (0.05, 0.025)), ((2, 7), (0.1, 0.2))])
def test_markov_intervals_have_their_mean_and_sojourns(intervals: tuple[int, int], leave: tuple[float, float]) -> None:
    drawn = seq.markov_modulated(intervals, leave, 200, 5000, rng())
    assert set(np.unique(drawn)) == set(intervals)
    assert drawn.mean() == pytest.approx(seq.mean_interval(intervals, leave), rel=0.02)
    for interval, p in zip(intervals, leave, strict=True):  # chance to change after an arrival: geometric in time
        change = (drawn[:, :-1] == interval) & (drawn[:, 1:] != interval)
        assert change.sum() / (drawn[:, :-1] == interval).sum() == pytest.approx(1 - (1 - p) ** interval, rel=0.05)


def test_the_default_source_spends_two_thirds_of_the_time_in_the_slow_state() -> None:
    """Mean stays of 1000 and 2000 units of time: 3000 units with about 1000 and 667 arrivals."""
    assert seq.mean_interval((1, 3), (0.001, 0.0005)) == pytest.approx(3000 / (1000 + 2000 / 3), rel=1e-3)


def test_the_same_seed_gives_the_same_sequences() -> None:
    for make in (lambda g: seq.location_reset(np.arange(50), 0.2, 0.1, 3, 100, g),
                 lambda g: seq.markov_modulated((1, 3), (0.1, 0.1), 3, 100, g), lambda g: seq.independent(9, 3, 100, g)):
        np.testing.assert_array_equal(make(rng()), make(rng()))
