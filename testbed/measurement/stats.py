"""Statistics of correlated samples: quantiles with a sample-size rule, confidence intervals by block bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
RESAMPLES = 1000
MIN_BLOCKS = 8  # below this a percentile bootstrap is far too narrow; no interval is given
_RANK_BINS = 4096  # quantiles of resamples are found on this many ranks (exact up to this sample size)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Interval = tuple[float | None, float | None]


def samples_needed(quantile: float, confidence: float = CONFIDENCE) -> int:
    """Smallest n for which order statistics give a two-sided interval of this quantile (equal tails).

    The interval between the smallest and the largest of n samples misses the q-quantile when all lie above
    it, (1-q)^n, or all below it, q^n; each must be at most (1-confidence)/2. For 95%: 6 for the median, 72
    for p95, 368 for p99 (David and Nagaraja, Order Statistics, section 7.1).
    """
    worst = max(quantile, 1.0 - quantile)
    return math.ceil(math.log((1.0 - confidence) / 2.0) / math.log(worst))


def consecutive_blocks(trial: IntArray) -> IntArray:
    """Return a block number per sample, for samples in time order within each trial.

    Neighbouring requests share a trace, queues and batches, so they are resampled together. With
    MIN_BLOCKS trials (repeats) or more each trial is one block; otherwise each trial of n samples is cut into
    blocks of about sqrt(n) consecutive samples (Carlstein 1986; no block crosses trials).
    """
    names, codes = np.unique(trial, return_inverse=True)
    if len(names) >= MIN_BLOCKS:
        return codes.astype("int64")
    blocks, used = np.zeros(len(trial), dtype="int64"), 0
    for code in range(len(names)):
        where = np.flatnonzero(codes == code)
        count = max(1, math.isqrt(len(where)))
        blocks[where] = used + np.arange(len(where)) * count // max(1, len(where))
        used += count
    return blocks


def ratio_interval(numerator: FloatArray, denominator: FloatArray, blocks: IntArray, *, seed: int = 0) -> Interval:
    """Confidence interval of sum(numerator)/sum(denominator); a mean has a denominator of ones."""
    size = int(blocks.max(initial=-1)) + 1
    top = np.bincount(blocks, weights=numerator, minlength=size)
    bottom = np.bincount(blocks, weights=denominator, minlength=size)
    used = bottom != 0
    top, bottom = top[used], bottom[used]

    def statistic(index: IntArray, axis: int = -1) -> Any:
        return top[index].sum(axis=axis) / bottom[index].sum(axis=axis)

    return _bootstrap(statistic, len(top), seed)


def quantile_interval(values: FloatArray, quantile: float, blocks: IntArray, *, seed: int = 0) -> Interval:
    """Confidence interval of a quantile; (None, None) when the sample is too small for it to exist."""
    if len(values) < samples_needed(quantile):
        return None, None
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    _, codes = np.unique(blocks, return_inverse=True)
    bins = min(len(values), _RANK_BINS)
    rank_bin = np.arange(len(values), dtype="int64") * bins // len(values)
    counts = np.zeros((int(codes.max()) + 1, bins))  # (blocks, rank bins)
    np.add.at(counts, (codes[order], rank_bin), 1.0)
    upper = ranked[np.searchsorted(rank_bin, np.arange(bins), side="right") - 1]  # largest value of each bin

    def statistic(index: IntArray, axis: int = -1) -> Any:
        flat = np.moveaxis(index, axis, -1).reshape(-1, index.shape[axis])
        weights = np.zeros((len(flat), len(counts)))
        np.add.at(weights, (np.arange(len(flat))[:, None], flat), 1.0)
        cumulative = (weights @ counts).cumsum(axis=1)
        wanted = np.ceil(quantile * cumulative[:, -1])
        found = (cumulative < wanted[:, None]).sum(axis=1)
        result = upper[np.minimum(found, bins - 1)]
        return result.reshape(np.moveaxis(index, axis, -1).shape[:-1])

    return _bootstrap(statistic, len(counts), seed)


def _bootstrap(statistic: Callable[..., Any], blocks: int, seed: int) -> Interval:
    if blocks < MIN_BLOCKS:
        return None, None
    result = stats.bootstrap((np.arange(blocks),), statistic, n_resamples=RESAMPLES, vectorized=True,
                             confidence_level=CONFIDENCE, method="percentile", random_state=seed)
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)
