"""`Trace`: what a link may carry over time, exact in integer nanoseconds and bits.

Semantics, in one sentence: during segment *i*, that is in [times_ns[i], times_ns[i+1]), the link may carry
``bits[i]`` IP-layer bits, spread evenly over the segment (in whole packets where ``packet_bits`` is set),
and after ``duration_ns`` the trace begins again.

The number of bits allowed up to an instant is the floor of that cumulative step function, so that the bits of
adjacent intervals always add up exactly to the bits of their union, however the time line is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

NS_PER_S = 1_000_000_000
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Trace:
    """A periodic step function of capacity, optionally with one-way delay and loss per segment.

    Parameters
    ----------
    times_ns: int64 (n+1,), segment borders, strictly increasing, the first is 0, the last is the period.
    bits: int64 (n,), IP-layer bits that may pass in each segment, not negative.
    packet_bits: size of a delivery opportunity (12,000 in Mahimahi's format) when credit comes in whole
        packets, else None. Every entry of ``bits`` is then a multiple of it.
    delay_s: float64 (n,), one-way delay in each segment, or None when the source says nothing about delay.
    loss: float64 (n,), probability of loss in each segment, or None.
    name: where it came from, for messages and tables; not part of its identity.
    """

    times_ns: IntArray
    bits: IntArray
    packet_bits: int | None = None
    delay_s: FloatArray | None = None
    loss: FloatArray | None = None
    name: str = ""
    _cumulative: IntArray = field(init=False, repr=False)
    _wide: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        times = _frozen(self.times_ns, np.int64)
        bits = _frozen(self.bits, np.int64)
        if times.ndim != 1 or bits.ndim != 1 or len(bits) < 1 or len(times) != len(bits) + 1:
            raise self._bad("a trace needs n+1 times for n segments, n at least 1", (times.shape, bits.shape))
        if times[0] != 0 or bool((np.diff(times) <= 0).any()):
            raise self._bad("times must begin at 0 and increase strictly", times[:4].tolist())
        if bool((bits < 0).any()):
            raise self._bad("bits of a segment must not be negative", int(bits.min()))
        if float(bits.sum(dtype=np.float64)) > INT64_MAX / 4:
            raise self._bad(
                "the trace carries more bits than fit in 62 bits", float(bits.sum(dtype=np.float64))
            )
        if self.packet_bits is not None and (self.packet_bits <= 0 or bool((bits % self.packet_bits).any())):
            raise self._bad("bits must be whole packets", self.packet_bits)
        self._set("times_ns", times)
        self._set("bits", bits)
        for key in ("delay_s", "loss"):
            column = getattr(self, key)
            if column is None:
                continue
            column = _frozen(column, np.float64)
            limit = np.inf if key == "delay_s" else 1.0
            if column.shape != bits.shape or not bool(((column >= 0) & (column <= limit)).all()):
                raise self._bad(f"{key} must hold one value >= 0 per segment (loss at most 1)", column.shape)
            if not bool(np.isfinite(column).all()):
                raise self._bad(f"{key} must be finite", None)
            self._set(key, column)
        self._set("_cumulative", _frozen(np.concatenate(([0], np.cumsum(bits))), np.int64))
        lengths = np.diff(times)
        # the largest product formed in _cumulative_bits; beyond int64 Python's integers take over
        largest = np.minimum(bits, lengths).astype(np.float64) * lengths.astype(np.float64)
        self._set("_wide", bool((largest > INT64_MAX / 2).any()))

    def _set(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)  # the only way to fill a frozen dataclass

    def _bad(self, problem: str, value: object) -> InputError:
        return InputError(problem, file=self.name or None, value=value)

    # ---- what it is --------------------------------------------------------------------------------------

    @property
    def duration_ns(self) -> int:
        """Period of the trace."""
        return int(self.times_ns[-1])

    @property
    def total_bits(self) -> int:
        """Bits allowed in one period."""
        return int(self._cumulative[-1])

    @property
    def mean_rate_bps(self) -> float:
        """Total bits over total duration."""
        return self.total_bits * NS_PER_S / self.duration_ns

    @property
    def rate_bps(self) -> FloatArray:
        """float64 (n,), rate of each segment."""
        return self.bits * (NS_PER_S / np.diff(self.times_ns))

    @cached_property
    def sha256(self) -> str:
        """Digest of the content (times, bits, packet size, delay, loss); the same for .gz and plain files."""
        digest = hashlib.sha256(f"trace-1 {self.packet_bits}".encode())
        for column in (self.times_ns, self.bits, self.delay_s, self.loss):
            digest.update(
                b"none" if column is None else column.astype(column.dtype.newbyteorder("<")).tobytes()
            )
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return (
            f"Trace({self.name or 'unnamed'}: {len(self.bits)} segments, "
            f"{self.duration_ns / NS_PER_S:.3f} s, mean {self.mean_rate_bps / 1e6:.3f} Mbit/s)"
        )

    # ---- reading it at an instant ------------------------------------------------------------------------

    def bits_between(self, t0_ns: int, t1_ns: int) -> int:
        """Bits allowed in [t0_ns, t1_ns); both may lie in any lap, also before 0."""
        if t1_ns < t0_ns:
            raise InputError("an interval must not end before it begins", value=(t0_ns, t1_ns))
        laps, parts = self._laps_and_bits(np.array([t0_ns, t1_ns], dtype=np.int64))
        # Python's integers: many laps of a fast trace do not fit in 64 bits
        return (int(laps[1]) - int(laps[0])) * self.total_bits + int(parts[1]) - int(parts[0])

    def bits_per_step(self, step_ns: int, steps: int, offset_ns: int = 0) -> IntArray:
        """int64 (steps,), bits allowed in each of `steps` intervals of `step_ns` from `offset_ns` on."""
        if step_ns <= 0 or steps < 0:
            raise InputError(
                "step must be positive and the number of steps not negative", value=(step_ns, steps)
            )
        borders = offset_ns % self.duration_ns + step_ns * np.arange(steps + 1, dtype=np.int64)
        bits: IntArray = np.diff(self.cumulative_bits(borders))
        return bits

    def cumulative_bits(self, t_ns: IntArray) -> IntArray:
        """int64, bits allowed in [0, t) for every t of an array (laps counted, negative before 0)."""
        laps, parts = self._laps_and_bits(t_ns)
        if len(laps) and float(np.abs(laps).max() + 1) * self.total_bits > INT64_MAX / 2:
            raise self._bad("so many laps carry more bits than fit in 62 bits", int(np.abs(laps).max()))
        total: IntArray = laps * self.total_bits + parts
        return total

    def _laps_and_bits(self, t_ns: IntArray) -> tuple[IntArray, IntArray]:
        """For every t: the whole laps before it, and the bits allowed since the begin of its lap."""
        laps, inside = np.divmod(np.asarray(t_ns, dtype=np.int64), self.duration_ns)
        index = np.searchsorted(self.times_ns, inside, side="right") - 1
        elapsed = inside - self.times_ns[index]
        bits, lengths = self.bits[index], np.diff(self.times_ns)[index]
        # floor(bits * elapsed / length) with bits = q * length + r: q * elapsed is whole already
        quotient, remainder = np.divmod(bits, lengths)
        if self._wide:
            exact = remainder.astype(object) * elapsed.astype(object) // lengths.astype(object)
            part = quotient * elapsed + exact.astype(np.int64)
        else:
            part = quotient * elapsed + remainder * elapsed // lengths
        if self.packet_bits is not None:
            part -= part % self.packet_bits
        return laps, self._cumulative[index] + part

    def segment_at(self, t_ns: int) -> int:
        """Index of the segment that holds at an instant, in whatever lap."""
        return int(np.searchsorted(self.times_ns, t_ns % self.duration_ns, side="right")) - 1

    # ---- making others of it -----------------------------------------------------------------------------

    def scaled(self, factor: float) -> Trace:
        """All rates times `factor`; rounded cumulatively: the total is off by less than one bit or packet."""
        if not 0 < factor < 1e9:
            raise InputError("the factor of a trace must be positive and finite", value=factor)
        ratio, unit = Fraction(factor), self.packet_bits or 1
        top, bottom = ratio.numerator, ratio.denominator * unit
        cumulative = [int(value) * top // bottom * unit for value in self._cumulative]
        if cumulative[-1] > INT64_MAX // 4:
            raise self._bad("the scaled trace would carry more bits than fit in 62 bits", factor)
        bits: IntArray = np.diff(np.array(cumulative, dtype=np.int64)).astype(np.int64)
        return replace(self, bits=bits)

    def shifted(self, offset_ns: int) -> Trace:
        """Rotated: what the result allows at time t is what this trace allows at t + offset_ns."""
        offset = offset_ns % self.duration_ns
        if offset == 0:
            return self
        first = self.segment_at(offset)
        cut = self.times_ns[first] != offset
        order = np.concatenate((np.arange(first, len(self.bits)), np.arange(0, first + int(cut))))
        borders = np.concatenate(
            ([offset], self.times_ns[first + 1 :], self.duration_ns + self.times_ns[1 : first + 1])
        )
        if cut or borders[-1] != offset + self.duration_ns:
            borders = np.append(borders, offset + self.duration_ns)
        return self._pieces(borders - offset, np.diff(self.cumulative_bits(borders)), order)

    def clipped(self, max_rate_bps: float) -> Trace:
        """No segment faster than `max_rate_bps`; what is above is lost, not moved.

        Delivery opportunities have no rate of their own: with `packet_bits` the limit holds for each 100 ms
        window, and the last opportunities of a window that has too many are dropped.
        """
        if max_rate_bps <= 0:
            raise InputError("the limit of a trace must be positive", value=max_rate_bps)
        lengths = np.diff(self.times_ns)
        if self.packet_bits is None:
            limits = np.array(
                [int(Fraction(max_rate_bps) * int(x) / NS_PER_S) for x in lengths], dtype=object
            )
            return replace(self, bits=np.minimum(self.bits.astype(object), limits).astype(np.int64))
        window_ns = NS_PER_S // 10
        allowed = max(1, int(max_rate_bps / 10 / self.packet_bits)) * self.packet_bits
        window = self.times_ns[:-1] // window_ns
        starts = np.concatenate(([True], np.diff(window) > 0))
        before = self._cumulative[:-1] - np.maximum.accumulate(np.where(starts, self._cumulative[:-1], 0))
        return replace(self, bits=np.clip(allowed - before, 0, self.bits))

    def resampled(self, step_ns: int) -> Trace:
        """Segments of `step_ns` (the last may be shorter) with the same bits; delay and loss are averaged."""
        if step_ns <= 0:
            raise InputError("the step of a trace must be positive", value=step_ns)
        borders = np.unique(
            np.append(np.arange(0, self.duration_ns, step_ns, dtype=np.int64), self.duration_ns)
        )
        bits = np.diff(np.append(self.cumulative_bits(borders[:-1]), self.total_bits))
        means: dict[str, FloatArray | None] = {"delay_s": None, "loss": None}
        for key in ("delay_s", "loss"):
            column = getattr(self, key)
            if column is None:
                continue
            integral = np.concatenate(([0.0], np.cumsum(column * np.diff(self.times_ns))))
            mean = np.diff(np.interp(borders, self.times_ns, integral)) / np.diff(borders)
            means[key] = np.clip(mean, column.min(), column.max())
        return replace(self, times_ns=borders, bits=bits, delay_s=means["delay_s"], loss=means["loss"])

    def _pieces(self, times_ns: IntArray, bits: IntArray, order: IntArray) -> Trace:
        """A trace of pieces of this one; `order` names the segment whose delay and loss a piece has."""
        return replace(
            self,
            times_ns=times_ns,
            bits=bits,
            delay_s=None if self.delay_s is None else self.delay_s[order],
            loss=None if self.loss is None else self.loss[order],
        )


def concatenate(traces: Sequence[Trace], name: str = "") -> Trace:
    """One trace after the other. Delay and loss survive only when all of them have them."""
    if not traces:
        raise InputError("nothing to concatenate", remedy="name at least one trace")
    starts = np.cumsum([0] + [trace.duration_ns for trace in traces])
    times = [trace.times_ns[:-1] + start for trace, start in zip(traces, starts[:-1], strict=True)]
    packets = {trace.packet_bits for trace in traces}

    def joined(key: str) -> FloatArray | None:
        columns = [getattr(trace, key) for trace in traces]
        return None if any(column is None for column in columns) else np.concatenate(columns)

    return Trace(
        times_ns=np.concatenate([*times, starts[-1:]]),
        bits=np.concatenate([trace.bits for trace in traces]),
        packet_bits=packets.pop() if len(packets) == 1 else None,
        delay_s=joined("delay_s"),
        loss=joined("loss"),
        name=name or "+".join(trace.name for trace in traces),
    )


def constant(rate_bps: int, duration_ns: int = NS_PER_S, name: str = "") -> Trace:
    """A fixed rate as a trace of one segment."""
    bits = rate_bps * duration_ns // NS_PER_S
    return Trace(np.array([0, duration_ns]), np.array([bits]), name=name or f"constant {rate_bps} bit/s")


def device_offset_ns(trace: Trace, seed: int, device: int | str, step_ns: int = 1_000_000) -> int:
    """A start offset for one device, uniform over the period in whole `step_ns`, from (seed, device) alone.

    Devices that share a trace must not move in lockstep; adding a device leaves the others' offsets as they
    were, because each draws from a generator of its own.
    """
    key = hashlib.sha256(f"{seed}/{device}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(key[:16], "little"))
    return int(generator.integers(0, max(1, trace.duration_ns // step_ns))) * step_ns


def _frozen(values: Any, dtype: type) -> Any:
    array: NDArray[Any] = np.array(values, dtype=dtype, copy=True)
    array.setflags(write=False)
    return array
