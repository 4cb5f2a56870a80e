"""The analytic side of a comparison: the bucket of the studies on their schedule, and windows counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.policies.token_bucket.analytic import Agreement, decide, excess_tokens
from testbed.policies.token_bucket.bucket import Bucket, spend


@pytest.mark.parametrize("bucket", [Bucket(1, 4, 16), Bucket(1, 10, 13), Bucket(7, 9, 40)])
def test_on_the_studies_schedule_it_decides_as_they_do(bucket: Bucket) -> None:
    rng = np.random.default_rng(bucket.depth)
    h = rng.uniform(0, 2.3, 2000)
    table = [None, *np.sort(rng.uniform(0.5, 2.0, bucket.levels - 1))[::-1].tolist()]  # falling, as thresholds do
    intervals = rng.integers(1, 4, 2000)
    scheduled_ns = np.concatenate([[0], np.cumsum(intervals[:-1])]) * 250_000_000 + 17
    first = np.array([next((level for level, t in enumerate(table, bucket.token) if t is not None and x > t), bucket.never)
                      for x in h])
    expected = spend(bucket, first[None], intervals[None])[0]
    ends = [None if t is None else (t, np.inf) for t in table]
    assert (decide(bucket, 250_000_000, ends, h, scheduled_ns) == expected).all() and expected.any()
    rounded = (scheduled_ns * (1e9 / 3) / 250_000_000).astype(np.int64)  # three a second: no whole number of ns
    assert (decide(bucket, 333_333_333, ends, h, rounded) == expected).all()


def test_excess_is_that_of_the_worst_window() -> None:
    rng = np.random.default_rng(3)
    bucket, unit_ns = Bucket(1, 4, 8), 1000
    for _ in range(50):
        times = np.sort(rng.integers(0, 60_000, 20))
        counts = [(j - i + 1) - bucket.tokens - bucket.rate * (times[j] - times[i]) / unit_ns
                  for i in range(20) for j in range(i, 20)]
        assert excess_tokens(bucket, unit_ns, times) == pytest.approx(max(0.0, *counts))
    assert excess_tokens(bucket, unit_ns, np.zeros(0, np.int64)) == 0


def test_verdicts() -> None:
    same = Agreement("device1", 100, 25, 25, 1.0, 0.8, 0.8, 0.01, 0.3, 0.0)
    assert same.agrees and same.conforms
    assert same.accuracy_error == pytest.approx(1.96 * 0.04) and same.offload_error == pytest.approx(1.96 * np.sqrt(18.75))
    assert not Agreement("device1", 100, 35, 25, 0.9, 0.8, 0.8, 0.01, 0.3, 0.0).agrees
    assert not Agreement("device1", 100, 25, 25, 1.0, 0.7, 0.8, 0.01, 0.3, 0.0).agrees
    assert not Agreement("device1", 100, 25, 25, 1.0, 0.8, 0.8, 0.31, 0.3, 0.0).conforms, "it waited for a whole image"
    assert not Agreement("device1", 100, 25, 25, 1.0, 0.8, 0.8, 0.01, 0.3, 0.5).conforms, "half a token too much"
