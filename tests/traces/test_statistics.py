"""Statistics against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.traces import Trace, constant
from testbed.traces.statistics import autocorrelation_time, describe, window_rates_bps

S = 10**9


def test_a_square_wave():
    """2 s at 3 Mbit/s, 2 s at nothing, ten times: mean 1.5, variation exactly 1, half of the seconds zero."""
    trace = Trace(np.arange(21) * 2 * S, np.array([6_000_000, 0] * 10))
    found = describe(trace)
    assert (found.duration_s, found.mean_rate_bps, found.zero_share, found.longest_zero_s) == (
        40,
        1.5e6,
        0.5,
        2,
    )
    assert (found.cov_1s, found.cov_100ms) == (pytest.approx(1), pytest.approx(1))
    assert (found.min_bps, found.max_bps, found.quantiles_bps[0], found.quantiles_bps[-1]) == (0, 3e6, 0, 3e6)
    # autocorrelation of the wave: 1, 0 (biased: about -0.02..0.03), so it passes 1/e at 1 - 1/e of a step
    assert found.autocorrelation_s == pytest.approx(1 - np.exp(-1), abs=0.03)


def test_a_constant_rate_has_no_variation_and_no_memory():
    found = describe(constant(1_000_000, 10 * S))
    assert (found.cov_1s, found.autocorrelation_s, found.zero_share) == (0, 0, 0)


def test_autocorrelation_time_of_an_ar1_process():
    """AR(1) with coefficient exp(-1/tau) passes 1/e at lag tau."""
    random, keep = np.random.default_rng(3), np.exp(-1 / 8)
    values = np.zeros(200_000)
    for index, noise in enumerate(random.standard_normal(len(values) - 1), 1):
        values[index] = keep * values[index - 1] + noise
    assert autocorrelation_time(values) == pytest.approx(8, rel=0.1)


def test_windows_leave_out_the_last_partial_one():
    trace = constant(8_000, 2_500_000_000)
    assert window_rates_bps(trace, S).tolist() == [8_000, 8_000]
    assert window_rates_bps(trace, 10 * S).tolist() == [8_000]
