"""The token bucket in integers, and its simulation over many sequences at once."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from testbed.errors import InputError

MAX_UNIT = 100

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bucket:
    """A token bucket whose levels are counted in parts of a token, so that every level is an integer.

    `refill` parts come in per unit of time (Q), a token has `token` parts (P), `depth` parts fit (M). One token offloads one
    image. Rate r = Q/P tokens per unit of time, depth b = M/P tokens. After a decision a (0 or 1) and an interval I:
    n <- min(M, n - P*a + Q*I); a = 1 needs n >= P. The bucket starts full.
    """

    refill: int
    token: int
    depth: int

    def __post_init__(self) -> None:
        if self.refill < 1 or self.token < 1 or self.depth < self.token:
            raise InputError("is no token bucket", key="bucket", value=(self.refill, self.token, self.depth),
                             remedy="the rate must be positive, and one token must fit")

    @classmethod
    def of(cls, rate: float, depth: float, max_unit: int = MAX_UNIT) -> Bucket:
        """The bucket with at most `max_unit` parts per token that comes closest to, and never exceeds, rate and depth.

        `rate` in tokens per unit of time, `depth` in tokens. Raises InputError when a token does not fit, or when the rate is
        below 1/max_unit.
        """
        wanted_rate, wanted_depth = Fraction(repr(float(rate))), Fraction(repr(float(depth)))
        if wanted_depth < 1:
            raise InputError("is less than one token", key="depth", value=depth, remedy="use 1 or more")
        best: tuple[Fraction, Bucket] | None = None
        for unit in range(1, max_unit + 1):
            refill, full = int(wanted_rate * unit), int(wanted_depth * unit)  # rounds down
            if refill < 1:
                continue
            error = (wanted_rate - Fraction(refill, unit)) / wanted_rate + (wanted_depth - Fraction(full, unit)) / wanted_depth
            if best is None or error < best[0]:
                best = error, cls(refill, unit, full)
        if best is None:
            raise InputError(f"is below 1/{max_unit} token per unit of time", key="rate", value=rate,
                             remedy=f"use {1 / max_unit:g} or more, or another unit of time")
        return best[1]

    @property
    def rate(self) -> float:
        """Tokens per unit of time."""
        return self.refill / self.token

    @property
    def tokens(self) -> float:
        """Depth in tokens."""
        return self.depth / self.token

    @property
    def levels(self) -> int:
        """Number of levels from which an image can be offloaded: n = token..depth."""
        return self.depth - self.token + 1

    @property
    def never(self) -> int:
        """A level that is never reached."""
        return self.depth + 1


def spend(bucket: Bucket, required: npt.NDArray[np.integer], intervals: npt.NDArray[np.integer]) -> BoolArray:
    """Offload wherever the level is at least `required` (and a token is there).

    Parameters
    ----------
    required: (S, T) least level, in parts, from which each image is offloaded; `bucket.never` for never.
    intervals: (S, T) or (1, T), time from each arrival to the next, in units of time.

    Returns
    -------
    (S, T) True where the image is offloaded.
    """
    sequences, arrivals = required.shape
    offload = np.empty((arrivals, sequences), bool)
    # time first: each step reads and writes one run of memory
    least = np.maximum(required, bucket.token).T.astype(np.int32, order="C")
    gain = np.ascontiguousarray(np.broadcast_to(intervals.T, (arrivals, intervals.shape[0])), np.int32) * np.int32(bucket.refill)
    level = np.full(sequences, bucket.depth, np.int32)
    paid = np.empty(sequences, np.int32)
    token, depth = np.int32(bucket.token), np.int32(bucket.depth)
    for t in range(arrivals):
        np.greater_equal(level, least[t], out=offload[t])
        np.multiply(offload[t], token, out=paid)
        level -= paid
        level += gain[t]
        np.minimum(level, depth, out=level)
    return offload.T


def spend_by_level(bucket: Bucket, allowed: BoolArray, intervals: npt.NDArray[np.integer],
                   level: npt.NDArray[np.int32] | None = None) -> tuple[BoolArray, npt.NDArray[np.int32]]:
    """Offload where a decision for the level says so: for policies that are no thresholds in the level.

    Parameters
    ----------
    allowed: (S, T, L) decision for every level token..depth.
    intervals: (S, T) or (1, T), time from each arrival to the next.
    level: (S,) levels to begin with; full by default.

    Returns
    -------
    (S, T) True where offloaded, and the levels (S,) after the last interval, to go on from.
    """
    sequences, arrivals, _ = allowed.shape
    offload = np.empty((sequences, arrivals), bool)
    gain = np.broadcast_to(intervals, (sequences, arrivals)).astype(np.int32) * bucket.refill
    now = np.full(sequences, bucket.depth, np.int32) if level is None else level.copy()
    row = np.arange(sequences)
    for t in range(arrivals):
        above = now - bucket.token
        offload[:, t] = (above >= 0) & allowed[row, t, np.maximum(above, 0)]
        now = np.minimum(bucket.depth, now - bucket.token * offload[:, t] + gain[:, t]).astype(np.int32)
    return offload, now


def levels_of(bucket: Bucket, offload: BoolArray, intervals: npt.NDArray[np.integer]) -> IntArray:
    """The level (S, T) that each arrival finds, in parts, given what was offloaded (S, T)."""
    sequences, arrivals = offload.shape
    found = np.empty((sequences, arrivals), np.int64)
    level = np.full(sequences, bucket.depth, np.int64)
    steps = np.broadcast_to(intervals, offload.shape)
    for t in range(arrivals):
        found[:, t] = level
        level = np.minimum(bucket.depth, level - bucket.token * offload[:, t] + bucket.refill * steps[:, t])
    return found
