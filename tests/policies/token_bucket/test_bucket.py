"""The token bucket: rational form, conformance in every window, and the same decisions as a bucket written step by step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.policies.token_bucket.bucket import Bucket, levels_of, spend, spend_by_level

BUCKETS = st.tuples(st.integers(1, 100).map(lambda k: k / 100), st.sampled_from([1, 1.5, 2, 3.25, 7])).map(lambda rb: Bucket.of(*rb))


@given(st.floats(0.01, 5), st.floats(1, 50))
def test_the_rational_form_never_exceeds_what_was_asked_and_comes_close(rate: float, depth: float) -> None:
    bucket = Bucket.of(rate, depth)
    r, b = Fraction(repr(rate)), Fraction(repr(depth))
    assert bucket.token <= 100
    assert Fraction(bucket.refill, bucket.token) <= r and Fraction(bucket.depth, bucket.token) <= b
    missed = (rate - bucket.rate) / rate + (depth - bucket.tokens) / depth
    assert missed <= 0.01 / rate + 0.01 / depth + 1e-9, "at most what rounding down to hundredths of a token misses"


def test_round_rates_are_exact() -> None:
    assert Bucket.of(0.05, 5) == Bucket(1, 20, 100)
    assert Bucket.of(0.25, 2) == Bucket(1, 4, 8)
    assert Bucket.of(0.3, 1) == Bucket(3, 10, 10)


@pytest.mark.parametrize(("rate", "depth"), [(0.001, 1), (0.1, 0.5), (0.0, 2)])
def test_what_no_bucket_can_do_is_refused(rate: float, depth: float) -> None:
    with pytest.raises(InputError):
        Bucket.of(rate, depth)


def by_hand(bucket: Bucket, wants: np.ndarray, intervals: np.ndarray) -> list[bool]:
    """One sequence, exact fractions: a token bucket as a text book has it. `wants` (T, levels in parts)."""
    level, out = Fraction(bucket.depth, bucket.token), []
    for t in range(len(wants)):
        go = bool(level >= 1 and wants[t, int(level * bucket.token)])
        out.append(go)
        level = min(Fraction(bucket.depth, bucket.token), level - go + Fraction(bucket.refill, bucket.token) * int(intervals[t]))
    return out


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(0, 2**31))
def test_both_simulations_are_the_text_book_bucket(bucket: Bucket, seed: int) -> None:
    rng = np.random.default_rng(seed)
    intervals = rng.integers(1, 4, size=(3, 60))
    required = rng.integers(0, bucket.never + 1, size=(3, 60))
    by_threshold = spend(bucket, required, intervals)
    allowed = np.arange(bucket.token, bucket.depth + 1) >= required[:, :, None]
    first, level = spend_by_level(bucket, allowed[:, :25], intervals[:, :25])
    second, _ = spend_by_level(bucket, allowed[:, 25:], intervals[:, 25:], level)
    for s in range(3):
        expected = by_hand(bucket, np.arange(bucket.depth + 1) >= required[s][:, None], intervals[s])
        assert by_threshold[s].tolist() == expected
        assert np.concatenate((first, second), axis=1)[s].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(BUCKETS, st.integers(0, 2**31))
def test_in_any_window_offloads_conform(bucket: Bucket, seed: int) -> None:
    rng = np.random.default_rng(seed)
    intervals = rng.integers(1, 4, size=(2, 80))
    offload = spend(bucket, np.where(rng.random((2, 80)) < 0.7, bucket.token, bucket.never), intervals)
    for row, gaps in zip(offload, intervals, strict=True):
        at = np.concatenate(([0], np.cumsum(gaps)[:-1]))  # arrival times
        for begin in range(80):
            used = np.cumsum(row[begin:])
            length = at[begin:] - at[begin]
            assert (used * bucket.token <= bucket.depth + bucket.refill * length).all()
    levels = levels_of(bucket, offload, intervals)
    assert levels.min() >= 0 and levels.max() <= bucket.depth
    assert (levels[offload] >= bucket.token).all()


def test_a_full_rate_serves_every_image() -> None:
    bucket = Bucket.of(1.0, 1)
    assert spend(bucket, np.zeros((2, 50), int), np.ones((1, 50), int)).all()
