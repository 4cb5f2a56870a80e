"""The policies side by side: never, always, naive quantile, lower bound, MDP thresholds, DQN."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from testbed.policies.token_bucket.bucket import BoolArray, Bucket, spend
from testbed.policies.token_bucket.mdp import Thresholds

FloatArray = npt.NDArray[np.float64]


class Rule(ABC):
    """Decides which arrivals are offloaded, for whole sequences at once."""

    name: ClassVar[str]

    @abstractmethod
    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """Decisions (S, T) from the metrics (S, T) and the times to the next arrival (S, T), (1, T) or (1, 1)."""


class Never(Rule):
    """The weak model answers all."""

    name = "weak"

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """False."""
        return np.zeros(metric.shape, bool)


class Always(Rule):
    """The strong model answers all; there is no bucket."""

    name = "strong"

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """True."""
        return np.ones(metric.shape, bool)


@dataclass(frozen=True)
class Naive(Rule):
    """One threshold, at the quantile that offloads as many images as there are tokens, whenever a token is there."""

    threshold: float
    name: ClassVar[str] = "naive"

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """Decisions (S, T)."""
        required = np.where(metric >= self.threshold, bucket.token, bucket.never)
        return spend(bucket, required, np.broadcast_to(intervals, (intervals.shape[0], metric.shape[1])))


@dataclass(frozen=True)
class LowerBound(Rule):
    """The best images of the same share, without the bucket: no policy that sees the metric loses less, in expectation."""

    threshold: float
    name: ClassVar[str] = "bound"

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """Decisions (S, T)."""
        return np.asarray(metric >= self.threshold)


@dataclass(frozen=True)
class Mdp(Rule):
    """The thresholds of value iteration, one per token level."""

    thresholds: Thresholds
    name: ClassVar[str] = "mdp"

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """Decisions (S, T)."""
        return spend(bucket, self.thresholds.required(metric), np.broadcast_to(intervals, (intervals.shape[0], metric.shape[1])))


def quantile_threshold(training_metric: npt.ArrayLike, rate: float, mean_interval: float = 1.0) -> float:
    """The quantile 1 - rate*mean_interval of the training metrics; 0 at most when every image has a token.

    With a token for every image, offloading pays wherever the metric is positive.
    """
    share = rate * mean_interval
    if share >= 1:
        return float(np.nextafter(0.0, 1.0))
    return float(max(np.quantile(np.asarray(training_metric, float), 1 - share), np.nextafter(0.0, 1.0)))
