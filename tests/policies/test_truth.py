"""When a message arrives over replayed links: closed forms, a step-by-step simulation, and exact round trips."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from testbed.measurement.wire import wire_bytes
from testbed.policies.truth import Capacity, Truth, spans_until
from testbed.traces import Trace, constant

STEP_NS = 10_000_000


def random_trace(seed: int, segments: int = 60) -> Trace:
    """Segments of 1 to 30 ms, a third of them silent, up to 20 Mbit/s."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, segments) * 1_000_000
    bits = (lengths / 1e9 * rng.uniform(0, 20e6, segments) * (rng.random(segments) > 1 / 3)).astype(np.int64)
    return Trace(np.concatenate(([0], np.cumsum(lengths))), bits)


def step_by_step(trace: Trace, offset_ns: int, size_bits: float, t_ns: float) -> float:
    """The replay, one step after the other: a step's bits may leave from its begin (or the message's) on at four times their mean
    rate; the message is alone, so it finds the whole credit of the step in which it comes."""
    step = int(t_ns // STEP_NS)
    left, t = size_bits, t_ns
    while True:
        credit = trace.bits_between(offset_ns + step * STEP_NS, offset_ns + (step + 1) * STEP_NS)
        if credit and left <= credit:
            return t + left * STEP_NS / (4 * credit)
        left -= credit
        step += 1
        t = step * STEP_NS


@pytest.mark.parametrize("seed", range(6))
def test_a_lone_message_leaves_when_a_step_by_step_replay_lets_it(seed: int) -> None:
    trace, rng = random_trace(seed), np.random.default_rng(100 + seed)
    offset_ns = int(rng.integers(0, trace.duration_ns))
    capacity = Capacity.of_trace(trace, 3.0, offset_ns)
    t = rng.uniform(0, 1.5e9, 200)
    size = rng.integers(1, 40_000, 200)
    expected = [step_by_step(trace, offset_ns, wire_bytes(float(n)) * 8, x) for n, x in zip(size, t, strict=True)]
    assert np.asarray(expected).max() < 3e9  # within what was written out
    np.testing.assert_allclose(capacity.done_ns(size, t), expected, rtol=0, atol=2.0)
    np.testing.assert_allclose([capacity.done_at_ns(n, x) for n, x in zip(size, t, strict=True)], expected, rtol=0, atol=2.0)


def test_a_fixed_rate_takes_wire_bytes_less_the_bucket_over_the_rate() -> None:
    capacity = Capacity.of_rate(5e6, bucket_bytes=2750)
    for size in (100, 1448, 1449, 65_536):
        wire = size + 52 * math.ceil(size / 1448)
        expected = 7e9 + max(0, wire - 2750) * 8 / 5e6 * 1e9
        assert float(capacity.done_ns(size, 7e9)) == pytest.approx(expected, abs=1)
        assert capacity.done_at_ns(size, 7e9) == pytest.approx(expected, abs=1)


def test_messages_one_after_the_other_use_every_bit_once() -> None:
    """Back to back, n messages leave together with their sum: the fluid has no gaps (headers made equal by whole segments)."""
    capacity = Capacity.of_trace(random_trace(3), 5.0)
    free = 0.0
    for _ in range(20):
        free = capacity.done_at_ns(1448 * 5, 0.0, free)
        assert float(capacity.done_ns(1448 * 5, 0.0, free)) == pytest.approx(capacity.done_at_ns(1448 * 5, 0.0, free), abs=2)
    assert free == pytest.approx(capacity.done_at_ns(1448 * 100, 0.0), abs=10)


def test_more_capacity_and_fewer_bytes_never_arrive_later() -> None:
    trace, t = random_trace(1), np.linspace(0, 1e9, 300)
    slow, fast = Capacity.of_trace(trace, 4.0), Capacity.of_trace(trace.scaled(1.7), 4.0)
    burst_ns = STEP_NS / 4  # a message that comes late in a step may run that far into the next
    assert (fast.done_ns(20_000, t) <= slow.done_ns(20_000, t) + burst_ns).all()
    assert (slow.done_ns(10_000, t) <= slow.done_ns(20_000, t) + burst_ns).all()
    assert (np.diff(slow.done_ns(20_000, t)) >= -burst_ns).all()  # and who comes later does not arrive earlier


def test_after_a_trace_that_stops_nothing_arrives_and_a_looped_one_goes_on() -> None:
    trace = constant(8_000_000, 1_000_000_000)  # a megabyte in its one second
    assert Capacity.of_trace(trace, 10.0, loop=False).done_at_ns(2_000_000, 0.0) == math.inf
    assert np.isinf(Capacity.of_trace(trace, 10.0, loop=False).done_ns(2_000_000, np.array([0.0]))).all()
    wire = 2_000_000 + 52 * math.ceil(2_000_000 / 1448)
    assert Capacity.of_trace(trace, 10.0).done_at_ns(2_000_000, 0.0) == pytest.approx(wire * 1000.0, abs=STEP_NS)
    assert Capacity.of_trace(trace, 0.5).done_at_ns(2_000_000, 0.0) == pytest.approx(wire * 1000.0, abs=STEP_NS)


def test_a_link_that_is_down_carries_nothing_and_holds_what_waits() -> None:
    capacity = Capacity.of_rate(8e6).changed([(1e9, 3e9, 0.0)])
    wire_ns = (1448 + 52) * 1000.0
    assert capacity.done_at_ns(1448, 0.5e9) == pytest.approx(0.5e9 + wire_ns)
    assert capacity.done_at_ns(1448, 2e9) == pytest.approx(3e9 + wire_ns)
    assert capacity.done_at_ns(1448, 1e9 - wire_ns / 2) == pytest.approx(3e9 + wire_ns / 2)
    slower = Capacity.of_rate(8e6).changed([(1e9, 3e9, 4e6)])
    assert slower.done_at_ns(1448, 2e9) == pytest.approx(2e9 + 2 * wire_ns)


def two_hops() -> Truth:
    sides = {("d", "e"): Capacity.of_trace(random_trace(5), 6.0, delay_s=0.010), ("e", "c"): Capacity.of_rate(2e6, 0.018),
             ("e", "d"): Capacity.of_rate(None, 0.010), ("c", "e"): Capacity.of_rate(2e6, 0.018)}
    ways = {("d", "e"): ("d", "e"), ("d", "c"): ("d", "e", "c"), ("e", "c"): ("e", "c"), ("c", "d"): ("c", "e", "d")}
    return Truth(10_000, sides, ways, {"e": ((1e9, 2e9),)})


def test_over_two_links_a_message_arrives_with_the_slowest_and_all_delays() -> None:
    truth = two_hops()
    for since in (0.0, 0.4e9, 1.1e9):
        first = float(truth.sides["d", "e"].done_ns(9000, since)) - since
        second = float(truth.sides["e", "c"].done_ns(9000, since + 10e6)) - since - 10e6
        seconds = truth.transfer_s("d", "c", 9000, int(since) + truth.start_ns)
        assert seconds * 1e9 == pytest.approx(max(first, second) + 28e6, abs=2)
        alone = [truth.transfer_s(a, b, 9000, int(since) + truth.start_ns) for a, b in pairwise(("d", "e", "c"))]
        assert max(alone) <= seconds <= sum(alone) + 0.03  # not below its slowest hop


def test_outages_are_half_open_and_infinite_where_they_never_end() -> None:
    truth = two_hops()
    ends = np.array([0.9e9, 1.0e9, 1.5e9, 3e9])
    assert truth.works("e", ends - 1e6, ends).tolist() == [True, False, False, True]
    assert [truth.works_at("e", t - 1e6, t) for t in ends] == [True, False, False, True]
    assert truth.works("d", 0.0, 9e9).all()
    assert spans_until([(5.0, False), (1.0, True), (9.0, True)]) == ((1.0, 5.0), (9.0, math.inf))
    assert spans_until([(2.0, True), (3.0, True), (4.0, False), (6.0, False)]) == ((2.0, 4.0),)


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    truth = two_hops()
    truth.save(tmp_path / "truth.npz")
    again = Truth.load(tmp_path / "truth.npz")
    t = np.linspace(0, 2e9, 50)
    for pair in truth.ways:
        assert np.array_equal(again.arrival_ns(*pair, 5000, t), truth.arrival_ns(*pair, 5000, t))
    assert again.outages == truth.outages and again.start_ns == truth.start_ns
