"""Intervals cover what they promise on correlated data, and are refused with a reason where no sample could give them."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from testbed.measurement.stats import (
    effective_samples,
    quantile_interval,
    ratio_interval,
    samples_needed,
    share_interval,
    units_of,
)

STUDY = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("interval_coverage", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("quantile", "needed"), [(0.5, 7), (0.9, 44), (0.95, 90), (0.99, 459), (0.999, 4603), (0.05, 90)])
def test_sample_size_rule_is_the_smallest_that_works(quantile, needed):
    inside = max(quantile, 1 - quantile)  # probability that a sample does not lie beyond the percentile
    assert samples_needed(quantile) == needed
    assert inside**needed <= 0.01 < inside ** (needed - 1)


def test_blocks_are_consecutive_and_never_cross_trials():
    trial = np.repeat([0, 1, 2], [100, 50, 40])
    units = units_of(trial)
    assert not units.repeats and (np.diff(units.unit) >= 0).all() and set(np.diff(units.unit)) <= {0, 1}
    assert all(len(set(trial[units.unit == b])) == 1 for b in set(units.unit))
    assert len(set(units.unit)) == 12 and (units.half // 2 == units.unit).all()
    many = np.repeat(np.arange(5), 30)
    assert units_of(many).repeats and (units_of(many).unit == many).all()  # enough repeats: each is a unit
    assert len(set(units_of(np.zeros(400, dtype=int)).unit)) == 10


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_effective_samples_of_an_autoregression(study, phi):
    sample = np.log(study.latencies(np.random.default_rng(1), 1, 50_000, phi))
    assert effective_samples(sample, np.zeros(50_000)) == pytest.approx(50_000 * (1 - phi) / (1 + phi), rel=0.1)
    assert effective_samples(np.ones(50), np.zeros(50)) == 50


def test_mean_interval_widens_with_correlation():
    rng = np.random.default_rng(3)
    independent = rng.normal(size=900)
    drifting = np.repeat(rng.normal(size=90), 10)  # same spread, but ten neighbours are alike
    units, ones = units_of(np.zeros(900, dtype=int)), np.ones(900)
    narrow, wide = (high - low for low, high, _ in (ratio_interval(x, ones, units) for x in (independent, drifting)))
    assert narrow == pytest.approx(2 * scipy_stats.t.ppf(0.975, 9) / 30, rel=0.5)  # 1/sqrt(n)
    assert wide > 2 * narrow  # sqrt(10) = 3.2 in the limit


@pytest.mark.parametrize(("repeats", "count", "phi", "spread"), [(1, 200, 0.5, 0.0), (1, 1000, 0.9, 0.0), (2, 200, 0.7, 0.0),
                                                                 (5, 120, 0.8, 0.2)])
def test_95_percent_intervals_cover_93_to_97_percent(study, repeats, count, phi, spread):
    """Oracle: the closed-form mean of the process that the latencies are drawn from."""
    held, given = study.coverage(repeats, count, phi, spread=spread, replications=1000, names=("mean",))["mean"]
    assert given > 0.95 and 0.93 <= held <= 0.97


@pytest.mark.parametrize(("name", "count", "phi"), [("p50", 400, 0.7), ("p95", 1000, 0.7), ("in time", 400, 0.8)])
def test_percentiles_and_shares_cover_too(study, name, count, phi):
    held, given = study.coverage(1, count, phi, replications=1000, names=(name,))[name]
    assert given > 0.95 and 0.93 <= held <= 0.97


def test_resampling_rows_would_not_cover(study):
    """Why the unit is never the request: its interval of the mean holds the truth far too rarely."""
    rng, held = np.random.default_rng(2), 0
    truth = math.exp(study.SIGMA**2 / 2)
    for _ in range(300):
        sample = study.latencies(rng, 1, 400, 0.8)
        reach = 1.96 * sample.std() / 20  # what a bootstrap over rows converges to
        held += abs(sample.mean() - truth) <= reach
    assert held / 300 < 0.6


def test_refusals_say_why():
    rng = np.random.default_rng(1)
    few = units_of(np.zeros(458, dtype=int))
    assert quantile_interval(rng.normal(size=458), 0.99, few).reason.startswith("458 samples; p99 needs 459")
    nine = units_of(np.zeros(9, dtype=int))
    low, high, reason = ratio_interval(np.arange(9.0), np.ones(9), nine)
    assert (low, high) == (None, None) and reason == "9 samples; this interval needs 15"
    drifting = np.repeat(rng.normal(size=8), 25)
    assert "neighbours are so alike" in ratio_interval(drifting, np.ones(200), units_of(np.zeros(200, dtype=int))).reason
    lonely = units_of(np.repeat(np.arange(6), 50)).take(np.arange(300) < 100)  # what was measured occurred in two repeats
    assert ratio_interval(rng.normal(size=100), np.ones(100), lonely).reason.startswith("2 repeats")


def test_a_share_of_all_is_not_certain():
    """Oracle: the rule of three: of 100 without a failure, up to about 3.7% may fail."""
    low, high, _ = share_interval(np.ones(100), units_of(np.zeros(100, dtype=int)))
    assert high == 1.0 and low == pytest.approx(1 - 3.7 / 100, abs=0.003)


def test_a_constant_has_no_spread_and_time_is_not_negative():
    units = units_of(np.zeros(100, dtype=int))
    assert ratio_interval(np.full(100, 7.5), np.ones(100), units) == (7.5, 7.5, "")
    rare = np.zeros(100)
    rare[[3, 50]] = 1.0, 2.0
    assert ratio_interval(rare, np.ones(100), units).low == 0.0


def test_large_sample_quantile_agrees_with_order_statistics():
    x = np.random.default_rng(1).exponential(size=20_000)
    low, high, _ = quantile_interval(x, 0.99, units_of(np.zeros(len(x), dtype=int)))
    ranked = np.sort(x)
    ranks = scipy_stats.binom(len(x), 0.99).ppf([0.025, 0.975]).astype(int)
    assert (low, high) == pytest.approx(tuple(ranked[ranks]), rel=0.03)


def test_same_seed_same_interval():
    x, units = np.random.default_rng(4).exponential(size=300), units_of(np.zeros(300, dtype=int))
    assert ratio_interval(x, np.ones(300), units, seed=5) == ratio_interval(x, np.ones(300), units, seed=5)
