"""Change-point detection: exact posterior on short series, steps found, few false alarms, the rate of the current regime."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from testbed.policies.changepoint import ChangePointRate, ChangePoints

HAZARD, DEVIATION, SPREAD, MEAN = 0.1, 0.3, 1.5, 2.0


def evidence(x: np.ndarray) -> float:
    """P(segment) of samples with normal-inverse-gamma prior, by its joint multivariate t density."""
    weight, shape, scale = (DEVIATION / SPREAD) ** 2, 1.0, DEVIATION**2
    n = len(x)
    covariance = scale / shape * (np.eye(n) + np.ones((n, n)) / weight)
    return float(stats.multivariate_t(np.full(n, MEAN), covariance, df=2 * shape).pdf(x))


@pytest.mark.parametrize("seed", range(4))
def test_the_posterior_is_that_of_all_segmentations(seed: int) -> None:
    """Brute force: every way of placing changes among 7 samples, weighted by hazard and evidence."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(2, 0.2, 4), rng.normal(3.5, 0.2, 3)])
    detector = ChangePoints(MEAN, HAZARD, DEVIATION, SPREAD)
    for value in x:
        detector.update(float(value))
    weights = dict.fromkeys(range(len(x) + 1), 0.0)
    for ends in itertools.product((False, True), repeat=len(x)):  # whether a regime ends after each sample
        bounds = [0, *(i + 1 for i, end in enumerate(ends) if end), len(x)]
        p = math.prod(HAZARD if end else 1 - HAZARD for end in ends)
        p *= math.prod(evidence(x[a:b]) for a, b in itertools.pairwise(bounds) if b > a)
        weights[0 if ends[-1] else len(x) - bounds[-2]] += p
    total = sum(weights.values())
    for run, p in detector.probabilities.items():
        assert p == pytest.approx(weights[run] / total, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("deviation", "within"), [(0.05, 2), (0.1, 2), (0.2, 5)])
@pytest.mark.parametrize("factor", [4.0, 2.0, 0.5, 0.25])
def test_a_step_of_the_rate_is_found_within_n_samples(deviation: float, within: int, factor: float) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rate = ChangePointRate(5e6)
        for i, noise in enumerate(rng.normal(0, deviation, 40)):
            rate.update(3e6 * math.exp(noise) / 8, 1.0, 0.0, i)
        before = rate.detector.changes
        for i, noise in enumerate(rng.normal(0, deviation, within)):
            rate.update(factor * 3e6 * math.exp(noise) / 8, 1.0, 0.0, 40 + i)
        assert rate.detector.changes > before and rate.detector.run_length <= within
        assert rate.bps == pytest.approx(factor * 3e6, rel=3 * deviation)


def test_false_alarms_are_rarer_than_the_hazard() -> None:
    alarms = 0
    for seed, deviation in enumerate((0.05, 0.1, 0.2, 0.4)):
        detector = ChangePoints(15.0, hazard=0.02)
        alarms += sum(detector.update(float(x)) for x in np.random.default_rng(seed).normal(15, deviation, 800))
        assert abs(detector.mean - 15) < 4 * deviation / math.sqrt(detector.run_length)
    assert alarms / 3200 < 0.005


def test_a_regime_is_the_mean_of_its_own_samples_not_of_older_ones() -> None:
    detector = ChangePoints(15.0)
    for x in [14.0, 14.1, 13.9] * 10 + [16.0, 16.1, 15.9] * 4:
        detector.update(x)
    assert detector.run_length == 12 and detector.mean == pytest.approx(16.0, abs=0.01) and detector.changes == 1


def test_probabilities_stay_probabilities_and_memory_stays_small() -> None:
    detector = ChangePoints(0.0)
    for x in np.random.default_rng(0).normal(0, 0.2, 600):
        detector.update(float(x))
    found = detector.probabilities
    assert sum(found.values()) == pytest.approx(1) and len(found) <= 256


@pytest.mark.parametrize("options", [{"hazard": 0.0}, {"hazard": 1.0}, {"deviation": 0.0}, {"spread": -1.0}, {"mean": math.inf}])
def test_wrong_values_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ChangePoints(**{"mean": 0.0, **options})
