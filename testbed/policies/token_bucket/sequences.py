"""Sequences of images and of the times between them: independent, location reset, periodic, Markov-modulated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Generator = np.random.Generator


def independent(images: int, sequences: int, length: int, rng: Generator) -> IntArray:
    """Image numbers (sequences, length), each uniform over 0..images-1."""
    return rng.integers(images, size=(sequences, length))


def location_reset(metric: npt.ArrayLike, spread: float, reset: float, sequences: int, length: int,
                   rng: Generator) -> IntArray:
    """Image numbers (sequences, length) whose metrics are correlated: a camera that looks at one place for a while.

    Images are sorted by `metric` (N,). A location is uniform on the sorted list; each image is the location plus a uniform
    number below spread*N, modulo N; before each image, with probability `reset`, the location is drawn anew. The part of
    the metric that is due to the location has correlation (1 - reset)^k at lag k.
    """
    order = np.argsort(np.asarray(metric), kind="stable")
    n = len(order)
    anew = rng.random((sequences, length)) < reset
    anew[:, 0] = True
    # index of the last reset at or before each arrival; a location is drawn at every arrival and used from a reset on
    since = np.maximum.accumulate(np.where(anew, np.arange(length), 0), axis=1)
    drawn = rng.integers(n, size=(sequences, length))
    location = np.take_along_axis(drawn, since, axis=1)
    offset = rng.integers(max(1, round(spread * n)), size=(sequences, length))
    return np.asarray(order[(location + offset) % n], np.int64)


def periodic(interval: int = 1) -> IntArray:
    """One interval for all: (1, 1), which stands for any number of sequences and arrivals."""
    return np.full((1, 1), interval, np.int64)


def markov_modulated(intervals: tuple[int, int], leave: tuple[float, float], sequences: int, length: int,
                     rng: Generator) -> IntArray:
    """Intervals (sequences, length) of a source with two states, each with an interval of its own, in units of time.

    The time in state i is geometric with mean 1/leave[i]: the state is left with probability leave[i] per unit of time, so
    after an arrival with probability 1 - (1 - leave[i])^intervals[i]. Begins in the stationary state of the arrivals.
    """
    per_arrival = [1 - (1 - p) ** i for i, p in zip(intervals, leave, strict=True)]
    result = np.empty((sequences, length), np.int64)
    chance = per_arrival[1] / (per_arrival[0] + per_arrival[1])  # of state 0
    for row in result:
        state, t = int(rng.random() >= chance), 0
        while t < length:
            stay = min(int(rng.geometric(per_arrival[state])), length - t)
            row[t:t + stay] = intervals[state]
            t, state = t + stay, 1 - state
    return result


def mean_interval(intervals: tuple[int, int], leave: tuple[float, float]) -> float:
    """Mean time between arrivals of `markov_modulated`: mean time in both states over mean arrivals in both."""
    arrivals = [1 / (1 - (1 - p) ** i) for i, p in zip(intervals, leave, strict=True)]
    return float(np.dot(arrivals, intervals) / sum(arrivals))
