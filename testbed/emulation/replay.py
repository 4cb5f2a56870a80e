"""Shaping and trace replay: one process that holds the rate of every direction of every link.

Semantics, in one sentence: at each step (10 ms unless told otherwise) a direction is credited exactly the IP-layer
bytes that its trace allows in that step, a packet leaves when the credit covers it, credit that packets still waiting
at the end of the step could not use is carried over, and credit for which nothing waited expires.

So a link that was idle sends at most one step's worth at once, the bytes of a busy link add up to the trace's to
within one packet, and an outage (credit zero) holds its queue: packets are lost to the queue's limit only. Below one
packet per step, credit accumulates while packets wait; a packet that finds such a slow link idle is seen at the next
step. Steps of different directions are spread evenly over the step, so that they do not come all at one instant.

The kernel does the work: each credit is one in-place change of a token bucket (`netlink`). Started by `fabric`.
"""

from __future__ import annotations

import gc
import heapq
import os
import struct
import sys
from array import array
from pathlib import Path
from time import monotonic_ns
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from testbed.emulation import netlink
from testbed.emulation.helper import Control, Waiter, cpu_seconds, enter
from testbed.emulation.netlink import Kicker, QdiscSocket, QdiscStats
from testbed.emulation.netns import NetNamespace
from testbed.traces.trace import Trace

PEAK_FACTOR = 4  # packets of a step leave in its first quarter, one after the other, not all at its first instant
CHUNK_STEPS = 256
POLL_NS = 100_000_000
UPDATE = struct.Struct("=HHqqq")  # direction index, 0, asked_ns, applied_ns, credit_bytes
UPDATE_DTYPE = np.dtype(
    [("direction", "u2"), ("pad", "u2"), ("asked_ns", "i8"), ("applied_ns", "i8"), ("credit_bytes", "i8")]
)
COLUMNS = (
    "t_ns,link,direction,trace,trace_offset_ns,target_rate_bps,applied_rate_bps,apply_lag_ns,target_delay_s,"
    "target_loss,tx_bytes,tx_packets,dropped_packets,backlog_bytes,allowed_bytes,apply_lag_p50_ns"
)


class Direction:
    """One direction's bucket: a fixed rate, a replayed trace, or held."""

    def __init__(self, index: int, fields: dict[str, Any], socket: QdiscSocket, namespace: NetNamespace) -> None:
        self.index, self.link, self.name = index, str(fields["link"]), str(fields["direction"])
        self.delay_s, self.loss = float(fields["delay_s"]), float(fields["loss"])
        self.trace_name, self.trace_offset_ns = str(fields["trace_name"]), int(fields["trace_offset_ns"])
        self.trace = _load_trace(fields["trace_fd"], self.trace_name) if fields["trace_fd"] is not None else None
        self.stop_at_end = fields["at_end"] == "stop"
        self._rate_bps: int | None = fields["rate_bps"]  # for a trace: its mean, until the replay starts
        self._burst_bytes: int | None = fields["burst_bytes"]
        self._bursting = False  # from the start of the replay on: calibration measures the rate
        self._override_bps: int | None = None
        self.down = self.held = False
        self.replaying = False
        self._ifindex, self._mtu, self._limit = int(fields["ifindex"]), int(fields["mtu"]), int(fields["limit"])
        self._packets = fields["limit_kind"] == "packets"
        # whether the bucket counts IP bytes (a fixed rate) or frames (credits; no limit): see `netlink`
        self._counts_ip = self.trace is None and self._rate_bps is not None
        self._socket, self._request = socket, socket.stats_request(int(fields["ifindex"]))
        self._kick = Kicker(namespace, str(fields["interface"]), self._mtu)
        self._installed = False
        self._last_message = b""
        self.last = QdiscStats(0, 0, 0, 0, 0)
        self.sent_bytes = 0  # of IP, since the link was made
        self._accounted_bytes = 0  # how much of it the credits have been charged for
        self.allowed_bytes = 0  # since the replay began
        self._balance = 0
        self._window_start: tuple[int, int] = (0, 0)  # t_ns, allowed_bytes at the last poll row
        self._chunk: NDArray[np.int64] = np.zeros(0, np.int64)
        self._chunk_first = 0
        self._granted_bits = 0
        self.next_step = 0
        self.epoch_ns = 0  # instant at which the trace stands at its offset, moved on by pauses
        self.phase_ns = 0
        self.step_ns = 10_000_000
        self.lags_ns = array("q")
        self._window_lags: list[int] = []
        self.missed_steps = 0
        self.apply_static()

    # ---- fixed rates and holding -------------------------------------------------------------------------

    def apply_static(self) -> None:
        """Set what holds while no trace runs: a fixed rate, no limit, or held."""
        rate_bps = self._fixed_bps
        self._last_message = b""
        if self.down or self.held or rate_bps == 0:
            self._set(self._closed())
            return
        rate_bytes = None if rate_bps is None else max(1, rate_bps // 8)
        largest, by_table = self._mtu, self._counts_ip
        if not by_table:  # frames: exact for full packets
            largest += netlink.ETHERNET_HEADER_BYTES
            rate_bytes = None if rate_bytes is None else max(1, rate_bytes * largest // self._mtu)
        if self._installed:  # wake the bucket while its largest packet is still smaller than the kick
            self._set(self._fixed(rate_bytes, largest))
            self._kick()
        self._set(self._fixed(rate_bytes, self._burst_bytes if self._bursting else None))

    def _fixed(self, rate_bytes: int | None, burst_bytes: int | None = None) -> bytes:
        return netlink.fixed_message(
            self._ifindex, self._limit, rate_bytes, self._mtu, self._counts_ip, burst_bytes=burst_bytes
        )

    def _closed(self) -> bytes:
        return netlink.closed_message(self._ifindex, self._limit, self._mtu, self._counts_ip)

    def _set(self, message: bytes) -> None:
        if self._installed:
            self._socket.request(message, f"link {self.link} {self.name}")
            return
        self._socket.install(message)
        if self._packets:
            self._socket.packet_queue(self._ifindex, self._limit)
        self._installed = True

    @property
    def _fixed_bps(self) -> int | None:
        return self._rate_bps if self._override_bps is None else self._override_bps

    @property
    def stepping(self) -> bool:
        """Whether the trace decides now."""
        return self.replaying and self._override_bps is None

    def set_rate(self, rate_bps: int | None) -> None:
        """A fixed rate instead of what the file says; None goes back to it."""
        self._override_bps = rate_bps
        if self.stepping:
            self._balance = 0
            self._last_message = b""
        else:
            self.apply_static()

    def set_down(self, down: bool) -> None:
        """Hold everything in the queue, or let it go on; a trace's time passes meanwhile, unused."""
        self.down = down
        if down or not self.stepping:
            self.apply_static()
        else:
            self._last_message = b""

    # ---- replay ------------------------------------------------------------------------------------------

    def allow_burst(self) -> None:
        """Let the bucket of a fixed rate hold its burst from now on; it begins full."""
        self._bursting = self._burst_bytes is not None
        if self._bursting:
            self.apply_static()

    def begin(self, start_ns: int, phase_ns: int, step_ns: int) -> int:
        """Arm the replay; returns the first due instant."""
        self.epoch_ns, self.phase_ns, self.step_ns = start_ns, phase_ns, step_ns
        self.next_step, self._granted_bits, self._chunk_first = 0, 0, 0
        self._chunk = self._cumulative(0)
        return start_ns + phase_ns

    def _cumulative(self, first: int) -> NDArray[np.int64]:
        """Bits allowed from the epoch to the end of each of the next steps."""
        assert self.trace is not None
        ends = self.phase_ns + self.step_ns * np.arange(first + 1, first + 1 + CHUNK_STEPS, dtype=np.int64)
        positions = self.trace_offset_ns + ends
        start = self.trace_offset_ns
        if self.stop_at_end:
            positions = np.minimum(positions, max(self.trace.duration_ns, start))
        base = self.trace.cumulative_bits(np.array([start], dtype=np.int64))[0]
        cumulative: NDArray[np.int64] = self.trace.cumulative_bits(positions) - base
        return cumulative

    def step(self, due_ns: int) -> tuple[int, int]:
        """Account for the step that ended, credit the one that begins; returns (applied_ns, credit_bytes)."""
        number = self.next_step
        if not self.replaying:  # the first step: what passed before belongs to the fixed rate
            self.refresh()
            self.replaying, self._balance, self._accounted_bytes = True, 0, self.sent_bytes
            self._window_start = (due_ns, 0)
        behind = (monotonic_ns() - due_ns) // self.step_ns
        if behind > 0:
            self.missed_steps += behind
            number += behind
        offset = number - self._chunk_first
        if offset >= len(self._chunk):
            self._chunk_first, offset = number, 0
            self._chunk = self._cumulative(number)
        granted_bits = int(self._chunk[offset])
        allowed = granted_bits // 8 - self._granted_bits // 8
        self._granted_bits = granted_bits
        self.next_step = number + 1
        self._credit(allowed)
        return monotonic_ns(), allowed

    def _credit(self, allowed: int) -> None:
        self.refresh()
        waiting = self.last.queued_packets
        balance = self._balance - (self.sent_bytes - self._accounted_bytes)
        self._accounted_bytes = self.sent_bytes
        if balance > 0 and waiting == 0:
            balance = 0  # nothing waited for it
        if self._override_bps is not None or self.down:
            self._balance = min(balance, 0)
            return
        self.allowed_bytes += allowed
        self._balance = balance = balance + allowed
        message = self._grant(balance, waiting)
        if message is None:
            message = self._closed()
            if message != self._last_message:
                self._socket.send(message)
        else:
            self._socket.send(message)
            if waiting:
                self._kick()
        self._last_message = message

    def _grant(self, balance: int, waiting: int) -> bytes | None:
        """The bucket that lets out ``balance`` IP bytes, or None when that does not cover a packet yet."""
        mtu, header = self._mtu, netlink.ETHERNET_HEADER_BYTES
        size = mtu  # of the packets to come, unless small ones are known to wait (exactly known when it is one)
        if waiting:
            size = min(mtu, max(1, -(-self.last.backlog_bytes // waiting) - header))
        packets = balance // size
        if packets < 1 or (balance < mtu and not waiting):
            return None
        cost = 0
        if balance < mtu:  # the bucket cannot be smaller than a full frame: make each packet cost its share of it
            frames, cost = mtu + header, (mtu + header) // packets
        else:
            frames = balance + header * packets
        peak = PEAK_FACTOR * frames * 1_000_000_000 // self.step_ns
        return netlink.credit_message(self._ifindex, self._limit, frames, peak, mtu, cost)

    # ---- records -----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the kernel's counters."""
        before, now = self.last, self._socket.stats(self._request)
        self.sent_bytes += now.sent_bytes - before.sent_bytes
        if not self._counts_ip:
            self.sent_bytes -= netlink.ETHERNET_HEADER_BYTES * (now.sent_packets - before.sent_packets)
        self.last = now

    def note(self, lag_ns: int) -> None:
        self.lags_ns.append(lag_ns)
        self._window_lags.append(lag_ns)

    def row(self, t_ns: int) -> str:
        """One line of links.csv."""
        stats, (since_ns, allowed_then) = self.last, self._window_start
        position = target = applied = allowed = lag = median = ""
        if self.stepping and t_ns > since_ns:
            target = f"{(self.allowed_bytes - allowed_then) * 8e9 / (t_ns - since_ns):.0f}"
            applied = "0" if self.down else target
        elif self._fixed_bps is not None:
            target = str(self._fixed_bps)
            applied = "0" if self.down or self.held else str(self.rate_readback_bps)
        if self.replaying:
            allowed = str(self.allowed_bytes)
            if self.trace is not None:
                played = self.trace_offset_ns + self.next_step * self.step_ns + self.phase_ns
                position = str(played % self.trace.duration_ns)
        if self._window_lags:
            ordered = sorted(self._window_lags)
            lag, median = str(ordered[-1]), str(ordered[len(ordered) // 2])
            self._window_lags.clear()
        self._window_start = (t_ns, self.allowed_bytes)
        return (
            f"{t_ns},{_quoted(self.link)},{self.name},{_quoted(self.trace_name)},{position},{target},{applied},{lag},"
            f"{self.delay_s:.9g},{self.loss:.9g},{self.sent_bytes},{stats.sent_packets},{self.dropped},"
            f"{self.backlog_bytes},{allowed},{median}\n"
        )

    @property
    def rate_readback_bps(self) -> int:
        """IP-layer rate that the kernel holds."""
        rate_bps = (self.last.rate_bytes or 0) * 8
        return rate_bps if self._counts_ip else -(-rate_bps * self._mtu // (self._mtu + netlink.ETHERNET_HEADER_BYTES))

    @property
    def backlog_bytes(self) -> int:
        """IP bytes that wait in the queue."""
        header = 0 if self._counts_ip else netlink.ETHERNET_HEADER_BYTES
        return max(0, self.last.backlog_bytes - header * self.last.queued_packets)

    @property
    def dropped(self) -> int:
        """Packets that the queue refused (the shaper's own kicks taken off)."""
        return max(0, self.last.drops - self._kick.refused)

    def counters(self) -> dict[str, Any]:
        """Kernel counters since the link was made."""
        self.refresh()
        return {
            "tx_bytes": self.sent_bytes,
            "tx_packets": self.last.sent_packets,
            "dropped_packets": self.dropped,
            "backlog_bytes": self.backlog_bytes,
            "backlog_packets": self.last.queued_packets,
            "allowed_bytes": self.allowed_bytes,
        }

    def summary(self) -> dict[str, Any]:
        """What the run must know about its shaper."""
        self.refresh()
        lags = np.frombuffer(self.lags_ns, dtype=np.int64) if self.lags_ns else np.zeros(0, np.int64)
        quantiles = np.quantile(lags, (0.5, 0.99, 1.0)).astype(int).tolist() if len(lags) else (None, None, None)
        fixed = not self.stepping and not self.down and bool(self._fixed_bps)
        return {
            **self.counters(),
            "updates": len(lags),
            "apply_lag_p50_ns": quantiles[0],
            "apply_lag_p99_ns": quantiles[1],
            "apply_lag_max_ns": quantiles[2],
            "missed_steps": self.missed_steps,
            "step_ns": self.step_ns,
            "rate_asked_bps": self._fixed_bps if fixed else None,
            "rate_readback_bps": self.rate_readback_bps if fixed else None,
        }


class Shaper:
    """Event loop over all directions and the control socket."""

    def __init__(self, job: dict[str, Any], control: Control) -> None:
        self._control = control
        self._waiter = Waiter()
        self._waiter.add(control.fileno())
        self._step_ns = int(job["step_ns"])
        folder = Path(job["run_dir"])
        self._rows: TextIO = (folder / "links.csv").open("w", buffering=1 << 16)
        self._rows.write(COLUMNS + "\n")
        self._updates = (folder / "link_updates.bin").open("wb", buffering=1 << 20)
        sockets: dict[int, QdiscSocket] = {}
        self._directions: list[Direction] = []
        for index, fields in enumerate(job["directions"]):
            namespace = NetNamespace(fields["netns_fd"])
            key = os.fstat(namespace.fd).st_ino
            if key not in sockets:
                sockets[key] = QdiscSocket(namespace)
            self._directions.append(Direction(index, fields, sockets[key], namespace))
        self._sockets = list(sockets.values())
        self._named = {(d.link, d.name): d for d in self._directions}
        self._newest = [""] * len(self._directions)  # the last row of each
        now_ns = monotonic_ns()
        # due instant, kind (0 = step, 1 = poll), direction
        self._schedule = [(now_ns + POLL_NS, 1, d.index) for d in self._directions]
        heapq.heapify(self._schedule)
        self._paused_ns: int | None = None

    def run(self) -> None:
        """Until told to stop, or the parent has gone."""
        control_fd = self._control.fileno()
        while True:
            ready = self._waiter.wait(self._schedule[0][0] if self._schedule else None)
            if control_fd in ready and not self._answer():
                break
            while self._schedule and self._schedule[0][0] <= monotonic_ns():
                self._fire(*heapq.heappop(self._schedule))
        self._rows.close()
        self._updates.close()

    def _fire(self, due_ns: int, kind: int, index: int) -> None:
        direction = self._directions[index]
        if kind == 0:
            applied_ns, credit_bytes = direction.step(due_ns)
            direction.note(applied_ns - due_ns)
            self._updates.write(UPDATE.pack(index, 0, due_ns, applied_ns, credit_bytes))
            next_ns = direction.epoch_ns + direction.phase_ns + direction.next_step * direction.step_ns
            heapq.heappush(self._schedule, (next_ns, 0, index))
            return
        direction.refresh()
        now_ns = monotonic_ns()
        self._newest[index] = direction.row(now_ns)
        self._rows.write(self._newest[index])
        heapq.heappush(self._schedule, (max(due_ns + POLL_NS, now_ns), 1, index))

    def _answer(self) -> bool:
        request = self._control.read()
        if request is None:
            return False
        op = request.pop("op")
        try:
            if op == "stop":
                self._control.reply(**self._summary())
                return False
            self._control.reply(**getattr(self, f"_do_{op}")(**request))
        except Exception as error:  # a bad request must not end the emulation; the caller gets it as an error
            self._control.reply(error=f"{op}: {type(error).__name__}: {error}")
        return True

    def _do_start(self, start_ns: int) -> dict[str, Any]:
        playing = [d for d in self._directions if d.trace is not None]
        for position, direction in enumerate(playing):
            phase_ns = position * self._step_ns // len(playing)
            heapq.heappush(self._schedule, (direction.begin(start_ns, phase_ns, self._step_ns), 0, direction.index))
        for direction in self._directions:
            direction.allow_burst()
        return {"ok": True}

    def _do_pause(self) -> dict[str, Any]:
        if self._paused_ns is None:
            self._paused_ns = monotonic_ns()
            self._schedule = [entry for entry in self._schedule if entry[1] == 1]
            heapq.heapify(self._schedule)
            for direction in self._directions:
                if direction.replaying:
                    direction.held = True
                    direction.apply_static()
        return {"ok": True}

    def _do_resume(self) -> dict[str, Any]:
        if self._paused_ns is not None:
            stood_ns = monotonic_ns() - self._paused_ns
            self._paused_ns = None
            for direction in self._directions:
                if direction.replaying:
                    direction.held = False
                    direction.epoch_ns += stood_ns
                    due_ns = direction.epoch_ns + direction.phase_ns + direction.next_step * direction.step_ns
                    heapq.heappush(self._schedule, (due_ns, 0, direction.index))
        return {"ok": True}

    def _do_rate(self, link: str, direction: str, rate_bps: int | None) -> dict[str, Any]:
        self._named[link, direction].set_rate(rate_bps)
        return {"ok": True}

    def _do_down(self, link: str, directions: list[str], down: bool) -> dict[str, Any]:
        for name in directions:
            self._named[link, name].set_down(down)
        return {"ok": True}

    def _do_noted(self, link: str, direction: str, delay_s: float, loss: float) -> dict[str, Any]:
        side = self._named[link, direction]
        side.delay_s, side.loss = delay_s, loss
        return {"ok": True}

    def _do_newest(self) -> dict[str, Any]:
        return {"rows": "".join(self._newest)}

    def _do_counters(self) -> dict[str, Any]:
        return {f"{d.link} {d.name}": d.counters() for d in self._directions}

    def _summary(self) -> dict[str, Any]:
        links: dict[str, dict[str, Any]] = {}
        for direction in self._directions:
            links.setdefault(direction.link, {})[direction.name] = direction.summary()
            self._rows.write(direction.row(monotonic_ns()))
        errors = [error for socket in self._sockets for error in socket.errors]
        return {"links": links, "cpu_s": cpu_seconds(), "errors": errors[:20], "error_count": len(errors)}


def read_updates(path: str | Path) -> NDArray[Any]:
    """Every update of a run (fields of UPDATE_DTYPE): when it was due and done, and what it credited."""
    updates: NDArray[Any] = np.fromfile(path, dtype=UPDATE_DTYPE)
    return updates


def _load_trace(fd: int, name: str) -> Trace:
    with os.fdopen(fd, "rb") as file, np.load(file) as arrays:
        packet_bits = int(arrays["packet_bits"]) or None
        return Trace(arrays["times_ns"], arrays["bits"], packet_bits=packet_bits, name=name)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _main() -> None:
    job, control, priority = enter(int(sys.argv[1]))
    shaper = Shaper(job, control)
    gc.collect()
    gc.freeze()
    gc.disable()
    control.reply(ok=True, priority=priority)
    shaper.run()


if __name__ == "__main__":
    _main()
