"""The delay line: one process that carries the frames of all TAP links, each after its own delay.

A link is a pair of TAP devices. A frame that one end sends is read here at once, given a due time (arrival plus
delay), kept in one heap, and written to the other end when it is due. Frames carry the kernel's offload header, so
a segment of 64 KB passes as one. Started by `fabric`; not meant to be run by hand.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import heapq
import os
import struct
import sys
from time import monotonic_ns
from typing import Any

from testbed.emulation.helper import Control, Waiter, cpu_seconds, enter
from testbed.emulation.impairment import Impairment
from testbed.emulation.netns import NetNamespace
from testbed.errors import EmulationError, MissingToolError

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOAD_CSUM_TSO4_TSO6 = 0x01 | 0x02 | 0x04
_FRAME_BYTES = 65536 + 64
_BATCH = 64  # frames read from one device before the others and the due ones get their turn
_LATE_BIN_NS, _LATE_BINS = 4096, 8192


def open_tap(namespace: NetNamespace, interface: str) -> int:
    """A TAP device named ``interface`` inside ``namespace``; it lives as long as the returned descriptor."""

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", 10))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOAD_CSUM_TSO4_TSO6)
        except OSError:
            os.close(fd)
            raise
        return fd

    try:
        return namespace.call(make)
    except FileNotFoundError as error:
        raise MissingToolError(
            "this machine has no /dev/net/tun", remedy="load the kernel module tun (modprobe tun)"
        ) from error
    except OSError as error:
        raise EmulationError(f"cannot make the TAP device {interface}: {error}") from error


class _Path:
    """One direction of one link."""

    def __init__(self, out_fd: int, impairment: Impairment) -> None:
        self.out_fd = out_fd
        self.impairment = impairment
        self.frames = self.lost = self.refused = 0


class DelayLine:
    """Event loop over all TAP devices, the heap of waiting frames, and the control socket."""

    def __init__(self, job: dict[str, Any], control: Control) -> None:
        self._control = control
        self._waiter = Waiter()
        self._waiter.add(control.fileno())
        self._paths: dict[int, _Path] = {}
        self._named: dict[tuple[str, str], _Path] = {}
        for link in job["links"]:
            a, b = link["fds"]
            for source, target, direction in ((a, b, "up"), (b, a, "down")):
                path = _Path(target, Impairment(link[direction], f"{job['seed']}/{link['name']}/{direction}"))
                self._paths[source] = self._named[link["name"], direction] = path
                self._waiter.add(source)
        self._heap: list[tuple[int, int, _Path, bytes]] = []
        self._sequence = 0
        self._late = [0] * _LATE_BINS
        self._late_max_ns = 0

    def run(self) -> None:
        """Until told to stop, or the parent has gone."""
        heap, control_fd = self._heap, self._control.fileno()
        while True:
            ready = self._waiter.wait(heap[0][0] if heap else None)
            for fd in ready:
                if fd == control_fd:
                    if not self._answer():
                        return
                else:
                    self._take(fd)
                if heap and heap[0][0] <= monotonic_ns():
                    self._deliver()
            self._deliver()

    def _take(self, fd: int) -> None:
        path, heap = self._paths[fd], self._heap
        impairment = path.impairment
        for _ in range(_BATCH):
            try:
                frame = os.read(fd, _FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EBADFD, errno.EIO, errno.ENODEV):  # the device has been deleted
                    self._waiter.remove(fd)
                    return
                raise
            arrived_ns = monotonic_ns()
            path.frames += 1
            delay_ns = impairment.constant_ns
            if delay_ns is not None:
                self._sequence += 1
                heapq.heappush(heap, (arrived_ns + delay_ns, self._sequence, path, frame))
                continue
            delays_ns = impairment.delays_ns()
            if not delays_ns:
                path.lost += 1
            for delay_ns in delays_ns:
                self._sequence += 1
                heapq.heappush(heap, (arrived_ns + delay_ns, self._sequence, path, frame))

    def _deliver(self) -> None:
        heap, late = self._heap, self._late
        while heap:
            now_ns = monotonic_ns()
            late_ns = now_ns - heap[0][0]
            if late_ns < 0:
                return
            _, _, path, frame = heapq.heappop(heap)
            try:
                os.write(path.out_fd, frame)
            except OSError:  # the far device is down: a real link loses the frame, too
                path.refused += 1
            late[min(late_ns // _LATE_BIN_NS, _LATE_BINS - 1)] += 1
            if late_ns > self._late_max_ns:
                self._late_max_ns = late_ns

    def _answer(self) -> bool:
        request = self._control.read()
        if request is None:
            return False
        if request["op"] == "change":
            self._named[request["link"], request["direction"]].impairment.change(request["values"])
            self._control.reply(ok=True)
        elif request["op"] == "counters":
            self._control.reply(**self._counters())
        elif request["op"] == "forget":  # lateness is judged from here on
            self._late, self._late_max_ns = [0] * _LATE_BINS, 0
            self._control.reply(ok=True)
        elif request["op"] == "stop":
            self._control.reply(**self._counters())
            return False
        else:
            self._control.reply(error=f"unknown request {request['op']!r}")
        return True

    def _counters(self) -> dict[str, Any]:
        total = sum(self._late)
        return {
            "frames": total,
            "waiting": len(self._heap),
            "late_p50_ns": self._quantile(0.5, total),
            "late_p99_ns": self._quantile(0.99, total),
            "late_max_ns": self._late_max_ns if total else None,
            "cpu_s": cpu_seconds(),
            "links": [
                {"link": link, "direction": direction, "frames": p.frames, "lost": p.lost, "refused": p.refused}
                for (link, direction), p in self._named.items()
            ],
        }

    def _quantile(self, share: float, total: int) -> int | None:
        if not total:
            return None
        seen = 0
        for index, count in enumerate(self._late):
            seen += count
            if seen >= share * total:
                return min(index * _LATE_BIN_NS + _LATE_BIN_NS // 2, self._late_max_ns)
        return self._late_max_ns


def _main() -> None:
    job, control, priority = enter(int(sys.argv[1]))
    line = DelayLine(job, control)
    gc.collect()
    gc.freeze()
    gc.disable()  # frames hold no cycles; a collection would be a pause of all links
    control.reply(ok=True, priority=priority)
    line.run()


if __name__ == "__main__":
    _main()
