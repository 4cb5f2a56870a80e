"""Fixed rates, queues and outages of a link, checked with sequence numbers and the kernel's counters."""

from __future__ import annotations

import random
import threading
import time

import pytest

from testbed.emulation.direction import DirectionSpec, QueueLimit
from testbed.errors import EmulationError, InputError

pytestmark = pytest.mark.net


@pytest.mark.parametrize("rate_bps", [200_000, 5_000_000, 50_000_000])
def test_a_saturated_link_delivers_its_rate(wire, rate_bps, coarse):
    count = max(40, rate_bps // 12_000)  # a second's worth, or 40 packets
    link = wire(DirectionSpec(rate_bps=rate_bps, queue=QueueLimit(packets=count)))
    send = link.sender()
    queue_packets = 30 if rate_bps < 2_000_000 else int(rate_bps * 0.2 / 12_000)

    def flood():
        nonlocal flood_s
        for number in range(count):
            while link_ahead(number):
                time.sleep(0.001)
            send(number)
        flood_s = time.monotonic() - start

    flood_s = 0.0
    start = time.monotonic()

    def link_ahead(number):  # stay above the rate, without swamping the sender's own stack
        return number > (time.monotonic() - start) * rate_bps / 12_000 + queue_packets * 0.7

    got = link.receive(flood, expect=count)
    assert got.numbers == list(range(count))
    # after the bucket's first filling, packets leave at the rate
    settled = count // 4
    span_s = (got.arrived_ns[-1] - got.arrived_ns[settled]) / 1e9
    measured = (count - 1 - settled) * 12_000 / span_s
    assert measured < 1.01 * rate_bps
    if coarse:  # where starting a system call takes 20 us and more, this sender may be slower than the link
        assert measured > 0.5 * min(rate_bps, count * 12_000 / flood_s)
    else:
        assert measured > 0.97 * rate_bps


def test_the_kernel_says_the_rate_that_was_asked(wire):
    link = wire(DirectionSpec(rate_bps=3_000_000), DirectionSpec(rate_bps=1_000_000))
    link.fabric.set_rate("wire", "down", 750_000)
    summary = link.fabric.stop()["links"]["wire"]
    assert summary["up"]["rate_readback_bps"] == 3_000_000
    assert summary["down"]["rate_readback_bps"] == 750_000


def test_sizes_are_counted_at_the_ip_layer(wire):
    link = wire(DirectionSpec(rate_bps=1_000_000_000))
    send = link.sender()
    before = link.counters()
    got = link.receive(lambda: [send(n, 100 + n) for n in range(100)], expect=100)
    after = link.counters()
    assert got.bytes == sum(100 + n for n in range(100))
    assert after["tx_bytes"] - before["tx_bytes"] == got.bytes
    assert after["tx_packets"] - before["tx_packets"] == 100


@pytest.mark.parametrize(
    ("queue", "kept"),
    [
        (QueueLimit(packets=10), 10),
        (QueueLimit(bytes=9000), 6),
        (QueueLimit(seconds=0.12), 10),  # 1 Mbit/s
        (None, 30),  # the default: 30 full packets are more than 200 ms of 1 Mbit/s
    ],
)
def test_the_queue_holds_its_limit_and_drops_the_rest(wire, queue, kept):
    link = wire(DirectionSpec(rate_bps=1_000_000, queue=queue))
    send = link.sender()
    link.fabric.set_down("wire", True)

    def burst():
        for number in range(50):
            send(number)
        held = link.counters()
        assert held["backlog_packets"] == kept
        assert held["backlog_bytes"] == kept * 1500
        assert held["dropped_packets"] == 50 - kept
        link.fabric.set_down("wire", False)

    got = link.receive(burst, expect=kept)
    assert got.numbers == list(range(kept))  # drop-tail
    assert link.counters()["dropped_packets"] == 50 - kept


def test_no_packet_is_lost_in_a_thousand_rate_changes_through_zero(wire):
    link = wire(DirectionSpec(rate_bps=20_000_000, queue=QueueLimit(packets=20_000)))
    send, dice = link.sender(), random.Random(7)
    changing = threading.Event()

    def change():
        for _ in range(1000):
            link.fabric.set_rate("wire", "up", dice.choice([0, 0, 50_000, 1_000_000, 8_000_000, 60_000_000]))
            time.sleep(0.001)
        link.fabric.set_rate("wire", "up", 200_000_000)
        changing.set()

    sent = 0

    def feed():
        nonlocal sent
        thread = threading.Thread(target=change)
        thread.start()
        while not changing.is_set():
            send(sent, dice.choice([60, 700, 1500]))
            sent += 1
            time.sleep(0.0005)
        thread.join()

    got = link.receive(feed, quiet_s=1.0)
    assert sent > 100
    # all of them, once; a veth has a receive queue per core, so a few can pass each other when the core changes
    assert sorted(got.numbers) == list(range(sent))
    assert link.counters()["dropped_packets"] == 0


def test_an_outage_holds_the_queue_and_what_is_on_the_wire_arrives(wire, impairing):
    link = wire(DirectionSpec(rate_bps=10_000_000, delay_s=0.1), backend=impairing)
    send = link.sender()

    def outage():
        send(0)
        time.sleep(0.02)
        link.fabric.set_down("wire", True)
        for number in range(1, 11):
            send(number)
        time.sleep(0.4)
        times["up_again"] = time.monotonic_ns()
        link.fabric.set_down("wire", False)

    times = {}
    got = link.receive(outage, expect=11)
    assert got.numbers == list(range(11))
    assert got.arrived_ns[0] < times["up_again"] < got.arrived_ns[1]


def test_one_direction_can_fail_alone(wire):
    link = wire(DirectionSpec(rate_bps=10_000_000), DirectionSpec(rate_bps=10_000_000))
    link.fabric.set_down("wire", True, directions=["down"])
    send = link.sender()
    assert link.receive(lambda: send(1), expect=1).numbers == [1]


def test_an_unshaped_link_can_be_held_too(wire):
    link = wire()
    send = link.sender()

    def outage():
        link.fabric.set_down("wire", True)
        send(1)
        time.sleep(0.2)
        assert link.counters()["backlog_packets"] == 1
        link.fabric.set_down("wire", False)

    assert link.receive(outage, expect=1).numbers == [1]


def test_bad_requests_are_refused_by_name(wire):
    link = wire(DirectionSpec(rate_bps=1_000_000))
    for bad in (
        lambda: link.fabric.set_rate("wires", "up", 1),
        lambda: link.fabric.set_rate("wire", "sideways", 1),
        lambda: link.fabric.set_rate("wire", "up", -1),
        lambda: link.fabric.set_impairment("wire", "up", delay_s=0.01),  # built without a place for delay
        lambda: link.fabric.set_impairment("wire", "up", colour="red"),
    ):
        with pytest.raises(InputError):
            bad()
    link.fabric.stop()
    with pytest.raises(EmulationError):
        link.fabric.set_rate("wire", "up", 1)


def test_an_idle_link_saves_up_its_burst_once_the_load_runs(wire):
    rate_bps, burst_bytes, gap_s = 400_000, 9_000, 0.03  # six packets at once, then one per 30 ms
    link = wire(DirectionSpec(rate_bps=rate_bps, burst_bytes=burst_bytes, queue=QueueLimit(packets=50)))
    send = link.sender()

    def spans_s(count):
        got = link.receive(lambda: [send(n) for n in range(count)], expect=count)
        assert got.numbers == list(range(count))
        return [(t - got.arrived_ns[0]) / 1e9 for t in got.arrived_ns]

    before = spans_s(10)
    assert before[-1] > 0.9 * 8 * gap_s, "calibration sees the rate"
    link.fabric.start_replay(time.monotonic_ns())
    time.sleep(0.05)
    full = spans_s(12)
    assert full[5] < gap_s, "what was saved up leaves at once"
    assert 0.9 * 5 * gap_s < full[11] - full[5] < 3 * 6 * gap_s, "the rest at the rate"
    time.sleep(3.2 * gap_s)
    again = spans_s(8)
    assert again[2] < 2 * gap_s and again[-1] - again[3] > 0.9 * 3 * gap_s, "an idle time brings what the rate brings in it"


@pytest.mark.parametrize("wanted", [{"burst_bytes": 9000}, {"rate_bps": 400_000, "burst_bytes": 1500}])
def test_bursts_that_cannot_be(wanted):
    with pytest.raises(InputError, match="burst"):
        DirectionSpec(**wanted)
