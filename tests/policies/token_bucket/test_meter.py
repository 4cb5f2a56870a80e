"""The level of a running bucket: that of the analytic one on the same schedule, and never above what a conforming one has."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.meter import Meter
from testbed.policies.token_bucket.wire import bucket_of, offload_bytes

UNIT_NS = 333_333_333  # no whole number of parts per ns


def exact(bucket: Bucket, times_ns: list[int], spends: list[bool]) -> list[int]:
    """Whole parts that each instant finds, in integers: level x UNIT_NS."""
    level, found, before = bucket.depth * UNIT_NS, [], times_ns[0]
    for t_ns, spend in zip(times_ns, spends, strict=True):
        level = min(bucket.depth * UNIT_NS, level + bucket.refill * (t_ns - before))
        found.append(level // UNIT_NS)
        level, before = level - bucket.token * UNIT_NS * spend, t_ns
    return found


@pytest.mark.parametrize("bucket", [Bucket(1, 4, 16), Bucket(1, 10, 13), Bucket(7, 9, 40)])
def test_requests_that_do_not_overlap_find_the_exact_level(bucket: Bucket) -> None:
    rng = np.random.default_rng(bucket.depth)
    times = np.cumsum(rng.integers(1, 3 * UNIT_NS, 3000)).tolist()
    times[1000:] = (times[999] + UNIT_NS * np.arange(1, 2001)).tolist()  # periodic: levels are whole numbers
    meter, found, spends = Meter(bucket, UNIT_NS), [], []
    for i, t_ns in enumerate(times):
        found.append(meter.at(t_ns))
        spends.append(bool(found[-1] >= bucket.token and rng.random() < 0.7))
        if spends[-1] or i % 3 == 0:
            meter.open(str(i))
            assert meter.open_count == 1
            meter.close(str(i), spends[-1])
    expected = exact(bucket, times, spends)
    assert found[1000:] == expected[1000:]
    assert np.mean(np.array(found) == expected) > 0.998, "but for levels within a ten-thousandth of a whole part"


def test_a_token_that_was_kept_is_as_if_the_request_had_not_been_there() -> None:
    rng = np.random.default_rng(5)
    bucket = Bucket(1, 3, 9)
    times = np.cumsum(rng.integers(1, 2 * UNIT_NS, 400)).tolist()
    meter, under_way = Meter(bucket, UNIT_NS), []
    events: list[tuple[int, bool]] = []
    for i, t_ns in enumerate(times):
        parts = meter.at(t_ns)
        known = [(t, spent) for j, (t, spent) in enumerate(events) if str(j) not in under_way]
        assumed = [(t, spent or str(j) in under_way) for j, (t, spent) in enumerate(events)]
        low = exact(bucket, [t for t, _ in assumed] + [t_ns], [s for _, s in assumed] + [False])[-1]
        assert parts == pytest.approx(max(0, low), abs=1) and parts <= exact(
            bucket, [t for t, _ in known] + [t_ns], [s for _, s in known] + [False])[-1]
        spent = bool(parts >= bucket.token and rng.random() < 0.5)
        events.append((t_ns, spent))
        if parts >= bucket.token:
            meter.open(str(i))
            under_way.append(str(i))
        while under_way and (len(under_way) > 2 or rng.random() < 0.4):
            name = under_way.pop(int(rng.integers(len(under_way))))
            meter.close(name, events[int(name)][1])


def test_a_schedule_that_runs_backwards_brings_no_tokens() -> None:
    meter = Meter(Bucket(1, 1, 1), 10**9)
    assert meter.at(5 * 10**9) == 1
    meter.open("a")
    meter.close("a", True)
    assert meter.at(4 * 10**9) == 0 and meter.at(5 * 10**9) == 0 and meter.at(6 * 10**9) == 1


def test_bytes() -> None:
    assert offload_bytes(0) == 600 + 52
    assert offload_bytes(3072) == 3672 + 3 * 52
    size = offload_bytes(3072)
    bucket = bucket_of(f"{8 * size}bit", f"{2 * size}B", 0.25, size)  # an image per second, in units of 250 ms
    assert (bucket.rate, bucket.tokens) == (0.25, 2)
    for rate, depth in (("1mbit", 4), (0.1, "4KB"), ("1mbit", "4 parsec")):
        with pytest.raises(ValueError, match="rate"):
            bucket_of(rate, depth, 1.0, size)
