"""Bayesian online change-point detection: the posterior of the time since the last change, sample by sample."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from testbed.policies.bandwidth import RateEstimator

_FORGOTTEN = 16.0  # runs whose probability is e**-16 of the likeliest one's are dropped
_MOST_RUNS = 256


class ChangePoints:
    """Detects changes of mean or variance in a series of normal samples of unknown mean and variance.

    Keeps P(run length r_t | x_1..x_t): how many samples the current regime has lasted. Each sample is predicted by the
    Student t distribution that the regime's samples give under a normal-inverse-gamma prior; a regime ends at each sample
    with probability `hazard`. Adams and MacKay, "Bayesian Online Changepoint Detection", 2007, algorithm 1.
    """

    def __init__(self, mean: float, hazard: float = 0.02, deviation: float = 0.2, spread: float = 2.0) -> None:
        """`mean`, `spread`: of the regimes' means, before anything is seen; `deviation`: of the samples around theirs.

        Raises ValueError for values that are no such thing.
        """
        if not 0 < hazard < 1:
            raise ValueError(f"hazard: {hazard!r} is not a probability above 0 and below 1")
        if not (deviation > 0 and spread > 0 and math.isfinite(mean)):
            raise ValueError("deviation and spread are above 0")
        self._log_stay, self._log_end = math.log1p(-hazard), math.log(hazard)
        self._prior = (mean, (deviation / spread) ** 2, 1.0, deviation**2)  # mean, weight, shape, scale
        self._runs = np.zeros(1, np.int64)  # (R,) run lengths that are still possible
        self._log_p = np.zeros(1)  # (R,)
        self._mean, self._scale = np.array([self._prior[0]]), np.array([self._prior[3]])  # (R,)
        self.run_length = 0
        self.mean = mean
        self.changes = 0

    def update(self, x: float) -> bool:
        """Learn a sample; says whether a change shows: the likeliest regime is shorter than the one before it."""
        mean, weight, shape, scale = self._prior
        weights, shapes = weight + self._runs, shape + self._runs / 2  # (R,)
        log_seen = self._log_p + _log_student(x, 2 * shapes, self._mean, self._scale * (weights + 1) / (shapes * weights))
        ended = float(np.logaddexp.reduce(log_seen)) + self._log_end
        grown_scale = self._scale + weights * (x - self._mean) ** 2 / (2 * (weights + 1))
        grown_mean = (weights * self._mean + x) / (weights + 1)
        self._runs = np.concatenate([[0], self._runs + 1])
        self._log_p = np.concatenate([[ended], log_seen + self._log_stay])
        self._mean = np.concatenate([[mean], grown_mean])
        self._scale = np.concatenate([[scale], grown_scale])
        self._forget()
        likeliest = int(self._log_p.argmax())
        before, self.run_length = self.run_length, int(self._runs[likeliest])
        if self.run_length:
            self.mean = float(self._mean[likeliest])
        changed = self.run_length <= before
        self.changes += changed
        return changed

    @property
    def probabilities(self) -> dict[int, float]:
        """P(run length | samples so far) by run length; what is left out has next to no probability."""
        return {int(r): float(p) for r, p in zip(self._runs, np.exp(self._log_p), strict=True)}

    def _forget(self) -> None:
        self._log_p -= np.logaddexp.reduce(self._log_p)
        kept = self._log_p > self._log_p.max() - _FORGOTTEN
        if kept.sum() > _MOST_RUNS:
            kept &= self._log_p >= np.sort(self._log_p)[-_MOST_RUNS]
        self._runs, self._log_p, self._mean, self._scale = (a[kept] for a in (self._runs, self._log_p, self._mean, self._scale))
        self._log_p -= np.logaddexp.reduce(self._log_p)


class ChangePointRate(RateEstimator):
    """The rate of the current regime: the mean of the logarithms of its samples, as change-point detection sees it."""

    def __init__(self, initial_bps: float = 5e6, hazard: float = 0.02, deviation: float = 0.2) -> None:
        """`deviation`: relative, of the samples of one regime. Raises ValueError."""
        super().__init__(initial_bps)
        self.detector = ChangePoints(math.log(initial_bps), hazard, deviation)

    def _next(self, sample_bps: float, sending_s: float, t_ns: int) -> float:
        self.detector.update(math.log(sample_bps))
        return math.exp(self.detector.mean)


def _log_student(x: float, freedom: NDArray[np.float64], mean: NDArray[np.float64],
                 variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of Student's t density at x; `variance` is the square of its scale. All (R,)."""
    gammas = np.array([math.lgamma((f + 1) / 2) - math.lgamma(f / 2) for f in freedom])
    density: NDArray[np.float64] = (gammas - 0.5 * np.log(np.pi * freedom * variance)
                                    - (freedom + 1) / 2 * np.log1p((x - mean) ** 2 / (freedom * variance)))
    return density
