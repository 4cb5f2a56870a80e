"""Seeded schedules: when each device issues its requests, and which samples it sends."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from testbed.schema.scenario import Load


def generator(seed: int, repeat: int, purpose: str, index: int = 0) -> np.random.Generator:
    """An independent random stream per (seed, repeat, purpose, index).

    Schedule, samples and deadlines have streams of their own (as in MLPerf's LoadGen), and none depends on the policy: all
    policies of a scenario meet identical arrivals and samples.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(repeat, zlib.crc32(purpose.encode()), index)))


def schedule_ns(kind: str, rate_per_s: float, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Offsets from the start instant in nanoseconds, (count,), non-decreasing.

    `poisson`: exponential gaps of mean 1/rate. `periodic`: gaps of exactly 1/rate after a random phase, so that
    devices do not move in lockstep. `closed` has no schedule: zeros.
    """
    period_ns = 1e9 / rate_per_s
    if kind == "poisson":
        return np.cumsum(rng.exponential(period_ns, count)).astype(np.int64)
    if kind == "periodic":
        return (rng.uniform(0, period_ns) + period_ns * np.arange(count)).astype(np.int64)
    if kind == "closed":
        return np.zeros(count, dtype=np.int64)
    raise ValueError(f"unknown arrival process {kind!r}")


def deadlines_s(load: Load, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds allowed for each request of a device, warm-up first, (count,): `load.deadline`, or drawn per request.

    One number per request is drawn whatever the ranges are: other ranges or pivots move a deadline within its range
    and leave the other requests as they are.
    """
    count = load.warmup_requests + load.requests_per_device
    if load.deadlines is None:
        return np.full(count, load.deadline)
    low, high = (np.full(count, bound) for bound in load.deadlines.uniform)
    for pivot in load.deadlines.pivot:
        where = slice(*(load.warmup_requests + i for i in pivot.requests))
        low[where], high[where] = pivot.uniform
    drawn: NDArray[np.float64] = low + rng.random(count) * (high - low)
    return drawn


def sample_indices(available: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices into the data set, (count,): random permutations one after another, so that samples are used evenly."""
    laps = -(-count // available)
    return np.concatenate([rng.permutation(available) for _ in range(laps)])[:count].astype(np.int64)
