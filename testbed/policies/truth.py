"""What the links really carried: replayed capacity, delays and outages of a trial, and when a message would have arrived.

Model. A message of n bytes is n bytes and 52 bytes of IP and TCP headers per 1448 begun (`measurement.wire`). On each
direction of a link its last bit leaves when the link has carried all its bits since the message came. A replayed trace
gives its bits step by step (10 ms), as `emulation.replay` does: a link that was idle has the credit of the whole step, and
packets leave in the first quarter of a step. On a fixed rate the token bucket (one packet and 2 ms of the rate) passes at
once. Over several links the message is cut through: it arrives when the slowest of them has carried it all, plus every
one-way delay. Neglected: slow start, loss and retransmission, jitter, other devices' traffic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.measurement.wire import wire_bytes
from testbed.traces import Trace

FloatArray = NDArray[np.float64]
Span = tuple[float, float]  # (from, to) in ns since the start
NS_PER_S = 1e9
UNSHAPED_BPS = 1e12  # of a link without a rate
BURST_SHARE = 0.25  # of a step in which its credit may leave (PEAK_FACTOR of emulation.replay)
_STORED = ("times_ns", "bits")


@dataclass(frozen=True)
class Capacity:
    """One direction of a link over a trial: IP bits that it may have carried up to an instant.

    times_ns: float64 (n+1,), increasing, from 0 (the start of the load). bits: float64 (n+1,), cumulative, not falling,
    from 0; straight between the instants. After the last instant `rate_after_bps` goes on. `step_ns`, `phase_ns`: credit
    comes in steps of this length, the first at `phase_ns` (0: not in steps).
    """

    times_ns: FloatArray
    bits: FloatArray
    delay_s: float = 0.0
    bucket_bytes: float = 0.0
    rate_after_bps: float = UNSHAPED_BPS
    step_ns: float = 0.0
    phase_ns: float = 0.0

    @classmethod
    def of_rate(cls, rate_bps: float | None, delay_s: float = 0.0, bucket_bytes: float = 0.0) -> Capacity:
        """A fixed rate; None: not shaped, only the delay."""
        return cls(np.zeros(1), np.zeros(1), delay_s, bucket_bytes, UNSHAPED_BPS if rate_bps is None else float(rate_bps))

    @classmethod
    def of_trace(cls, trace: Trace, horizon_s: float, offset_ns: int = 0, delay_s: float = 0.0, *, loop: bool = True,
                 step_ns: int = 10_000_000, phase_ns: int = 0) -> Capacity:
        """A trace replayed from `offset_ns` on in steps, up to `horizon_s`; afterwards its mean rate (0 without `loop`)."""
        steps = int(horizon_s * NS_PER_S) // step_ns + 1
        at = phase_ns + step_ns * np.arange(steps + 1, dtype=np.int64)
        places = at + offset_ns if loop else np.minimum(at + offset_ns, trace.duration_ns)
        if loop:
            bits = trace.cumulative_bits(places).astype(np.float64)
        else:
            ends = places == trace.duration_ns
            bits = np.where(ends, float(trace.total_bits), trace.cumulative_bits(np.where(ends, 0, places)))
        bits = bits - bits[0]
        times = np.column_stack((at[:-1], at[:-1] + step_ns * BURST_SHARE)).ravel()
        first = [] if phase_ns == 0 else [0.0]
        return cls(np.concatenate((first, times, at[-1:])).astype(np.float64),
                   np.concatenate((first, np.column_stack((bits[:-1], bits[1:])).ravel(), bits[-1:])), delay_s, 0.0,
                   trace.mean_rate_bps if loop else 0.0, float(step_ns), float(phase_ns))

    def carried(self, t_ns: ArrayLike) -> FloatArray:
        """Bits that may have been carried in [0, t), for every t."""
        t = np.asarray(t_ns, dtype=np.float64)
        beyond = np.maximum(t - self.times_ns[-1], 0.0) * (self.rate_after_bps / NS_PER_S)
        found: FloatArray = np.interp(t, self.times_ns, self.bits) + beyond
        return found

    def done_ns(self, size_bytes: ArrayLike, t_ns: ArrayLike, free_ns: ArrayLike = 0.0) -> FloatArray:
        """When the last bit of a message that comes at t has left (without the delay); inf when it never does.

        free_ns: when the message before it had left. What it used of a step's credit is not there any more.
        """
        t = np.maximum(np.asarray(t_ns, dtype=np.float64), np.asarray(free_ns, dtype=np.float64))
        wire = wire_bytes(np.asarray(size_bytes, dtype=np.float64))
        size = np.maximum(0.0, wire - self.bucket_bytes) * 8
        if not self.step_ns:
            return np.maximum(self._reached_ns(self.carried(t) + size), t)
        begin = self.phase_ns + np.floor((t - self.phase_ns) / self.step_ns) * self.step_ns
        target = np.maximum(self.carried(begin), self.carried(free_ns)) + size
        burst_ns = self.step_ns * BURST_SHARE
        peak = (self.carried(begin + burst_ns) - self.carried(begin)) / burst_ns  # bits per ns
        within = (target <= self.carried(begin + self.step_ns)) & (peak > 0)
        at_once = t + size / np.where(peak > 0, peak, 1.0)
        return np.asarray(np.where(within, at_once, np.maximum(self._reached_ns(target), t)))

    def done_at_ns(self, size_bytes: float, t_ns: float, free_ns: float = 0.0) -> float:
        """`done_ns` of one message; many times faster than an array of one."""
        t = max(t_ns, free_ns)
        size = max(0.0, wire_bytes(float(size_bytes)) - self.bucket_bytes) * 8
        if not self.step_ns:
            return max(self._reached_at_ns(self._carried_at(t) + size), t)
        begin = self.phase_ns + (t - self.phase_ns) // self.step_ns * self.step_ns
        before = self._carried_at(begin)
        target = max(before, self._carried_at(free_ns)) + size
        burst_ns = self.step_ns * BURST_SHARE
        peak = (self._carried_at(begin + burst_ns) - before) / burst_ns
        if peak > 0 and target <= self._carried_at(begin + self.step_ns):
            return t + size / peak
        return max(self._reached_at_ns(target), t)

    @cached_property
    def _lists(self) -> tuple[list[float], list[float]]:
        return self.times_ns.tolist(), self.bits.tolist()

    def _carried_at(self, t: float) -> float:
        times, bits = self._lists
        if t >= times[-1]:
            return bits[-1] + (t - times[-1]) * (self.rate_after_bps / NS_PER_S)
        if t <= times[0]:
            return bits[0]
        i = bisect_right(times, t)
        return bits[i - 1] + (bits[i] - bits[i - 1]) * (t - times[i - 1]) / (times[i] - times[i - 1])

    def _reached_at_ns(self, target: float) -> float:
        times, bits = self._lists
        over = target - bits[-1]
        if over > 0 or len(bits) == 1:
            return times[-1] + over * NS_PER_S / self.rate_after_bps if self.rate_after_bps > 0 else float("inf")
        i = min(max(bisect_left(bits, target), 1), len(bits) - 1)
        low, high = bits[i - 1], bits[i]
        return times[i - 1] + (times[i] - times[i - 1]) * ((target - low) / (high - low) if high > low else 0.0)

    def _reached_ns(self, target: FloatArray) -> FloatArray:
        """First instant at which so many bits may have been carried."""
        over = target - self.bits[-1]
        after = over * NS_PER_S / self.rate_after_bps if self.rate_after_bps > 0 else np.where(over > 0, np.inf, 0.0)
        found = self.times_ns[-1] + after
        if len(self.bits) > 1:
            index = np.clip(np.searchsorted(self.bits, target, side="left"), 1, len(self.bits) - 1)
            low, high = self.bits[index - 1], self.bits[index]
            share = (target - low) / np.where(high > low, high - low, 1.0)
            inside = self.times_ns[index - 1] + share * (self.times_ns[index] - self.times_ns[index - 1])
            found = np.where(over <= 0, inside, found)
        return np.asarray(found, dtype=np.float64)

    def changed(self, spans: Iterable[tuple[float, float, float]]) -> Capacity:
        """With another rate (bit/s) in spans (from, to, rate) of ns: 0 while the link is down. Spans may lie after the end."""
        out = self
        for begin, end, rate in spans:
            out = out._cut(float(begin), float(end), float(rate))
        return out

    def _cut(self, begin: float, end: float, rate: float) -> Capacity:
        grid = np.unique(np.concatenate((self.times_ns, [begin, end])))
        slopes = np.diff(self.carried(grid))
        inside = (grid[:-1] >= begin) & (grid[1:] <= end)
        slopes[inside] = np.diff(grid)[inside] * rate / NS_PER_S
        bits = np.concatenate(([0.0], np.cumsum(slopes)))
        return replace(self, times_ns=grid, bits=bits)


@dataclass(frozen=True)
class Truth:
    """All links of a trial as one device meets them.

    start_ns: CLOCK_MONOTONIC of the start of the load. sides: (node, neighbour) -> capacity from the one to the other.
    ways: (src, dst) -> nodes on the way, both included. outages: node -> spans in which its program does not work.
    """

    start_ns: int
    sides: Mapping[tuple[str, str], Capacity]
    ways: Mapping[tuple[str, str], tuple[str, ...]]
    outages: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)

    def way(self, src: str, dst: str) -> tuple[tuple[str, str], ...]:
        """Directions that a message from src to dst crosses, in order. Raises KeyError."""
        nodes = self.ways[src, dst]
        return tuple(pairwise(nodes))

    def arrival_ns(self, src: str, dst: str, size_bytes: ArrayLike, since_ns: ArrayLike) -> FloatArray:
        """When the last byte arrives, in ns since the start, of messages handed over `since_ns` after the start."""
        t = np.asarray(since_ns, dtype=np.float64)
        sides = [self.sides[pair] for pair in self.way(src, dst)]
        delays = [side.delay_s * NS_PER_S for side in sides]
        ahead = [sum(delays[:i]) for i in range(len(sides))]
        last = [side.done_ns(size_bytes, t + before) - before for side, before in zip(sides, ahead, strict=True)]
        return np.asarray(np.maximum.reduce([*last, t]) + sum(delays))

    def transfer_s(self, src: str, dst: str, size_bytes: float, t_ns: int) -> float:
        """Seconds until a message handed over at t_ns (CLOCK_MONOTONIC) has arrived; inf when it never does."""
        since = float(t_ns - self.start_ns)
        return float(self.arrival_ns(src, dst, size_bytes, since) - since) / NS_PER_S

    def works(self, node: str, from_ns: ArrayLike, to_ns: ArrayLike) -> NDArray[np.bool_]:
        """Whether the node's program works all the time between two instants (ns since the start)."""
        begin, end = np.asarray(from_ns, dtype=np.float64), np.asarray(to_ns, dtype=np.float64)
        up = np.ones(np.broadcast(begin, end).shape, dtype=bool)
        for down, again in self.outages.get(node, ()):
            up &= (end < down) | (begin >= again)
        return up

    def works_at(self, node: str, from_ns: float, to_ns: float) -> bool:
        """`works` for one span."""
        return all(to_ns < down or from_ns >= again for down, again in self.outages.get(node, ()))

    def save(self, path: Path) -> None:
        """Write it as one .npz file."""
        arrays: dict[str, Any] = {"start_ns": np.int64(self.start_ns)}
        for (a, b), side in self.sides.items():
            for name in _STORED:
                arrays[f"side:{a}:{b}:{name}"] = getattr(side, name)
            arrays[f"side:{a}:{b}:scalars"] = np.array([
                side.delay_s, side.bucket_bytes, side.rate_after_bps, side.step_ns, side.phase_ns])
        for (a, b), nodes in self.ways.items():
            arrays[f"way:{a}:{b}"] = np.array(nodes)
        for node, spans in self.outages.items():
            arrays[f"outage:{node}"] = np.array(spans, dtype=np.float64).reshape(-1, 2)
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `save` wrote."""
        sides, ways, outages = {}, {}, {}
        with np.load(path, allow_pickle=False) as stored:
            start_ns = int(stored["start_ns"])
            for key in stored.files:
                kind, *names = key.split(":")
                if kind == "side" and names[2] == "scalars":
                    prefix, numbers = key.rpartition(":")[0], stored[key].tolist()
                    sides[names[0], names[1]] = Capacity(*(stored[f"{prefix}:{name}"] for name in _STORED), *numbers)
                elif kind == "way":
                    ways[names[0], names[1]] = tuple(map(str, stored[key]))
                elif kind == "outage":
                    outages[names[0]] = tuple((float(a), float(b)) for a, b in stored[key])
        return cls(start_ns, sides, ways, outages)

    def started(self, start_ns: int) -> Truth:
        """The same with another start instant."""
        return Truth(start_ns, self.sides, self.ways, self.outages)


def spans_until(changes: Sequence[tuple[float, bool]], end: float = float("inf")) -> tuple[Span, ...]:
    """Spans between switches (instant, on?) in time order; one that is never switched off lasts until `end`."""
    spans: list[Span] = []
    since: float | None = None
    for at, on in sorted(changes, key=lambda change: change[0]):
        if on and since is None:
            since = at
        elif not on and since is not None:
            spans.append((since, at))
            since = None
    return (*spans, (since, end)) if since is not None else tuple(spans)
