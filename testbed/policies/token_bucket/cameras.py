"""Several cameras on one shared token bucket: isolated, hierarchical with a switch that drops, smart switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.errors import InputError
from testbed.policies.token_bucket.bucket import BoolArray, Bucket, spend
from testbed.policies.token_bucket.mdp import Choices, Thresholds, solve

FloatArray = npt.NDArray[np.float64]
_ONE = np.ones((1, 1), np.int64)


@dataclass(frozen=True)
class Delivered:
    """`sent` by the cameras and `delivered` to the strong model, both (S, K, T). A dropped image keeps its weak answer."""

    sent: BoolArray
    delivered: BoolArray


def shared_bucket(bucket: Bucket, cameras: int) -> Bucket:
    """K times the rate and the depth of one camera's bucket, in time between arrivals of the merged stream.

    Cameras take turns, so K images arrive per unit of time, evenly spaced, and each brings the refill of one camera.
    """
    return Bucket(bucket.refill, bucket.token, cameras * bucket.depth)


def isolated(thresholds: Thresholds, metric: FloatArray) -> Delivered:
    """Each camera keeps a bucket of its own; metric (S, K, T)."""
    sent = _spend(thresholds, metric.reshape(-1, metric.shape[2])).reshape(metric.shape)
    return Delivered(sent, sent)


def hierarchical(bucket: Bucket, own: Thresholds, metric: FloatArray) -> Delivered:
    """Cameras send by the thresholds of an over-subscribed bucket `own`; a switch with the shared bucket drops what is too much.

    `bucket` is one camera's share of the shared bucket, metric (S, K, T).
    """
    sent = _spend(own, metric.reshape(-1, metric.shape[2])).reshape(metric.shape)
    shared = shared_bucket(bucket, metric.shape[1])
    merged = merge(sent)
    passed = spend(shared, np.where(merged, shared.token, shared.never), np.broadcast_to(_ONE, (1, merged.shape[1])))
    return Delivered(sent, split(passed, metric.shape[1]))


def smart_switch(thresholds: Thresholds, metric: FloatArray) -> Delivered:
    """One decision maker with the shared bucket sees the merged stream; `thresholds` are of `shared_bucket`, metric (S, K, T)."""
    sent = split(_spend(thresholds, merge(metric)), metric.shape[1])
    return Delivered(sent, sent)


def over_subscribe(bucket: Bucket, cameras: int, choices: Choices, metric: FloatArray, reward: FloatArray,
                   rates: Sequence[float], depths: Sequence[float],
                   progress: Callable[[float], None] = lambda share: None) -> tuple[float, float, Thresholds]:
    """Rate and depth of the cameras' own buckets with the most reward behind the switch, on training data (S, K, T)."""
    if metric.shape[1] != cameras:
        raise InputError("has another number of cameras", key="metric", value=metric.shape, remedy=f"give (S, {cameras}, T)")
    best: tuple[float, float, float, Thresholds] | None = None
    for i, (rate, depth) in enumerate((r, b) for r in rates for b in depths):
        own = solve(Bucket.of(rate, depth), choices)
        gain = float((hierarchical(bucket, own, metric).delivered * reward).mean())
        if best is None or gain > best[0]:
            best = gain, rate, depth, own
        progress((i + 1) / (len(rates) * len(depths)))
    assert best is not None  # the schema asks for values
    return best[1], best[2], best[3]


def merge(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(S, K, T) -> (S, T*K): at each time the cameras one after the other."""
    return values.transpose(0, 2, 1).reshape(len(values), -1)


def split(values: BoolArray, cameras: int) -> BoolArray:
    """(S, T*K) -> (S, K, T), the inverse of `merge`."""
    return values.reshape(len(values), -1, cameras).transpose(0, 2, 1)


def _spend(thresholds: Thresholds, metric: npt.NDArray[np.generic]) -> BoolArray:
    required = thresholds.required(np.asarray(metric, float))
    return spend(thresholds.bucket, required, np.broadcast_to(_ONE, (1, required.shape[1])))
