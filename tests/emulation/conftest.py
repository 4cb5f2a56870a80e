"""Two private network namespaces with one link of ours between them, and the tools to send through it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.emulation.direction import DirectionSpec
from testbed.emulation.fabric import Endpoint, LinkFabric
from testbed.emulation.netns import NetNamespace

# The same tests run here (tap) and inside user-mode Linux, whose kernel has netem. There time is coarse: the tests
# then accept late packets, never lost, early or wrong ones.
BACKEND = os.environ.get("TESTBED_BACKEND", "tap")
COARSE = bool(os.environ.get("TESTBED_IN_UML"))
HEADERS = 28  # IP and UDP
ADDRESS_A, ADDRESS_B, PORT = "10.9.0.1", "10.9.0.2", 5000
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_STAMP = struct.Struct("=Iq")


class Received:
    """Datagrams that arrived: sequence numbers, arrival times and one-way delays, in order of arrival."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.arrived_ns: list[int] = []
        self.delays_s: list[float] = []
        self.bytes = 0


def without_ipv6() -> None:
    switch = Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    if switch.exists():  # a kernel may be built without
        switch.write_text("1")


class Wire:
    """Namespaces a and b joined by the link ``wire``; "up" is a -> b."""

    def __init__(self, folder: Path, up: DirectionSpec, down: DirectionSpec, backend: str, seed: int) -> None:
        self.a, self.b = NetNamespace.create(), NetNamespace.create()
        self.fabric = LinkFabric(folder, seed)
        self.folder = folder
        macs = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
        ends = Endpoint(self.a, "eth0", macs[0]), Endpoint(self.b, "eth0", macs[1])
        self.link = self.fabric.connect("wire", *ends, up, down, backend)
        for end, own, other, mac in (
            (self.a, ADDRESS_A, ADDRESS_B, macs[1]),
            (self.b, ADDRESS_B, ADDRESS_A, macs[0]),
        ):
            # no frame but the test's own: a seeded link decides frame by frame
            end.call(without_ipv6)
            end.run(["ip", "link", "set", "dev", "eth0", "up"])
            end.run(["ip", "addr", "add", f"{own}/24", "dev", "eth0"])
            end.run(["ip", "neigh", "replace", other, "lladdr", mac, "dev", "eth0", "nud", "permanent"])
        self.fabric.start()

    def sender(self) -> Callable[[int, int], None]:
        """A function (sequence number, IP bytes) that sends one datagram from a to b."""
        opened = self.a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 24)  # the link's queue must be what drops
        opened.connect((ADDRESS_B, PORT))

        def send(number: int, ip_bytes: int = 1500) -> None:
            opened.send(_STAMP.pack(number, time.monotonic_ns()).ljust(ip_bytes - HEADERS, b"."))

        return send

    def receive(self, run: Callable[[], None], *, quiet_s: float = 0.3, expect: int | None = None) -> Received:
        """Run ``run`` while b listens; ends ``quiet_s`` after its end, or when ``expect`` datagrams have come."""
        listener = self.b.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 25)
        listener.bind((ADDRESS_B, PORT))
        listener.settimeout(0.02)
        got, done = Received(), threading.Event()

        def listen() -> None:
            while True:
                try:
                    data = listener.recv(2048)
                except TimeoutError:
                    if done.is_set():
                        return
                    continue
                now_ns = time.monotonic_ns()
                number, sent_ns = _STAMP.unpack_from(data)
                got.numbers.append(number)
                got.arrived_ns.append(now_ns)
                got.delays_s.append((now_ns - sent_ns) / 1e9)
                got.bytes += len(data) + HEADERS

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            run()
            deadline = time.monotonic() + quiet_s * (10 if expect is not None or COARSE else 1)
            while time.monotonic() < deadline and (expect is None or len(got.numbers) < expect):
                time.sleep(0.01)
        finally:
            done.set()
            thread.join()
            listener.close()
        return got

    def counters(self, direction: str = "up") -> dict[str, int]:
        return self.fabric.counters()["wire"][direction]

    def close(self) -> None:
        self.fabric.kill()
        self.a.close()
        self.b.close()


MakeWire = Callable[..., Wire]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[MakeWire]:
    """``wire(up, down, backend=..., seed=...)`` makes a link; everything is gone after the test."""
    made: list[Wire] = []

    def make(
        up: DirectionSpec | None = None, down: DirectionSpec | None = None, *, backend: str = "auto", seed: int = 1
    ) -> Wire:
        folder = tmp_path / f"run{len(made)}"
        made.append(Wire(folder, up or DirectionSpec(), down or DirectionSpec(), backend, seed))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def impairing() -> str:
    """The backend under test: tap here, netem inside user-mode Linux."""
    return BACKEND


@pytest.fixture
def coarse() -> bool:
    """Whether this kernel's clock and scheduler are too slow for figures in milliseconds."""
    return COARSE
