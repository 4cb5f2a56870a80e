"""Trace replay against the trace itself: what the kernel let through must be what the trace allowed."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from testbed.emulation.direction import DirectionSpec, QueueLimit
from testbed.emulation.replay import COLUMNS, read_updates
from testbed.traces.trace import Trace

pytestmark = pytest.mark.net
MS, STEP_NS = 1_000_000, 10_000_000
DEEP = QueueLimit(packets=100_000)


def steps_trace(mbps: list[float], segment_ms: int = 50, packet_bits: int | None = None) -> Trace:
    """Segments of equal length at the given rates."""
    bits = np.array([int(rate * 1e3 * segment_ms) for rate in mbps])
    if packet_bits:
        bits -= bits % packet_bits
    return Trace(np.arange(len(mbps) + 1) * segment_ms * MS, bits, packet_bits=packet_bits, name="steps")


def start_with_full_queue(link, packets: int, ip_bytes: int) -> int:
    """Fill the queue while the link is held, start the replay, let go; returns the bytes sent before."""
    link.fabric.set_down("wire", True, directions=["up"])
    send = link.sender()
    for number in range(packets):
        send(number, ip_bytes)
    before = link.counters()["tx_bytes"]
    link.fabric.start_replay(time.monotonic_ns() + 20 * MS)
    time.sleep(0.06)
    link.fabric.set_down("wire", False)
    return before


@pytest.mark.parametrize("ip_bytes", [1500, 400])
@pytest.mark.parametrize("packet_bits", [None, 12_000])
def test_a_busy_link_sends_what_its_trace_allows_to_within_a_packet(wire, ip_bytes, packet_bits):
    trace = steps_trace([12.0, 3.1, 0.0, 7.7, 0.9, 20.0], packet_bits=packet_bits)  # 7.3 Mbit/s
    link = wire(DirectionSpec(trace=trace, queue=DEEP))
    seen: list[int] = []
    count = 1_500_000 // ip_bytes

    def run():
        before = start_with_full_queue(link, count, ip_bytes)
        for _ in range(150):
            now = link.counters()
            seen.append(now["allowed_bytes"] - (now["tx_bytes"] - before))
            time.sleep(0.005)
        assert now["backlog_packets"] > 0  # busy to the end
        link.fabric.set_rate("wire", "up", 40_000_000)  # empty it, slower than a receiver can be swamped

    got = link.receive(run, expect=count)
    assert min(seen) >= -1500  # never more than a packet ahead
    assert min(abs(difference) for difference in seen[-20:]) <= 1500  # and it adds up: nothing is lost on the way
    assert got.numbers == list(range(count))
    assert link.counters()["dropped_packets"] == 0


def test_every_credit_is_the_traces_own(wire):
    trace = steps_trace([2.5, 0.0, 11.3, 0.07], segment_ms=37)
    offset_ns = 61 * MS
    link = wire(DirectionSpec(trace=trace, trace_offset_ns=offset_ns))
    start_ns = time.monotonic_ns() + 20 * MS
    link.fabric.start_replay(start_ns)
    time.sleep(0.6)
    link.fabric.stop()
    updates = read_updates(link.folder / "link_updates.bin")
    first, last = int(updates["asked_ns"][0]), int(updates["asked_ns"][-1])
    assert first == start_ns  # one direction: no stagger
    assert len(updates) >= 40
    # a step that comes late makes up for those it missed: the last one may, too
    late_steps = int(updates["applied_ns"][-1] - last) // STEP_NS
    ends_ns = [offset_ns + last - start_ns + STEP_NS * (1 + missed) for missed in range(late_steps + 1)]
    assert updates["credit_bytes"].sum() in [trace.bits_between(offset_ns, end_ns) // 8 for end_ns in ends_ns]
    assert (updates["applied_ns"] >= updates["asked_ns"]).all()


def test_an_idle_link_banks_no_credit(wire, coarse):
    link = wire(DirectionSpec(trace=steps_trace([2.4]), queue=DEEP))  # two packets per step
    send = link.sender()

    def run():
        link.fabric.start_replay(time.monotonic_ns())
        time.sleep(0.5)
        for number in range(20):
            send(number)

    got = link.receive(run, expect=20)
    span_s = (got.arrived_ns[-1] - got.arrived_ns[0]) / 1e9
    # 20 packets need 10 steps; one step's credit may be there already, and the last step is not waited for
    assert span_s >= 0.07
    assert coarse or span_s <= 0.15


def test_a_link_slower_than_a_packet_per_step_saves_up_for_one(wire, coarse):
    link = wire(DirectionSpec(trace=steps_trace([0.12]), queue=DEEP))  # 150 bytes per step: a packet per 100 ms
    send = link.sender()

    def run():
        link.fabric.start_replay(time.monotonic_ns())
        time.sleep(0.1)
        for number in range(4):
            send(number)

    got = link.receive(run, expect=4, quiet_s=1.0)
    gaps_s = np.diff(got.arrived_ns) / 1e9
    assert len(gaps_s) == 3
    assert gaps_s.min() > 0.07
    assert coarse or gaps_s.max() < 0.15


def test_an_outage_in_the_trace_loses_nothing(wire):
    trace = steps_trace([8.0, 0.0, 0.0, 0.0, 8.0, 0.0], segment_ms=100)
    link = wire(DirectionSpec(trace=trace, queue=DEEP))
    count = 400  # 4.8 Mbit at 2.67 Mbit/s on average: several outages

    def run():
        start_with_full_queue(link, count, 1500)
        time.sleep(1.5)

    got = link.receive(run, expect=count, quiet_s=0.5)
    assert got.numbers == list(range(count))
    assert np.diff(got.arrived_ns).max() > 0.25e9  # the outages did happen


def test_pause_stands_still_and_resume_goes_on_where_it_stood(wire):
    link = wire(DirectionSpec(trace=steps_trace([4.0]), queue=DEEP))
    states = []

    def run():
        start_with_full_queue(link, 1000, 1500)
        time.sleep(0.1)
        link.fabric.pause()
        states.append(link.counters())
        time.sleep(0.2)
        states.append(link.counters())
        link.fabric.resume()
        time.sleep(0.2)
        states.append(link.counters())

    link.receive(run)
    assert states[0]["tx_packets"] == states[1]["tx_packets"]
    assert states[0]["allowed_bytes"] == states[1]["allowed_bytes"]
    assert states[2]["tx_packets"] > states[1]["tx_packets"]
    link.fabric.stop()
    updates = read_updates(link.folder / "link_updates.bin")
    gaps_ns = np.diff(updates["asked_ns"])
    assert (gaps_ns >= STEP_NS).all()
    assert gaps_ns.max() >= 200 * MS  # the pause
    # no step was skipped or doubled (a late one makes up for those it missed); 5000 bytes each
    played_steps = round((gaps_ns.sum() - gaps_ns.max()) / STEP_NS) + 2
    assert abs(updates["credit_bytes"].sum() - 5000 * played_steps) <= 5000


def test_at_the_end_a_trace_stops_when_told_so(wire):
    trace = steps_trace([6.0, 6.0])  # 100 ms: 75,000 bytes
    link = wire(DirectionSpec(trace=trace, at_end="stop", queue=DEEP))
    link.fabric.start_replay(time.monotonic_ns())
    time.sleep(0.5)
    assert link.counters()["allowed_bytes"] == 75_000


def test_a_set_rate_overrides_the_trace_until_it_is_taken_back(wire):
    link = wire(DirectionSpec(trace=steps_trace([0.0]), queue=DEEP))
    send = link.sender()

    def run():
        link.fabric.start_replay(time.monotonic_ns())
        time.sleep(0.1)
        link.fabric.set_rate("wire", "up", 50_000_000)
        for number in range(5):
            send(number)
        time.sleep(0.2)
        link.fabric.set_rate("wire", "up", None)
        time.sleep(0.1)
        send(5)
        time.sleep(0.1)

    assert link.receive(run).numbers == [0, 1, 2, 3, 4]


def test_rows_say_what_the_kernel_counted(wire):
    link = wire(DirectionSpec(trace=steps_trace([4.0]), queue=DEEP), DirectionSpec(rate_bps=1_000_000, delay_s=0.0))

    def run():
        start_with_full_queue(link, 1000, 1500)
        time.sleep(0.8)

    link.receive(run)
    summary = link.fabric.stop()
    rows = pd.read_csv(link.folder / "links.csv")
    assert list(rows.columns) == COLUMNS.split(",")
    up, down = (rows[rows["direction"] == d] for d in ("up", "down"))
    replayed = up[up["allowed_bytes"] > 0]
    assert len(replayed) >= 5
    assert replayed["trace"].eq("steps").all()
    assert replayed["target_rate_bps"].iloc[2:].mean() == pytest.approx(4e6, rel=0.1)
    assert (np.diff(up["tx_bytes"]) >= 0).all()
    assert up["tx_bytes"].iloc[-1] == summary["links"]["wire"]["up"]["tx_bytes"]
    assert down["target_rate_bps"].eq(1_000_000).all()
    assert down["applied_rate_bps"].eq(1_000_000).all()
    assert down["trace"].isna().all()
    assert summary["links"]["wire"]["up"]["updates"] > 50
    assert summary["netlink_errors"] == []
    assert summary["cpu_s"]["replay"] > 0
