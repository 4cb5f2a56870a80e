"""Statistics of correlated samples: quantiles with a sample-size rule, intervals from blocks. Method: docs/statistics.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_REPEATS = 5  # from here on the repeat is the unit that is resampled
BLOCKS = 10  # units of a group with fewer repeats: blocks of time
MIN_EFFECTIVE = 15  # effective samples below which there is no interval (docs/statistics.md has the study)
FEW_EFFECTIVE = 60  # below this, blocks of time are short against the correlation
_Z = float(stats.norm.ppf((1.0 + CONFIDENCE) / 2.0))

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Interval(NamedTuple):
    """A confidence interval, or (None, None) with the reason why there is none."""

    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True)
class Units:
    """Which samples are resampled together. All arrays: (n,), one entry per sample, in time order within each trial.

    `unit` numbers the repeat (`repeats` true) or the block of time; `half` numbers the halves of the blocks.
    """

    trial: IntArray
    unit: IntArray
    half: IntArray
    repeats: bool

    def take(self, used: BoolArray) -> Units:
        """The same units for a subset of the samples."""
        return Units(self.trial[used], self.unit[used], self.half[used], self.repeats)


def samples_needed(quantile: float, confidence: float = 0.99) -> int:
    """Smallest n of which, with this confidence, at least one lies beyond the quantile (success-run theorem).

    q^n <= 1 - confidence. At 99%: 7 for the median, 90 for p95, 459 for p99. With fewer samples it is too likely that none
    of them came from beyond the percentile, and the largest of them is all that there is to show.
    """
    worst = max(quantile, 1.0 - quantile)
    return math.ceil(math.log(1.0 - confidence) / math.log(worst))


def effective_needed(quantile: float = 0.5) -> int:
    """Effective samples that an interval needs: 15; in the tail half of `samples_needed` at 95% (30 for p95, 150 for p99)."""
    return max(MIN_EFFECTIVE, math.ceil(samples_needed(quantile, 0.95) / 2))


def units_of(trial: IntArray) -> Units:
    """Units for samples in time order within each trial.

    With MIN_REPEATS trials or more, each trial is a unit: repeats have arrivals, samples and trace offsets of their own.
    With fewer, each of the r trials is cut into ceil(BLOCKS / r) blocks of consecutive samples (Carlstein 1986; no block
    crosses trials).
    """
    names, codes = np.unique(trial, return_inverse=True)
    codes = codes.astype("int64")
    if len(names) >= MIN_REPEATS:
        return Units(codes, codes, codes, True)
    half, per_trial = np.zeros(len(trial), dtype="int64"), 2 * -(-BLOCKS // max(1, len(names)))
    for code in range(len(names)):
        where = np.flatnonzero(codes == code)
        half[where] = code * per_trial + np.arange(len(where)) * per_trial // max(1, len(where))
    return Units(codes, half // 2, half, False)


def effective_samples(values: FloatArray, trial: IntArray) -> float:
    """Independent samples with the same variance of the mean: n (1 - r) / (1 + r), as if the values were AR(1).

    r is the lag-1 autocorrelation within trials, corrected for its bias (Marriott and Pope 1954), at least zero.
    """
    n = len(values)
    centred = values - values.mean() if n else values
    power = float(centred @ centred)
    if n < 3 or power <= 1e-24 * max(1.0, float(np.abs(values).max()) ** 2) * n:
        return float(n)
    neighbours = trial[1:] == trial[:-1]
    r = float((centred[1:] * centred[:-1])[neighbours].sum()) / power
    r = min(max(r + (1.0 + 3.0 * r) / n, 0.0), 0.999)
    return n * (1.0 - r) / (1.0 + r)


def ratio_interval(numerator: FloatArray, denominator: FloatArray, units: Units, *, seed: int = 0,
                   signed: bool = False) -> Interval:
    """Interval of sum(numerator) / sum(denominator), both (n,), by studentised block bootstrap (Davison and Hinkley 1997, 5.2).

    A mean has a denominator of ones. What was never negative gets no negative limit, unless it is `signed` (a difference).
    """
    ratio = float(numerator.sum() / denominator.sum())
    residual = numerator - ratio * denominator
    reason = _too_few(residual, units, effective_needed())
    if reason:
        return Interval(None, None, reason)
    top, bottom = _sums(numerator, units.unit), _sums(denominator, units.unit)
    top, bottom = top[bottom != 0], bottom[bottom != 0]
    count = len(top)
    variance = max(_variance(residual, units), float((residual**2).mean()) / _at_most(residual, units))
    error = math.sqrt(variance) * len(residual) / float(denominator.sum())
    if error <= 1e-12 * max(1e-300, abs(ratio)):
        return Interval(ratio, ratio)

    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    over, under = top[drawn], bottom[drawn]  # (RESAMPLES, count)
    again = over.sum(axis=1) / under.sum(axis=1)
    spread = np.sqrt(((over - again[:, None] * under) ** 2).sum(axis=1) * count / (count - 1)) / under.sum(axis=1)
    usable = spread > 1e-9 * error  # not the same unit over and over
    tail = (1.0 - CONFIDENCE) / 2.0
    if usable.any():
        below, above = np.quantile((again - ratio)[usable] / spread[usable], [tail, 1.0 - tail])
    else:
        below, above = stats.t.ppf([tail, 1.0 - tail], count - 1)
    low, high = ratio - float(above) * error, ratio - float(below) * error
    if not signed and (numerator >= 0).all() and (denominator >= 0).all():
        low = max(low, 0.0)
    return Interval(low, high)


def share_interval(values: FloatArray, units: Units) -> Interval:
    """Interval of the mean of zeros and ones, (n,): Wilson's, with the effective sample size of the blocks.

    Effective size: p (1 - p) / variance over blocks, corrected for their number (Korn and Graubard 1998), at most n. A share
    of 100% keeps a lower limit below 100%.
    """
    reason = _too_few(values, units, effective_needed())
    if reason:
        return Interval(None, None, reason)
    share = float(values.mean())
    size = min(_effective_size(values, share, units), _at_most(values, units))
    return Interval(*_wilson(share, size))


def quantile_interval(values: FloatArray, quantile: float, units: Units) -> Interval:
    """Interval of a quantile of (n,) values: that of the share below it, read off the distribution (Woodruff 1952).

    The share's effective size comes from the blocks, as in `share_interval`.
    """
    n, needed = len(values), samples_needed(quantile)
    if n < needed:
        return Interval(None, None, too_few_samples(n, quantile))
    reason = _too_few(values, units, effective_needed(quantile)) or _too_alike(values, units, effective_needed(quantile))
    if reason:
        return Interval(None, None, reason)
    ranked = np.sort(values)
    below = (values <= ranked[math.ceil(quantile * n) - 1]).astype("float64")
    size = min(_effective_size(below, quantile, units), _at_most(values, units, 4 * effective_needed(quantile), True))
    low, high = _wilson(quantile, size)
    return Interval(float(ranked[max(0, math.ceil(low * n) - 1)]), float(ranked[min(n - 1, math.ceil(high * n))]))


def too_few_samples(count: int, quantile: float) -> str:
    """Why a percentile is blank, in words."""
    return (f"{count} samples; p{100 * quantile:g} needs {samples_needed(quantile)}, else it is too likely that none lies "
            "beyond it")


def difference_interval(a: float, of_a: Interval, b: float, of_b: Interval, correlation: float = 0.0) -> Interval:
    """Interval of b - a from the intervals of both (MOVER: Zou and Donner 2008; for paired shares Newcombe 1998, method 10).

    `correlation` is that of the two estimates: 0 for independent samples.
    """
    if of_a.low is None or of_a.high is None or of_b.low is None or of_b.high is None:
        return Interval(None, None, of_a.reason or of_b.reason)

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x + y * y - 2 * correlation * x * y))

    return Interval(b - a - reach(b - of_b.low, of_a.high - a), b - a + reach(of_b.high - b, a - of_a.low))


def unit_correlation(x: FloatArray, y: FloatArray, units: Units) -> float:
    """Correlation, over the units, of the means of two series on the same requests, both (n,); 0 where one never varies."""
    a, b = _sums(x - x.mean(), units.unit), _sums(y - y.mean(), units.unit)
    power = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(float(a @ b) / power, -1.0, 1.0)) if power > 1e-12 else 0.0


def _too_few(values: FloatArray, units: Units, needed: int) -> str:
    """Why there can be no interval, or an empty text."""
    count = len(np.unique(units.unit))
    if units.repeats:
        return "" if count >= MIN_REPEATS else f"{count} repeats hold such a request; an interval needs {MIN_REPEATS}"
    if len(values) < needed or count < BLOCKS:
        return f"{len(values)} samples; this interval needs {needed}"
    return _too_alike(values, units, needed)


def _too_alike(values: FloatArray, units: Units, needed: int) -> str:
    found = effective_samples(values, units.trial)
    return "" if found >= needed else (f"{len(values)} samples, but neighbours are so alike that they count for {found:.0f}; "
                                       f"this interval needs {needed}")


def _at_most(values: FloatArray, units: Units, few: int = FEW_EFFECTIVE, tail: bool = False) -> float:
    """Upper bound of the effective samples, as an AR(1) process has them, where that process is the better witness.

    That is below `few` effective samples when the units are blocks of time, or when the tail holds few of them.
    """
    found = effective_samples(values, units.trial) if tail or not units.repeats else math.inf
    return found if found < few else math.inf


def _sums(values: FloatArray, unit: IntArray) -> FloatArray:
    sums = np.bincount(unit, weights=values, minlength=int(unit.max(initial=-1)) + 1)
    return np.asarray(sums, dtype=np.float64)


def _variance(residual: FloatArray, units: Units) -> float:
    """Variance of the mean of residuals (which sum to zero): between units, and for blocks of time the lugsail form.

    Blocks that follow each other are still correlated, which makes their variance too small by an amount that doubles
    when the blocks are halved: 2 V(blocks) - V(halves) is free of it to first order (Vats and Flegal 2022); never below V.
    """

    def between(unit: IntArray) -> float:
        sums = _sums(residual, unit)[np.bincount(unit) > 0]
        return float((sums**2).sum()) * len(sums) / (len(sums) - 1) / len(residual) ** 2

    plain = between(units.unit)
    return plain if units.repeats else max(plain, 2.0 * plain - between(units.half))


def _effective_size(values: FloatArray, share: float, units: Units) -> float:
    """n of independent zeros and ones that would leave the same uncertainty about their share."""
    n = len(values)
    variance = _variance(values - values.mean(), units)
    if variance <= 0:
        return float(n)
    count = len(np.unique(units.unit))
    few = (_Z / float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, count - 1))) ** 2
    return min(float(n), share * (1.0 - share) / variance * few) if 0 < share < 1 else float(n)


def _wilson(share: float, size: float) -> tuple[float, float]:
    """Wilson's interval of a share that was found in `size` independent samples."""
    scale = 1.0 + _Z**2 / size
    centre = (share + _Z**2 / (2 * size)) / scale
    reach = _Z * math.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2)) / scale
    return max(0.0, centre - reach), min(1.0, centre + reach)
