"""`Trace`: the oracle is a loop over segments in Python's unbounded integers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.traces import Trace, concatenate, constant, device_offset_ns

# at most 10**14 bit/s, so that the instants below stay within 64 bits
SEGMENTS = st.lists(
    st.tuples(st.integers(10**6, 10**12), st.integers(0, 10**11), st.floats(0, 5), st.floats(0, 1)),
    min_size=1,
    max_size=6,
)
INSTANTS = st.integers(-(10**13), 10**13)


def build(segments: list[tuple[int, int, float, float]], packet_bits: int | None) -> Trace:
    lengths, bits, delay_s, loss = zip(*segments, strict=True)
    unit = packet_bits or 1
    return Trace(
        np.concatenate(([0], np.cumsum(lengths))),
        np.array(bits) // unit * unit,
        packet_bits=packet_bits,
        delay_s=np.array(delay_s),
        loss=np.array(loss),
    )


def allowed_until(trace: Trace, t_ns: int) -> int:
    """Bits allowed in [0, t): floor of the cumulative step function, in whole packets within a segment."""
    laps, inside = divmod(t_ns, trace.duration_ns)
    total = laps * int(trace.bits.sum())
    for (begin, end), bits in zip(pairwise(trace.times_ns.tolist()), trace.bits.tolist(), strict=True):
        if inside >= end:
            total += bits
        elif inside > begin:
            part = bits * (inside - begin) // (end - begin)
            total += part - (part % trace.packet_bits if trace.packet_bits else 0)
    return total


@given(SEGMENTS, st.sampled_from([None, 12_000]), INSTANTS, INSTANTS)
def test_bits_between_is_the_exact_difference_of_floors(segments, packet_bits, t0, t1):
    trace = build(segments, packet_bits)
    t0, t1 = sorted((t0, t1))
    assert trace.bits_between(t0, t1) == allowed_until(trace, t1) - allowed_until(trace, t0)


@given(SEGMENTS, st.sampled_from([None, 12_000]), st.lists(INSTANTS, min_size=3, max_size=8))
def test_intervals_telescope(segments, packet_bits, instants):
    trace, cuts = build(segments, packet_bits), sorted(instants)
    assert sum(trace.bits_between(a, b) for a, b in pairwise(cuts)) == trace.bits_between(cuts[0], cuts[-1])


@given(SEGMENTS, INSTANTS, st.integers(1, 5))
def test_it_wraps_around(segments, start, laps):
    trace = build(segments, None)
    assert trace.bits_between(start, start + laps * trace.duration_ns) == laps * trace.total_bits


@given(SEGMENTS, st.integers(1, 10**12), st.integers(0, 40), INSTANTS)
def test_bits_per_step_is_bits_between_of_every_step(segments, step, steps, offset):
    trace = build(segments, None)
    expected = [trace.bits_between(offset + k * step, offset + (k + 1) * step) for k in range(steps)]
    assert trace.bits_per_step(step, steps, offset).tolist() == expected


@given(SEGMENTS, st.sampled_from([None, 12_000]), INSTANTS)
def test_shifted_begins_elsewhere_and_changes_nothing_else(segments, packet_bits, offset):
    trace = build(segments, packet_bits)
    moved = trace.shifted(offset)
    assert (moved.duration_ns, moved.total_bits) == (trace.duration_ns, trace.total_bits)
    for border in moved.times_ns.tolist():
        assert moved.bits_between(0, border) == trace.bits_between(offset, offset + border)
    for t in (0, trace.duration_ns // 3, trace.duration_ns - 1):
        assert moved.delay_s is not None and trace.delay_s is not None
        assert moved.delay_s[moved.segment_at(t)] == trace.delay_s[trace.segment_at(t + offset)]


@given(SEGMENTS, st.sampled_from([None, 12_000]), st.floats(1e-3, 1e3))
def test_scaled_is_off_by_less_than_one_unit(segments, packet_bits, factor):
    trace = build(segments, packet_bits)
    off = trace.total_bits * factor - trace.scaled(factor).total_bits
    assert -1e-3 * abs(off) - 1 <= off < (packet_bits or 1) + 1


@given(SEGMENTS, st.integers(10**9, 10**12))
def test_resampled_keeps_every_bit_and_the_borders(segments, step):
    trace = build(segments, None)
    coarse = trace.resampled(step)
    assert (coarse.duration_ns, coarse.total_bits) == (trace.duration_ns, trace.total_bits)
    for border in coarse.times_ns.tolist()[:-1]:
        assert coarse.bits_between(0, border) == trace.bits_between(0, border)


def test_resampled_averages_delay_over_time():
    trace = Trace(np.array([0, 1, 4]), np.array([0, 0]), delay_s=np.array([1.0, 3.0]))
    assert trace.resampled(4).delay_s == pytest.approx([(1 * 1 + 3 * 3) / 4])


def test_clipped_cuts_rates_and_moves_nothing():
    trace = Trace(np.array([0, 10**9, 3 * 10**9]), np.array([5_000_000, 1_000_000]))
    assert trace.clipped(2e6).bits.tolist() == [2_000_000, 1_000_000]


def test_clipped_opportunities_keep_whole_packets_per_100_ms():
    bits = np.full(200, 12_000)  # a packet per millisecond: 12 Mbit/s
    trace = Trace(np.arange(201) * 10**6, bits, packet_bits=12_000)
    clipped = trace.clipped(1.2e6)  # 10 packets per 100 ms
    assert clipped.bits_per_step(10**8, 2).tolist() == [120_000, 120_000]
    assert clipped.bits[:11].tolist() == [12_000] * 10 + [0]


@given(SEGMENTS, SEGMENTS)
def test_concatenate_plays_one_after_the_other(first, second):
    a, b = build(first, None), build(second, None)
    both = concatenate([a, b])
    assert both.duration_ns == a.duration_ns + b.duration_ns
    assert both.bits_between(0, a.duration_ns) == a.total_bits
    t = b.duration_ns // 2
    assert both.bits_between(a.duration_ns, a.duration_ns + t) == b.bits_between(0, t)


def test_ten_gigabit_over_a_minute_does_not_overflow():
    trace = constant(10_000_000_000, 60 * 10**9)
    assert trace.bits_between(0, 12_345_678_901) == 123_456_789_010
    assert int(trace.bits_per_step(10**7, 6000).sum()) == 600_000_000_000


def test_more_laps_than_64_bits_can_count_are_exact_or_refused():
    trace = Trace(np.array([0, 1000]), np.array([10**12]))
    assert trace.bits_between(0, 10**13) == 10**22
    assert trace.bits_per_step(500, 2, offset_ns=10**18).tolist() == [5 * 10**11] * 2
    with pytest.raises(InputError, match="62 bits"):
        trace.bits_per_step(10**12, 10)


def test_device_offsets_are_seeded_independent_and_inside_the_period():
    trace = constant(1_000_000, 150 * 10**9)
    offsets = [device_offset_ns(trace, 7, device) for device in range(5)]
    assert offsets == [device_offset_ns(trace, 7, device) for device in range(5)]
    assert len(set(offsets)) == 5 and all(0 <= offset < trace.duration_ns for offset in offsets)
    assert offsets != [device_offset_ns(trace, 8, device) for device in range(5)]


def test_identity_is_the_content():
    trace = Trace(np.array([0, 5]), np.array([10]), name="a")
    assert trace == Trace(np.array([0, 5]), np.array([10]), name="b")
    assert trace != Trace(np.array([0, 6]), np.array([10]))
    with pytest.raises(ValueError):
        trace.bits[0] = 1  # frozen in depth


@pytest.mark.parametrize(
    ("times", "bits", "extra"),
    [
        ([0], [], {}),
        ([1, 2], [1], {}),
        ([0, 5, 5], [1, 1], {}),
        ([0, 5], [-1], {}),
        ([0, 5], [1, 2], {}),
        ([0, 5], [5], {"packet_bits": 12_000}),
        ([0, 5], [5], {"loss": np.array([1.5])}),
        ([0, 5], [5], {"delay_s": np.array([np.nan])}),
    ],
)
def test_nonsense_is_refused(times, bits, extra):
    with pytest.raises(InputError):
        Trace(np.array(times), np.array(bits), **extra)
