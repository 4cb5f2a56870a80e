"""Intervals cover what they promise, and are refused where no sample could give them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from testbed.measurement.stats import consecutive_blocks, quantile_interval, ratio_interval, samples_needed


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_sample_size_rule_is_the_smallest_that_works(quantile):
    def misses(n):  # the larger tail of the widest possible interval, from the minimum to the maximum
        ranks = scipy_stats.binom(n, quantile)
        return max(ranks.cdf(0), ranks.sf(n - 1))

    n = samples_needed(quantile)
    assert misses(n) <= 0.025 + 1e-12 and misses(n - 1) > 0.025
    assert quantile != 0.99 or n == 368


def test_blocks_are_consecutive_and_never_cross_trials():
    trial = np.repeat([0, 1, 2], [100, 50, 9])
    blocks = consecutive_blocks(trial)
    assert (np.diff(blocks) >= 0).all() and set(np.diff(blocks)) <= {0, 1}
    assert all(len(set(trial[blocks == b])) == 1 for b in set(blocks))
    assert len(set(blocks[:100])) == 10  # about sqrt(n)
    many = np.repeat(np.arange(8), 30)
    assert (consecutive_blocks(many) == many).all()  # enough repeats: each is a block


def test_mean_interval_widens_with_correlation():
    rng = np.random.default_rng(3)
    independent = rng.normal(size=900)
    drifting = np.repeat(rng.normal(size=30), 30)  # same spread, but 30 neighbours are alike
    blocks, ones = consecutive_blocks(np.zeros(900, dtype=int)), np.ones(900)
    narrow, wide = (np.subtract(*ratio_interval(x, ones, blocks)[::-1]) for x in (independent, drifting))
    assert narrow == pytest.approx(2 * 1.96 / 30, rel=0.35)  # 1/sqrt(n)
    assert wide > 3.5 * narrow  # sqrt(30) = 5.5 in the limit


def test_intervals_cover():
    hits = {"mean": 0, "p50": 0, "p95": 0}
    blocks, ones = consecutive_blocks(np.zeros(400, dtype=int)), np.ones(400)
    for seed in range(100):
        x = np.random.default_rng(seed).exponential(size=400)
        for name, (low, high), truth in (
            ("mean", ratio_interval(x, ones, blocks), 1.0),
            ("p50", quantile_interval(x, 0.5, blocks), np.log(2)),
            ("p95", quantile_interval(x, 0.95, blocks), np.log(20)),
        ):
            hits[name] += low <= truth <= high
    assert all(85 <= count <= 100 for count in hits.values()), hits  # 95% asked; 20 blocks cost a little


def test_refusals():
    blocks = consecutive_blocks(np.zeros(367, dtype=int))
    assert quantile_interval(np.arange(367.0), 0.99, blocks) == (None, None)
    assert ratio_interval(np.ones(9), np.ones(9), consecutive_blocks(np.zeros(9, dtype=int))) == (None, None)


def test_large_sample_quantile_agrees_with_order_statistics():
    x = np.random.default_rng(1).exponential(size=20_000)
    low, high = quantile_interval(x, 0.99, consecutive_blocks(np.zeros(len(x), dtype=int)))
    ranked = np.sort(x)
    ranks = scipy_stats.binom(len(x), 0.99).ppf([0.025, 0.975]).astype(int)
    assert (low, high) == pytest.approx(tuple(ranked[ranks]), rel=0.03)
