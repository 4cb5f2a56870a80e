"""Delay, jitter, loss, reordering and duplication of a real link, in whichever backend this kernel offers.

The bounds are statistical: at about five standard errors of the sample, so that a right link fails less than once in
a million runs.
"""

from __future__ import annotations

import hashlib
import math
import socket
import threading
import time

import numpy as np
import pytest
from scipy import stats

from testbed.emulation.direction import DirectionSpec, GilbertElliott

pytestmark = pytest.mark.net


def spaced(send, count: int, gap_s: float = 0.001, ip_bytes: int = 100):
    """Send ``count`` datagrams with a gap, so that none waits for another."""

    def run():
        for number in range(count):
            send(number, ip_bytes)
            time.sleep(gap_s)

    return run


def test_a_constant_delay_is_kept_in_both_directions(wire, impairing, coarse):
    link = wire(DirectionSpec(delay_s=0.025), DirectionSpec(delay_s=0.015), backend=impairing)
    got = link.receive(spaced(link.sender(), 100, 0.004), expect=100)
    assert got.numbers == list(range(100))
    assert min(got.delays_s) >= 0.025
    assert coarse or float(np.median(got.delays_s)) < 0.027
    text = link.a.run(["ping", "-n", "-c", "5", "-i", "0.1", "10.9.0.2"])
    fastest_ms = float(text.rsplit("=", 1)[1].split("/")[0])
    assert fastest_ms >= 40.0
    assert coarse or fastest_ms < 43.0


def test_queueing_at_the_rate_and_delay_add_up(wire, impairing, coarse):
    link = wire(DirectionSpec(rate_bps=1_200_000, delay_s=0.05), backend=impairing)
    send = link.sender()
    got = link.receive(lambda: [send(n) for n in range(11)], expect=11)
    # the bucket lets one full packet go at once; the eleventh waits for ten times 10 ms
    assert got.delays_s[-1] >= 0.05 + 0.1 - 0.006
    assert coarse or got.delays_s[-1] < 0.17
    assert got.delays_s[0] < got.delays_s[-1]


@pytest.mark.parametrize("distribution", ["normal", "uniform", "pareto"])
def test_jitter_has_the_distribution_of_its_table(wire, impairing, coarse, distribution):
    spec = DirectionSpec(delay_s=0.06, jitter_s=0.01, jitter_distribution=distribution)
    link = wire(spec, backend=impairing, seed=5)
    count = 1500
    got = link.receive(spaced(link.sender(), count, 0.0005), expect=count, quiet_s=1.0)
    assert sorted(got.numbers) == list(range(count))
    asked = np.maximum(0.0, 0.06 + spec.jitter_table / 8192 * 0.01)
    # kernel and Python add their own fraction of a millisecond: compare shapes about the median
    measured = np.array(got.delays_s) - (np.median(got.delays_s) - np.median(asked))
    distance = stats.ks_2samp(measured, asked).statistic
    assert distance < (0.15 if coarse else 0.07)
    assert np.std(measured) == pytest.approx(np.std(asked), rel=0.35 if coarse else 0.15)


def test_independent_loss_has_the_asked_share(wire, impairing):
    count, loss = 4000, 0.1
    link = wire(DirectionSpec(loss=loss, delay_s=0.001), backend=impairing, seed=3)
    send = link.sender()

    def run():
        for number in range(count):
            send(number, 60)
            if number % 50 == 0:
                time.sleep(0.002)

    got = link.receive(run, quiet_s=0.5)
    lost = 1 - len(got.numbers) / count
    assert abs(lost - loss) < 5 * math.sqrt(loss * (1 - loss) / count)
    assert len(set(got.numbers)) == len(got.numbers)


def test_gilbert_elliott_loses_in_runs(wire, impairing):
    chain = GilbertElliott(p=0.02, r=0.25)
    count = 8000
    link = wire(DirectionSpec(gilbert_elliott=chain, delay_s=0.001), backend=impairing, seed=3)
    send = link.sender()

    def run():
        for number in range(count):
            send(number, 60)
            if number % 50 == 0:
                time.sleep(0.002)

    got = set(link.receive(run, quiet_s=0.5).numbers)
    lost = np.array([number not in got for number in range(count)])
    starts = int((lost[1:] & ~lost[:-1]).sum()) + int(lost[0])
    runs = lost.sum() / starts
    # mean loss of the chain has the variance of its (1 + rho) / (1 - rho) times fewer independent packets
    rho = 1 - chain.p - chain.r
    error = math.sqrt(chain.mean_loss * (1 - chain.mean_loss) / count * (1 + rho) / (1 - rho))
    assert abs(lost.mean() - chain.mean_loss) < 5 * error
    assert runs == pytest.approx(1 / chain.r, rel=5 / math.sqrt(starts))  # geometric: deviation about its mean


def test_duplicates_and_reordering_come_as_often_as_asked(wire, impairing, coarse):
    count = 2000
    link = wire(DirectionSpec(duplicate=0.2, delay_s=0.005), backend=impairing, seed=4)
    got = link.receive(spaced(link.sender(), count, 0.0002), quiet_s=0.5)
    assert set(got.numbers) == set(range(count))
    assert abs(len(got.numbers) / count - 1.2) < 5 * math.sqrt(0.16 / count)

    second = wire(DirectionSpec(reorder=0.25, delay_s=0.03), backend=impairing, seed=4)
    got = second.receive(spaced(second.sender(), 1000, 0.0005), expect=1000, quiet_s=0.5)
    assert sorted(got.numbers) == list(range(1000))
    early = np.mean([delay < 0.03 for delay in got.delays_s])
    assert abs(early - 0.25) < 5 * math.sqrt(0.1875 / 1000) + (0.05 if coarse else 0)


def test_every_impairment_can_be_changed_and_taken_back_while_running(wire, impairing, coarse):
    link = wire(DirectionSpec(), backend=impairing)
    send = link.sender()
    fabric = link.fabric
    fabric.set_impairment("wire", "up", loss=1.0)
    assert link.receive(lambda: [send(n) for n in range(20)]).numbers == []
    fabric.set_impairment("wire", "up", loss=0.0, delay_s=0.08, jitter_s=0.005)
    got = link.receive(spaced(send, 20), expect=20)
    assert len(got.numbers) == 20
    assert min(got.delays_s) > 0.04
    fabric.set_impairment("wire", "up", delay_s=0.0, jitter_s=0.0, loss=0.0, reorder=0.0, duplicate=0.0)
    got = link.receive(spaced(send, 20, 0.005), expect=20)
    assert got.numbers == list(range(20))
    assert coarse or max(got.delays_s) < 0.04


def test_the_same_seed_loses_the_same_packets(wire):
    def lost(seed: int) -> list[int]:
        link = wire(DirectionSpec(loss=0.3), backend="tap", seed=seed)
        send = link.sender()
        return link.receive(lambda: [send(n, 60) for n in range(300)]).numbers

    first = lost(11)
    assert lost(11) == first
    assert lost(12) != first


def test_tcp_passes_the_delay_line_with_offloads_intact(wire, impairing):
    """Megabytes arrive whole: segments of 64 KB, checksums and all."""
    link = wire(DirectionSpec(delay_s=0.005), DirectionSpec(delay_s=0.005), backend=impairing)
    payload = np.random.default_rng(1).bytes(1 << 20)
    rounds = 5 if link.link.backend == "netem" else 40

    def listen() -> socket.socket:
        server = socket.socket()
        server.bind(("10.9.0.2", 6000))
        server.listen()
        return server

    server = link.b.call(listen)
    digest = hashlib.sha256()

    def serve() -> None:
        with server, server.accept()[0] as connection:
            while data := connection.recv(1 << 20):
                digest.update(data)

    thread = threading.Thread(target=serve)
    thread.start()
    client = link.a.call(socket.socket)
    client.connect(("10.9.0.2", 6000))
    for _ in range(rounds):
        client.sendall(payload)
    client.close()
    thread.join(60)
    assert digest.digest() == hashlib.sha256(payload * rounds).digest()
