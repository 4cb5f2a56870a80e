"""A sender's TCP must not know of the shaped queue: it is in another box, as a modem's or a router's is."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from testbed.emulation import plumbing
from testbed.emulation.direction import DirectionSpec, QueueLimit

pytestmark = pytest.mark.net


def test_a_tcp_sender_fills_the_queue_as_it_would_a_router(wire, impairing):
    if plumbing.catch_all() is None:
        pytest.skip("this kernel has no packet filters: links are bridged, and the manifest says so")
    spec = DirectionSpec(rate_bps=4_000_000, delay_s=0.02, queue=QueueLimit(bytes=100_000))
    link = wire(spec, DirectionSpec(delay_s=0.02), backend=impairing)

    def listen() -> socket.socket:
        server = socket.socket()
        server.bind(("10.9.0.2", 6000))
        server.listen()
        return server

    server = link.b.call(listen)

    def serve() -> None:
        with server, server.accept()[0] as connection:
            while connection.recv(1 << 16):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    client = link.a.call(socket.socket)
    client.connect(("10.9.0.2", 6000))
    backlog = []
    client.settimeout(0.05)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            client.send(bytes(1 << 16))
        backlog.append(link.counters()["backlog_bytes"])
    link.fabric.set_rate("wire", "up", 100_000_000)
    client.close()
    thread.join(30)
    # TCP small queues would stop at two packets or one millisecond's worth: 3,000 bytes
    assert max(backlog) > 30_000
