"""Hand-made netlink for one job: a token bucket (TBF) on an interface, changed in place at a few microseconds each.

What a bucket counts: IP-layer bytes where a size table (TCA_STAB) takes the Ethernet header off; but the kernel
ignores the table for packets that the bucket itself cut from a 64 KB segment, and counts 14 bytes too many for each.
Without the table, whole frames, for every kind of packet alike: 14 bytes per packet can be taken off exactly
afterwards. A queued packet keeps the size it was given when it came, so an interface must not change between the two.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from testbed.emulation.netns import NetNamespace
from testbed.errors import EmulationError

_RTM_NEWQDISC, _RTM_GETQDISC = 36, 38
_NLMSG_ERROR = 2
_REQUEST, _ACK, _ECHO, _REPLACE, _CREATE = 0x1, 0x4, 0x8, 0x100, 0x400
_UNACKED, _READ, _ACKED = 1, 2, 3  # sequence numbers: what an answer belongs to
_ROOT = 0xFFFFFFFF
HANDLE = 0x10000  # "1:"
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2, _TCA_STAB = 1, 2, 7, 8
_TBF_PARMS, _TBF_RATE64, _TBF_BURST, _TBF_PBURST = 1, 4, 6, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3
ETHERNET_HEADER_BYTES = 14
_TICK_NS = 64
_CLOSED_COST = 65535  # bytes that any packet costs while the bucket is closed: more than the bucket ever holds
_GATE_RATE = 1500  # bytes/s; only scales the closed bucket's depth
_CREDIT_RATE = 1  # bytes/s: a credit earns nothing by itself

_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_RATE = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTR.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


_STAB = _attribute(_TCA_STAB, _attribute(1, struct.pack("=BBhiIIII", 0, 0, 0, -ETHERNET_HEADER_BYTES, 1, 0, 0, 0)))


@dataclass(frozen=True)
class QdiscStats:
    """Counters of a root qdisc. ``drops`` includes the shaper's own kicks; ``rate_bytes`` is bytes per second."""

    sent_bytes: int
    sent_packets: int
    queued_packets: int
    backlog_bytes: int
    drops: int
    rate_bytes: int | None = None


def tbf_message(
    ifindex: int,
    *,
    limit: int,
    rate_bytes: int,
    burst_bytes: int | None = None,
    buffer_ticks: int = 0,
    peak_bytes: int = 0,
    peak_burst_bytes: int = 0,
    packet_cost_bytes: int = 0,
    ip_bytes: bool = False,
) -> bytes:
    """RTM_NEWQDISC for a TBF at the root of ``ifindex``. Rates in bytes per second; ``limit`` as the child queue counts.

    ``packet_cost_bytes``: the least that a packet costs (the kernel's mpu). ``ip_bytes``: with the size table.
    """
    top = 0xFFFFFFFF
    parms = (
        _RATE.pack(0, 1, 0, 0, packet_cost_bytes, min(rate_bytes, top))
        + _RATE.pack(0, 1, 0, 0, 0, min(peak_bytes, top))
        + struct.pack("=III", min(limit, top), buffer_ticks, 0)
    )
    options = _attribute(_TBF_PARMS, parms)
    if burst_bytes is not None:
        options += _attribute(_TBF_BURST, struct.pack("=I", min(burst_bytes, top)))
    if peak_bytes:
        options += _attribute(_TBF_PBURST, struct.pack("=I", peak_burst_bytes))
    body = (
        _TCMSG.pack(0, ifindex, HANDLE, _ROOT, 0)
        + _attribute(_TCA_KIND, b"tbf\0")
        + _attribute(_TCA_OPTIONS, options)
        + (_STAB if ip_bytes else b"")
    )
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWQDISC, _REQUEST, _UNACKED, 0) + body


def fixed_message(
    ifindex: int, limit: int, rate_bytes: int | None, mtu: int, ip_bytes: bool, burst_bytes: int | None = None
) -> bytes:
    """A steady rate, or none (34 Gbit/s, and whole 64 KB segments).

    The bucket holds one packet and 2 ms of the rate unless told otherwise: enough to make up for a late timer, and
    the most that a transfer after a pause can be ahead of an ideal link.
    """
    if rate_bytes is None:
        rate_bytes = 0xFFFFFFFF
    if burst_bytes is None:  # the header: a packet that was cut from a segment must fit, too
        burst_bytes = bucket_bytes(rate_bytes, mtu)
    return tbf_message(ifindex, limit=limit, rate_bytes=rate_bytes, burst_bytes=burst_bytes, ip_bytes=ip_bytes)


def bucket_bytes(rate_bytes: int, mtu: int) -> int:
    """Bucket of a fixed rate: one frame and 2 ms of the rate."""
    return mtu + ETHERNET_HEADER_BYTES + rate_bytes // 500


def closed_message(ifindex: int, limit: int, mtu: int, ip_bytes: bool) -> bytes:
    """Let nothing out, keep what is queued: the bucket holds one packet, and every packet costs more than that."""
    size = mtu if ip_bytes else mtu + ETHERNET_HEADER_BYTES
    ticks = size * 1_000_000_000 // _GATE_RATE // _TICK_NS + 1
    return tbf_message(
        ifindex,
        limit=limit,
        rate_bytes=_GATE_RATE,
        buffer_ticks=ticks,
        packet_cost_bytes=_CLOSED_COST,
        ip_bytes=ip_bytes,
    )


def credit_message(
    ifindex: int, limit: int, credit_bytes: int, peak_bytes: int, mtu: int, packet_cost_bytes: int = 0
) -> bytes:
    """Let out ``credit_bytes`` of frames (at least one frame's worth), spaced at ``peak_bytes`` per second, then nothing.

    mtu: of the interface; the largest frame is 14 bytes longer.
    """
    return tbf_message(
        ifindex,
        limit=limit,
        rate_bytes=_CREDIT_RATE,
        burst_bytes=max(mtu + ETHERNET_HEADER_BYTES, credit_bytes),
        peak_bytes=max(2, peak_bytes),
        peak_burst_bytes=mtu + ETHERNET_HEADER_BYTES,
        packet_cost_bytes=packet_cost_bytes,
    )


class QdiscSocket:
    """A netlink socket inside one network namespace."""

    def __init__(self, namespace: NetNamespace) -> None:
        def make() -> socket.socket:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            opened.bind((0, 0))
            return opened

        self._socket = namespace.call(make)
        self.send = self._socket.send  # a change without acknowledgement; its error, if any, comes with the next read
        self.errors: list[str] = []

    def request(self, message: bytes, what: str) -> None:
        """Send and wait for the kernel's acknowledgement."""
        buffer = bytearray(message)
        length, kind, flags, _, port = _HEADER.unpack_from(buffer)
        _HEADER.pack_into(buffer, 0, length, kind, flags | _ACK, _ACKED, port)
        self._socket.send(buffer)
        while True:
            answer = self._socket.recv(65536)
            code = struct.unpack_from("=i", answer, _HEADER.size)[0]
            if _HEADER.unpack_from(answer)[3] == _ACKED:
                break
            self.errors.append(os.strerror(-code))
        if code:
            raise EmulationError(f"{what}: {os.strerror(-code)} ({errno.errorcode.get(-code, code)})")

    def install(self, message: bytes) -> None:
        """Put the qdisc of a ``*_message`` on its interface, replacing what is there."""
        buffer = bytearray(message)
        length, kind, flags, sequence, port = _HEADER.unpack_from(buffer)
        _HEADER.pack_into(buffer, 0, length, kind, flags | _CREATE | _REPLACE, sequence, port)
        self.request(bytes(buffer), "the kernel refuses the token bucket")

    def packet_queue(self, ifindex: int, limit_packets: int) -> None:
        """Make the bucket's queue count packets instead of bytes."""
        body = (
            _TCMSG.pack(0, ifindex, 0, HANDLE | 1, 0)
            + _attribute(_TCA_KIND, b"pfifo\0")
            + _attribute(_TCA_OPTIONS, struct.pack("=I", limit_packets))
        )
        flags = _REQUEST | _CREATE | _REPLACE
        message = _HEADER.pack(_HEADER.size + len(body), _RTM_NEWQDISC, flags, _UNACKED, 0) + body
        self.request(message, "the kernel refuses a packet queue")

    @staticmethod
    def stats_request(ifindex: int) -> bytes:
        """The message that `stats` sends, for callers that send it often."""
        body = _TCMSG.pack(0, ifindex, 0, _ROOT, 0)
        return _HEADER.pack(_HEADER.size + len(body), _RTM_GETQDISC, _REQUEST | _ECHO, _READ, 0) + body

    def stats(self, request: bytes) -> QdiscStats:
        """Counters now. Errors of earlier unacknowledged changes are collected in ``errors``."""
        self._socket.send(request)
        while True:
            answer = self._socket.recv(16384)
            length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if kind == _NLMSG_ERROR:
                text = os.strerror(-struct.unpack_from("=i", answer, _HEADER.size)[0])
                if sequence == _READ:
                    raise EmulationError(f"cannot read a link's qdisc: {text}")
                self.errors.append(text)
                continue
            return _parse_stats(answer, length)

    def close(self) -> None:
        self._socket.close()


def _attributes(data: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    found = {}
    while start + 4 <= end:
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = (start + 4, start + length)
        start += (length + 3) & ~3
    return found


def _parse_stats(data: bytes, length: int) -> QdiscStats:
    outer = _attributes(data, _HEADER.size + _TCMSG.size, length)
    inner = _attributes(data, *outer[_TCA_STATS2])
    sent_bytes, sent_packets = struct.unpack_from("=QI", data, inner[_STATS_BASIC][0])
    queued, backlog, drops, _, _ = struct.unpack_from("=IIIII", data, inner[_STATS_QUEUE][0])
    rate = None
    if _TCA_OPTIONS in outer:
        options = _attributes(data, *outer[_TCA_OPTIONS])
        if _TBF_PARMS in options:
            rate = _RATE.unpack_from(data, options[_TBF_PARMS][0])[5]
    return QdiscStats(sent_bytes, sent_packets, queued, backlog, drops, rate)


class Kicker:
    """Makes a sleeping bucket look at its tokens again.

    A bucket that ran dry sleeps until its old tokens would have sufficed; a change does not wake it. A frame longer
    than the bucket's largest packet is refused, but the attempt runs the queue. Each kick counts as one drop.
    """

    def __init__(self, namespace: NetNamespace, interface: str, mtu: int) -> None:
        def make() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            opened.bind((interface, 0))
            return opened

        self._socket = namespace.call(make)
        # A VLAN frame may be four bytes longer than others: the only kind that the packet socket takes and TBF refuses.
        self._frame = b"\xff" * 6 + b"\x02\0\0\0\0\0" + b"\x81\x00" + bytes(mtu + 4)
        self.refused = 0

    def __call__(self) -> None:
        try:
            self._socket.send(self._frame)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.refused += 1

    def close(self) -> None:
        self._socket.close()
