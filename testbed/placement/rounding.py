"""DepRound, weighted: from fractions to a placement that keeps the sizes' sum and every marginal, for many nodes at once."""

from __future__ import annotations

from typing import Literal

import numpy as np

from testbed.placement.problem import BoolArray, FloatArray, IntArray

Leftover = Literal["drop", "bernoulli", "fill"]
_EXACT = 1e-12  # an entry this near to 0 or 1 is integral


def depround(y: FloatArray, size: FloatArray, rng: np.random.Generator, leftover: Leftover = "drop") -> BoolArray:
    """Round y (V, M) in [0, 1] row by row: sum_m s_m x_m = sum_m s_m y_m up to one entry per row, and E[x] = y.

    Two fractional entries of a row trade size until one of them is 0 or 1. Pairs meet in a binary tree over the models, so
    all rows and all pairs of a level are done at once, and every tree node draws one number whether it needs it or not
    (the same generator state gives like placements for like y). With unequal sizes one fractional entry nearly always stays:
    `drop` leaves it out (never above the sum; its marginal is lost), `bernoulli` draws it (E[x] = y holds exactly; the
    sum may be exceeded by less than that one model), `fill` is `drop` here, see `fill`.
    """
    rows, count = y.shape
    x = _snap(y)
    open_ = np.where((x > 0.0) & (x < 1.0), np.arange(count), -1)  # (V, width) the fractional entry below each tree node
    while open_.shape[1] > 1:
        if open_.shape[1] % 2:
            open_ = np.pad(open_, ((0, 0), (0, 1)), constant_values=-1)
        left, right = open_[:, 0::2], open_[:, 1::2]
        draw = np.asarray(rng.random(left.shape), dtype=np.float64)
        up = np.maximum(left, right)  # where only one is fractional it moves up
        row, place = np.nonzero((left >= 0) & (right >= 0))
        if len(row):
            i, j = left[row, place], right[row, place]
            up[row, place] = _trade(x, size, row, i, j, draw[row, place])
        open_ = up
    last = open_[:, 0]
    row = np.flatnonzero(last >= 0)
    one_each = np.asarray(rng.random(rows), dtype=np.float64)
    if leftover == "bernoulli":
        x[row, last[row]] = np.where(one_each[row] < x[row, last[row]], 1.0, 0.0)
    else:
        x[row, last[row]] = 0.0
    result: BoolArray = x > 0.5
    return result


def fill(x: BoolArray, y: FloatArray, size: FloatArray, budget: FloatArray, choosable: BoolArray) -> BoolArray:
    """Add to x (V, M), row by row, the choosable models with the largest y that still fit into `budget` (V,).

    Uses what DepRound's lost entry left free. The gain is monotone, so it never falls.
    """
    x = x.copy()
    left = budget - np.where(x, size, 0.0).sum(axis=1)
    rows = np.arange(len(left))
    while True:
        score = np.where(choosable & ~x & (size <= left[:, None]), y, 0.0)
        best = np.argmax(score, axis=1)
        takes = score[rows, best] > 0
        if not takes.any():
            return x
        x[rows[takes], best[takes]] = True
        left[takes] -= size[rows[takes], best[takes]]


def _trade(x: FloatArray, size: FloatArray, row: IntArray, i: IntArray, j: IntArray, draw: FloatArray) -> IntArray:
    """One step for many pairs (i, j), in place; returns which of the two is still fractional, -1 for none."""
    ratio = size[row, i] / size[row, j]
    xi, xj = x[row, i], x[row, j]
    rise = np.minimum(1.0 - xi, xj / ratio)  # i up by this, j down by ratio times this
    fall = np.minimum(xi, (1.0 - xj) / ratio)
    change = np.where(draw * (rise + fall) < fall, rise, -fall)
    xi, xj = xi + change, xj - change * ratio
    xi, xj = _snap(xi), _snap(xj)
    x[row, i], x[row, j] = xi, xj
    return np.where((xi > 0.0) & (xi < 1.0), i, np.where((xj > 0.0) & (xj < 1.0), j, -1))


def _snap(values: FloatArray) -> FloatArray:
    return np.where(values < _EXACT, 0.0, np.where(values > 1.0 - _EXACT, 1.0, values))
