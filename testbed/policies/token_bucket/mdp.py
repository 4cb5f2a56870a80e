"""Optimal metric thresholds per token level by value iteration, and the exact Markov chain that judges any thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.policies.token_bucket.bucket import Bucket

DISCOUNT = 0.9999
MAX_SWEEPS = 10_000
TOLERANCE = 1e-6  # of the range of the metric
COST_TOLERANCE = 1e-6  # change, in a sweep, of what a token is worth at any level

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """The thresholds worth choosing among, from the highest (never) to the lowest: a concave curve.

    `share` (K,) of images at or above each threshold (F), `reward` (K,) their summed reward over all images (G).
    """

    threshold: FloatArray
    share: FloatArray
    reward: FloatArray

    @classmethod
    def of(cls, metric: npt.ArrayLike, reward: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Choices:
        """From training images: `metric` (N,), true `reward` (N,), `weight` (N,) of each image (equal by default).

        A sweep maximises G - c*F over all thresholds, for some c >= 0 per level. The maximum of a linear function lies on the
        upper concave hull of the points (F, G), so only the hull is kept: same optimum, a few hundred points.
        """
        m, r = np.asarray(metric, float), np.asarray(reward, float)
        w = np.full(len(m), 1.0 / len(m)) if weight is None else np.asarray(weight, float) / np.sum(weight)
        order = np.argsort(-m, kind="stable")
        m, w, gain = m[order], w[order], (w * r)[order]
        last = np.append(np.flatnonzero(np.diff(m)), len(m) - 1)  # of each run of equal metrics
        share = np.append(0.0, np.cumsum(w)[last])
        total = np.append(0.0, np.cumsum(gain)[last])
        keep = _upper_hull(share, total)
        return cls(np.append(np.inf, m[last])[keep], share[keep], total[keep])

    def best(self, cost: FloatArray) -> npt.NDArray[np.intp]:
        """Index of the threshold that maximises G - cost*F, for each cost (L,); the highest threshold of equals."""
        slope = np.diff(self.reward) / np.diff(self.share)  # decreasing along the hull
        return np.searchsorted(-slope, -cost, side="left")


def _upper_hull(x: FloatArray, y: FloatArray) -> list[int]:
    """Indices of the upper concave hull of points with increasing x, up to its maximum (costs are not negative)."""
    hull: list[int] = []
    for i in range(int(np.argmax(y)) + 1):
        while len(hull) > 1 and ((x[hull[-1]] - x[hull[-2]]) * (y[i] - y[hull[-2]])
                                 >= (y[hull[-1]] - y[hull[-2]]) * (x[i] - x[hull[-2]])):
            hull.pop()
        hull.append(i)
    return hull


@dataclass(frozen=True)
class Thresholds:
    """Offload iff n >= P and the metric is at least `values[n - P]`; `values` (L,) do not rise with n.

    `sweeps` tells how long value iteration took; `converged` is False when it was cut off at MAX_SWEEPS.
    """

    bucket: Bucket
    values: FloatArray
    sweeps: int = 0
    converged: bool = True

    def required(self, metric: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
        """The least level, in parts, from which an image with this metric is offloaded; same shape as `metric`."""
        falling = np.minimum.accumulate(self.values)
        first = np.searchsorted(-falling, -np.asarray(metric, float), side="left")
        return (self.bucket.token + first).astype(np.int32)


def solve(bucket: Bucket, choices: Choices, intervals: Sequence[int] = (1,), weights: Sequence[float] = (1.0,),
          discount: float = DISCOUNT) -> Thresholds:
    """Value iteration of the offloading MDP; images independent, interval drawn anew after each arrival.

    n <  P: V(n) = d E V(min(n + Q I, M));
    n >= P: V(n) = max_theta G + d E [F V(n - P + Q I) + (1 - F) V(min(n + Q I, M))].

    `intervals` and their `weights`: the distribution of I; (1,) is the periodic arrival of the SEC 2021 paper. Ends when the
    thresholds move by less than 1e-6 of the metric's range and the worth of a token at each level by less than 1e-6, or after
    10,000 sweeps. The values themselves converge slowly: n + Q and n - P + Q are equal modulo P, so with Q = 1 the chain is
    nearly periodic; what a token is worth compares levels of one class only.
    """
    p, q, m = bucket.token, bucket.refill, bucket.depth
    chance = np.asarray(weights, float) / np.sum(weights)
    level = np.arange(m + 1)
    gain = q * np.asarray(intervals)[:, None]
    keep = np.minimum(m, level + gain)  # (I, M+1) next level when the token is kept
    after = np.minimum(m, level[p:] - p + gain)  # (I, L) and when it is spent
    finite = choices.threshold[np.isfinite(choices.threshold)]
    tolerance = TOLERANCE * float(np.ptp(finite)) if len(finite) else 0.0
    top = float(finite[0]) + 1.0 if len(finite) else 1.0
    value, before, worth_before = np.zeros(m + 1), np.full(bucket.levels, np.inf), np.full(bucket.levels, np.inf)
    for sweep in range(1, MAX_SWEEPS + 1):
        stay = discount * (chance @ value[keep])  # (M+1,)
        worth = stay[p:] - discount * (chance @ value[after])  # (L,) of a token
        chosen = choices.best(worth)
        stay[p:] += choices.reward[chosen] - choices.share[chosen] * worth
        value = stay - stay[0]  # only differences matter
        theta = np.minimum(choices.threshold[chosen], top)
        if np.abs(theta - before).max() <= tolerance and np.abs(worth - worth_before).max() < COST_TOLERANCE:
            return Thresholds(bucket, choices.threshold[chosen], sweep)
        before, worth_before = theta, worth
    return Thresholds(bucket, choices.threshold[chosen], MAX_SWEEPS, False)


def average_reward(thresholds: Thresholds, metric: npt.ArrayLike, reward: npt.ArrayLike,
                   weight: npt.ArrayLike | None = None) -> float:
    """Exact mean reward per arrival of any thresholds, images independent and I = 1: stationary chain over the levels."""
    m, r = np.asarray(metric, float), np.asarray(reward, float)
    w = np.full(len(m), 1.0 / len(m)) if weight is None else np.asarray(weight, float) / np.sum(weight)
    bucket = thresholds.bucket
    at_or_above = m[None, :] >= thresholds.values[:, None]  # (L, N)
    share, gain = at_or_above @ w, at_or_above @ (w * r)
    stationary = stationary_levels(bucket, share)
    return float(stationary[bucket.token:] @ gain)


def stationary_levels(bucket: Bucket, share: npt.NDArray[np.floating]) -> FloatArray:
    """Stationary distribution (M+1,) of the level that an arrival finds, from the share offloaded at each level (L,), I = 1."""
    size = bucket.depth + 1
    move = np.zeros((size, size))
    for n in range(size):
        up = min(bucket.depth, n + bucket.refill)
        f = share[n - bucket.token] if n >= bucket.token else 0.0
        move[n, up] += 1 - f
        if f > 0:
            move[n, min(bucket.depth, n - bucket.token + bucket.refill)] += f
    # the level that a full bucket leads to in the long run: cut the chain to what it can reach
    reached, frontier = {bucket.depth}, [bucket.depth]
    while frontier:
        for other in np.flatnonzero(move[frontier.pop()]):
            if int(other) not in reached:
                reached.add(int(other))
                frontier.append(int(other))
    states = sorted(reached)
    system = move[np.ix_(states, states)].T - np.eye(len(states))
    system[-1] = 1.0  # one of the balance equations follows from the others; the shares add up to 1
    found = np.zeros(size)
    found[states] = np.linalg.solve(system, np.append(np.zeros(len(states) - 1), 1.0))
    return found
