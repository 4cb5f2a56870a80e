"""Bregman projection onto the weighted capped simplex, for many nodes at once.

Mirror map: the weighted negative entropy sum_m s_m y_m log y_m. The weight cancels in the optimality conditions, so the
projection of y' is y_m = min(1, c * y'_m), with c such that sum_m s_m y_m = min(b, sum_m s_m).
"""

from __future__ import annotations

import numpy as np

from testbed.placement.problem import BoolArray, FloatArray


def project(log_y: FloatArray, size: FloatArray, budget: FloatArray, choosable: BoolArray) -> FloatArray:
    """Logarithm of the projection, row by row; entries that are not choosable get -inf.

    Parameters: `log_y` (V, M) logarithm of y' > 0 (a logarithm, so that nothing underflows), `size` (V, M) > 0,
    `budget` (V,) >= 0, `choosable` (V, M). The capped sum is concave and piecewise linear in c: Newton's method from
    below caps more entries in each step and ends, exactly, when no entry is capped any more.
    """
    logs = np.where(choosable, log_y, -np.inf)
    top = np.max(logs, axis=1, keepdims=True, initial=-np.inf)
    logs = logs - np.where(np.isfinite(top), top, 0.0)  # largest entry of each row: 0
    weight = np.where(choosable, size * np.exp(logs), 0.0)  # s * y'
    total = np.where(choosable, size, 0.0)
    capped = np.zeros(log_y.shape, dtype=bool)
    capped[total.sum(axis=1) <= budget] = True  # everything fits
    capped &= choosable
    result = np.where(capped, 0.0, -np.inf)
    rows = np.flatnonzero((budget > 0) & choosable.any(axis=1) & ~capped.any(axis=1))
    while len(rows):
        held, rest = capped[rows], choosable[rows] & ~capped[rows]
        left = budget[rows] - np.where(held, total[rows], 0.0).sum(axis=1)
        free = np.where(rest, weight[rows], 0.0).sum(axis=1)
        log_c = _log_ratio(left, free, logs[rows], size[rows], rest)
        scaled = logs[rows] + log_c[:, None]
        over = rest & (scaled > 0.0)
        capped[rows] |= over
        done = ~over.any(axis=1)
        result[rows[done]] = np.where(capped[rows[done]], 0.0, np.where(rest[done], scaled[done], -np.inf))
        rows = rows[~done]
    return result


def _log_ratio(left: FloatArray, free: FloatArray, logs: FloatArray, size: FloatArray, rest: BoolArray) -> FloatArray:
    """log(left / free) per row; where `free` underflowed it is summed again relative to its own largest entry."""
    result = np.log(np.maximum(left, 1e-300)) - np.log(np.maximum(free, 1e-300))
    again = np.flatnonzero((free < 1e-290) & rest.any(axis=1))
    if len(again):
        inner = np.where(rest[again], logs[again], -np.inf)
        top = inner.max(axis=1, keepdims=True)
        total = np.where(rest[again], size[again] * np.exp(inner - top), 0.0).sum(axis=1)
        result[again] = np.log(np.maximum(left[again], 1e-300)) - np.log(total) - top[:, 0]
    return result


def start(size: FloatArray, budget: FloatArray, choosable: BoolArray) -> FloatArray:
    """Logarithm of the entropy's minimiser (V, M): the same share min(1, b / sum s) for every choosable model."""
    return project(np.zeros(size.shape), size, budget, choosable)
