"""What one direction of a link shall do: rate or trace, queue, delay, jitter, loss, reordering, duplication."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.emulation import netlink
from testbed.emulation.impairment import TABLE_SCALE
from testbed.errors import InputError
from testbed.traces import Trace

MTU_BYTES = 1500
TABLE_SIZE = 4096
MAX_RATE_BPS = 32_000_000_000  # the kernel's 32-bit bytes per second
DEFAULT_QUEUE_PACKETS = 30
DEFAULT_QUEUE_S = 0.2
UNSHAPED_QUEUE_BYTES = 1000 * MTU_BYTES  # while an unshaped link is held down: a usual device queue


@dataclass(frozen=True)
class GilbertElliott:
    """Two-state loss: per packet, good -> bad with probability ``p``, bad -> good with ``r``.

    ``loss_bad`` and ``loss_good`` are the loss probabilities in the states (netem's 1-h and 1-k).
    """

    p: float
    r: float
    loss_bad: float = 1.0
    loss_good: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Loss in the long run."""
        if self.p + self.r == 0:
            return self.loss_good
        bad = self.p / (self.p + self.r)
        return bad * self.loss_bad + (1 - bad) * self.loss_good

    @classmethod
    def correlated(cls, loss: float, correlation: float) -> GilbertElliott:
        """The chain with mean loss ``loss`` in which successive losses have the given correlation.

        netem's own ``loss P CORR`` is not used: its filter lowers the loss that it delivers far below P.
        """
        return cls(p=loss * (1 - correlation), r=(1 - loss) * (1 - correlation))


@dataclass(frozen=True)
class QueueLimit:
    """Drop-tail limit of the queue in front of the rate: exactly one of IP bytes, packets, seconds of the mean rate."""

    bytes: int | None = None
    packets: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bytes, self.packets, self.seconds) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InputError(
                "a queue limit needs exactly one positive number of bytes, packets or seconds",
                value=(self.bytes, self.packets, self.seconds),
            )

    def size_bytes(self, mean_rate_bps: float) -> int | None:
        """The limit in bytes (at least two full packets), or None when it counts packets."""
        if self.packets is not None:
            return None
        size = self.bytes if self.bytes is not None else int((self.seconds or 0.0) * mean_rate_bps / 8)
        return max(2 * MTU_BYTES, size)


@dataclass(frozen=True)
class DirectionSpec:
    """One direction of a link; every default is "nothing happens".

    Parameters
    ----------
    rate_bps: fixed rate of IP-layer bits, or None (not shaped, unless ``trace``).
    burst_bytes: bucket of a fixed rate in IP bytes from the start of the replay on; None: one frame and 2 ms of the rate.
    trace, trace_offset_ns: replayed rate, from that position of the trace on; see `replay` for the exact semantics.
    at_end: after the last segment begin again ("loop"), or carry nothing any more ("stop").
    delay_s: one-way delay behind the queue. jitter_s: spread of the delay, drawn per packet: standard deviation for
        "normal" and "pareto" (shape 3: long upper tail), half width for "uniform"; or pass recorded one-way delays
        in seconds as ``jitter_samples_s`` (standardised, then scaled by ``jitter_s``; `with_rtt_log` sets all three).
        A delay below zero counts as zero; deviations are cut at four jitter_s, as netem's table does. Packets whose
        drawn delays cross overtake each other.
    loss: probability per packet; with ``loss_correlation``, losses come in runs with the same mean loss.
        ``gilbert_elliott`` gives the two-state chain directly (then loss must be 0).
    reorder: probability that a packet skips the delay. duplicate: probability that it is sent twice.
    queue: limit of the queue in front of the rate. Default: the larger of 30 full packets and 200 ms of the mean rate.
    """

    rate_bps: int | None = None
    burst_bytes: int | None = None
    trace: Trace | None = None
    trace_offset_ns: int = 0
    at_end: Literal["loop", "stop"] = "loop"
    delay_s: float = 0.0
    jitter_s: float = 0.0
    jitter_distribution: Literal["normal", "uniform", "pareto"] = "normal"
    jitter_samples_s: tuple[float, ...] | None = None
    loss: float = 0.0
    loss_correlation: float = 0.0
    gilbert_elliott: GilbertElliott | None = None
    reorder: float = 0.0
    duplicate: float = 0.0
    queue: QueueLimit | None = None

    def __post_init__(self) -> None:
        if self.rate_bps is not None and self.trace is not None:
            raise InputError("a direction has either a fixed rate or a trace", value=self.rate_bps)
        if self.rate_bps is not None and not 0 <= self.rate_bps <= MAX_RATE_BPS:
            raise InputError("rate_bps must lie between 0 and 32 Gbit/s", value=self.rate_bps)
        if self.burst_bytes is not None and (
            self.rate_bps is None or self.burst_bytes < MTU_BYTES + netlink.ETHERNET_HEADER_BYTES
        ):
            raise InputError("burst_bytes goes with rate_bps and holds a frame", value=self.burst_bytes)
        for key in ("delay_s", "jitter_s"):
            value = getattr(self, key)
            if not (math.isfinite(value) and 0 <= value <= 100):
                raise InputError(f"{key} must lie between 0 and 100 s", value=value)
        for key in ("loss", "loss_correlation", "reorder", "duplicate"):
            if not 0 <= getattr(self, key) <= 1:
                raise InputError(f"{key} must lie between 0 and 1", value=getattr(self, key))
        if self.gilbert_elliott is not None and self.loss:
            raise InputError("a direction has either loss or gilbert_elliott", value=self.loss)
        if self.jitter_samples_s is not None and len(self.jitter_samples_s) < 2:
            raise InputError("recorded delays need at least two samples", value=self.jitter_samples_s)

    @property
    def shaped(self) -> bool:
        """Whether the kernel holds a rate for this direction from the start."""
        return self.rate_bps is not None or self.trace is not None

    @property
    def impaired(self) -> bool:
        """Whether packets meet anything but a queue and a rate."""
        return bool(
            self.delay_s or self.jitter_s or self.loss or self.gilbert_elliott or self.reorder or self.duplicate
        )

    @property
    def mean_rate_bps(self) -> float | None:
        """Fixed rate, or the trace's mean."""
        return self.trace.mean_rate_bps if self.trace is not None else self.rate_bps

    @property
    def loss_chain(self) -> GilbertElliott | None:
        """The two-state chain, when losses are not independent."""
        if self.gilbert_elliott is not None:
            return self.gilbert_elliott
        if self.loss and self.loss_correlation:
            return GilbertElliott.correlated(self.loss, self.loss_correlation)
        return None

    @property
    def mean_loss(self) -> float:
        """Share of packets that the link loses (not counting its queue)."""
        return self.loss if self.gilbert_elliott is None else self.gilbert_elliott.mean_loss

    @property
    def bucket_bytes(self) -> int | None:
        """What a fixed rate lets through at once while the load runs; None where no rate is fixed."""
        if self.rate_bps is None:
            return None
        return netlink.bucket_bytes(self.rate_bps // 8, MTU_BYTES) if self.burst_bytes is None else self.burst_bytes

    def queue_limit(self) -> tuple[Literal["bytes", "packets"], int]:
        """What the kernel's queue counts, and its limit."""
        mean = self.mean_rate_bps
        if self.queue is not None:
            if self.queue.packets is not None:
                return "packets", self.queue.packets
            return "bytes", self.queue.size_bytes(mean or 0.0) or 2 * MTU_BYTES
        if mean is None:
            return "bytes", UNSHAPED_QUEUE_BYTES
        return "bytes", max(DEFAULT_QUEUE_PACKETS * MTU_BYTES, int(DEFAULT_QUEUE_S * mean / 8))

    @cached_property
    def jitter_table(self) -> NDArray[np.int16]:
        """int16 (TABLE_SIZE,), quantiles of the deviation from delay_s in units of jitter_s / 8192, ascending.

        Both backends draw from this table, netem by its own arithmetic, the delay line by the same one.
        """
        return _table(self.jitter_distribution, self.jitter_samples_s)

    def impairment(self) -> dict[str, Any]:
        """What packets meet behind the queue, as plain values for `impairment.Impairment`."""
        chain = self.loss_chain
        return {
            "delay_ns": round(self.delay_s * 1e9),
            "jitter_ns": round(self.jitter_s * 1e9),
            "table": self.jitter_table.tolist() if self.jitter_s else [],
            "loss": 0.0 if chain else self.loss,
            "chain": [chain.p, chain.r, chain.loss_bad, chain.loss_good] if chain else None,
            "reorder": self.reorder,
            "duplicate": self.duplicate,
        }

    def changed(self, **changes: object) -> DirectionSpec:
        """A copy with other values, checked again."""
        try:
            return replace(self, **changes)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"a direction has no such parameter: {error}", value=sorted(changes)) from None

    def with_rtt_log(self, rtt_s: Sequence[float]) -> DirectionSpec:
        """Delay and jitter as recorded: half of the mean and half of the deviation of round-trip times."""
        samples = np.asarray(rtt_s, dtype=np.float64) / 2
        if len(samples) < 2 or not bool(np.isfinite(samples).all()) or bool((samples < 0).any()):
            raise InputError("an RTT log needs at least two finite, non-negative times", value=len(samples))
        return replace(
            self,
            delay_s=float(samples.mean()),
            jitter_s=float(samples.std()),
            jitter_samples_s=tuple(float(sample) for sample in samples),
        )


@lru_cache(maxsize=64)
def _table(distribution: str, samples: tuple[float, ...] | None) -> NDArray[np.int16]:
    quantiles = (np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    if samples is not None:
        values = np.asarray(samples, dtype=np.float64)
        spread = float(values.std())
        deviation = np.quantile(values - values.mean(), quantiles) / spread if spread else np.zeros(TABLE_SIZE)
    elif distribution == "normal":
        deviation = _normal_quantile(quantiles)
    elif distribution == "uniform":
        deviation = 2 * quantiles - 1
    else:  # pareto with shape 3, as netem's table: standardised, so that jitter_s is its standard deviation
        raw = (1 - quantiles) ** (-1 / 3)
        deviation = (raw - 1.5) / math.sqrt(0.75)
    table: NDArray[np.int16] = np.clip(np.rint(deviation * TABLE_SCALE), -32767, 32767).astype(np.int16)
    table.setflags(write=False)
    return table


def _normal_quantile(quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    return np.array([inverse(float(q)) for q in quantiles])
