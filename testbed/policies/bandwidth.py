"""Estimators of a path: rate (last sample, moving average, Kalman filter) and round trip, from transfers and from probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque

from testbed.policies.knowledge import Context, Outcome, Probe

MESSAGE_BYTES = 600  # HTTP head and tensor header around a payload; docs/scenarios/split_point.md, `wire bytes`
PASSIVE_MIN_BYTES = 1000  # a smaller transfer says more about delay than about rate
PASSIVE_MAX_ANSWER_BYTES = 4000  # a larger answer says more about rate than about delay
MIN_BPS, MAX_BPS = 1.0, 1e10  # limits of a sample
_CLOCK_S = 1e-6


class RateEstimator(ABC):
    """Estimates the rate of a path from finished transfers. The estimate is positive and finite after any input.

    A sample is 8 * size / (duration - delay). It is ignored when that is not positive: then the transfer says nothing.
    """

    def __init__(self, initial_bps: float = 5e6) -> None:
        """`initial_bps`: the estimate before the first sample. Raises ValueError when it is not positive."""
        if not 0 < initial_bps < math.inf:
            raise ValueError(f"initial_bps: {initial_bps!r} is not a rate above 0")
        self.initial_bps = float(initial_bps)
        self._bps: float | None = None
        self._t_ns = 0
        self.samples = 0

    def update(self, size_bytes: float, duration_s: float, delay_s: float, t_ns: int) -> bool:
        """Learn from a transfer that ended at `t_ns`; says whether it was used.

        `delay_s` is the part of its duration that does not grow with its size: half a round trip for a transfer that is
        timed at both ends, a round trip for a probe that waits for an acknowledgement.
        """
        sending_s = duration_s - delay_s
        if not (0 < size_bytes < math.inf and 0 < sending_s < math.inf):
            return False
        sample_bps = max(MIN_BPS, min(8.0 * size_bytes / sending_s, MAX_BPS))
        self._bps = self._next(sample_bps, sending_s, t_ns)
        self._t_ns = t_ns
        self.samples += 1
        return True

    @property
    def bps(self) -> float:
        """The estimate in bit/s; `initial_bps` before the first sample."""
        return self.initial_bps if self._bps is None else self._bps

    def age_s(self, t_ns: int) -> float:
        """Time since the last sample; infinite before the first."""
        return math.inf if self._bps is None else max(0.0, (t_ns - self._t_ns) / 1e9)

    @abstractmethod
    def _next(self, sample_bps: float, sending_s: float, t_ns: int) -> float:
        """The estimate after a sample that was on the wire for `sending_s`."""


class Last(RateEstimator):
    """The last sample."""

    def _next(self, sample_bps: float, sending_s: float, t_ns: int) -> float:
        return sample_bps


class Ewma(RateEstimator):
    """Exponentially weighted moving average: B <- alpha * sample + (1 - alpha) * B; the first sample is taken as it is.

    alpha 0.5 is what LayerCake's client uses: the error after a change halves with each sample.
    """

    def __init__(self, initial_bps: float = 5e6, alpha: float = 0.5) -> None:
        """Raises ValueError when alpha is not in (0, 1]."""
        super().__init__(initial_bps)
        self._alpha = checked_alpha(alpha)

    def _next(self, sample_bps: float, sending_s: float, t_ns: int) -> float:
        return sample_bps if self._bps is None else self._bps + self._alpha * (sample_bps - self._bps)


class Kalman(RateEstimator):
    """Scalar Kalman filter (Kalman, 1960) on the logarithm of the rate: a random walk, seen through relative noise.

    With x = log(rate) and P its variance: predict P <- P + drift^2 * dt; update K = P / (P + R), x <- x + K (log(sample) - x),
    P <- (1 - K) P. R = noise^2 + (timing_s / sending time)^2: a transfer that was on the wire for a short time counts for
    little, because its time is known to `timing_s` only. In the logarithm a fall and a rise by the same factor count the same.
    """

    def __init__(self, initial_bps: float = 5e6, drift: float = 0.3, noise: float = 0.2, timing_s: float = 0.003) -> None:
        """`drift`: relative change of the rate in one second (standard deviation); `noise`: relative error of a long
        sample; `timing_s`: error of a transfer's time. Raises ValueError when one is negative, or noise is 0."""
        super().__init__(initial_bps)
        if drift < 0 or noise <= 0 or timing_s < 0:
            raise ValueError("a Kalman filter needs drift >= 0, noise > 0 and timing_s >= 0")
        self._drift, self._noise, self._timing_s = drift, noise, timing_s
        self.variance = math.inf  # of the logarithm of the rate
        self.gain = 1.0  # of the last update

    def _next(self, sample_bps: float, sending_s: float, t_ns: int) -> float:
        noise = self._noise**2 + (self._timing_s / max(sending_s, _CLOCK_S)) ** 2
        if self._bps is None:
            self.variance = noise
            return sample_bps
        predicted = self.variance + self._drift**2 * max(0.0, (t_ns - self._t_ns) / 1e9)
        self.gain = predicted / (predicted + noise)
        self.variance = (1 - self.gain) * predicted
        factor: float = (sample_bps / self._bps) ** self.gain
        return self._bps * factor


ESTIMATORS: dict[str, type[RateEstimator]] = {"last": Last, "ewma": Ewma, "kalman": Kalman}


def make_estimator(kind: str, initial_bps: float = 5e6) -> RateEstimator:
    """An estimator by its name in a scenario: last, ewma, kalman. Raises ValueError."""
    if kind not in ESTIMATORS:
        raise ValueError(f"estimator: {kind!r} is not one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[kind](initial_bps)


class RoundTrip:
    """Round-trip time of a path, from empty echoes and from small answers.

    Without `alpha`: the shortest of the last `window` samples. An echo that waits behind a request of one's own says nothing of
    the path, and taken off a transfer's time it would make the rate look higher than it is. A small answer counts twice,
    because only one way was timed. With `alpha`: a moving average of echoes, as LayerCake's client keeps; answers, again the
    shortest, count until the first echo.
    """

    def __init__(self, initial_s: float = 0.05, alpha: float | None = None, window: int = 16) -> None:
        """Raises ValueError when `initial_s` is negative or alpha not in (0, 1]."""
        if not 0 <= initial_s < math.inf:
            raise ValueError(f"initial_rtt_s: {initial_s!r} is not a time of at least 0")
        self._initial_s, self._alpha = float(initial_s), None if alpha is None else checked_alpha(alpha)
        self._average_s: float | None = None
        self._samples_s: deque[float] = deque(maxlen=window)
        self._t_ns: int | None = None

    def update(self, rtt_s: float, t_ns: int) -> bool:
        """Learn from the round trip of an empty echo; says whether it was used."""
        if not 0 < rtt_s < math.inf:
            return False
        if self._alpha is None:
            self._samples_s.append(rtt_s)
        else:
            self._average_s = rtt_s if self._average_s is None else self._average_s + self._alpha * (rtt_s - self._average_s)
        self._t_ns = t_ns
        return True

    def update_one_way(self, duration_s: float, t_ns: int) -> bool:
        """Learn from the transfer of a small message, timed at both ends; says whether it was used."""
        if not 0 < duration_s < math.inf:
            return False
        self._samples_s.append(2.0 * duration_s)
        self._t_ns = t_ns
        return True

    @property
    def s(self) -> float:
        """The estimate in seconds."""
        if self._average_s is not None:
            return self._average_s
        return min(self._samples_s) if self._samples_s else self._initial_s

    def age_s(self, t_ns: int) -> float:
        """Time since the last sample; infinite before the first."""
        return math.inf if self._t_ns is None else max(0.0, (t_ns - self._t_ns) / 1e9)


class Path:
    """What one node knows of its way to another: rate and round trip, fed by outcomes and probes.

    Passive: a transfer src -> dst of at least PASSIVE_MIN_BYTES, less half a round trip, is a sample of the rate; an answer
    dst -> src of at most PASSIVE_MAX_ANSWER_BYTES is one of the delay. Active: (LayerCake, CCGrid 2023) rate = size / (time -
    round trip) of a probe, ignored when that is not positive.
    """

    def __init__(self, src: str, dst: str, rate: RateEstimator, rtt: RoundTrip | None = None) -> None:
        self.src, self.dst, self.rate = src, dst, rate
        self.rtt = RoundTrip() if rtt is None else rtt

    def observe(self, outcome: Outcome) -> None:
        """Learn from the transfers of a finished request."""
        for t in outcome.transfers:
            if (t.src_node, t.dst_node) == (self.dst, self.src) and t.payload_bytes <= PASSIVE_MAX_ANSWER_BYTES:
                self.rtt.update_one_way(t.duration_s, outcome.t_ns)
        for t in outcome.transfers:
            if (t.src_node, t.dst_node) == (self.src, self.dst) and t.payload_bytes >= PASSIVE_MIN_BYTES:
                self.rate.update(t.payload_bytes, t.duration_s, self.rtt.s / 2, outcome.t_ns)

    def observe_probe(self, probe: Probe) -> None:
        """Learn from a probe of `dst`; one of another node is ignored."""
        if probe.node != self.dst:
            return
        if probe.rtt_s is not None:
            self.rtt.update(probe.rtt_s, probe.t_ns)
        if probe.duration_s is not None:
            self.rate.update(probe.size_bytes, probe.duration_s, self.rtt.s, probe.t_ns)

    def transfer_s(self, payload_bytes: float) -> float:
        """Predicted time of a message with this payload, one way: (payload + MESSAGE_BYTES) * 8 / rate + half a round trip."""
        return 8 * (payload_bytes + MESSAGE_BYTES) / self.rate.bps + self.rtt.s / 2

    @property
    def answer_s(self) -> float:
        """Predicted time of the answer's way back: half a round trip."""
        return self.rtt.s / 2

    def scores(self, t_ns: int) -> dict[str, float]:
        """For a decision log: `bandwidth_bps`, `bandwidth_age_s` (-1: no sample yet), `rtt_s`."""
        age_s = self.rate.age_s(t_ns)
        return {"bandwidth_bps": self.rate.bps, "bandwidth_age_s": age_s if math.isfinite(age_s) else -1.0, "rtt_s": self.rtt.s}


def paths_from(context: Context, estimator: str = "ewma", initial_bps: float = 5e6,
               initial_rtt_s: float = 0.05, rtt_alpha: float | None = None) -> dict[str, Path]:
    """A path from the device to each remote node, by the node's name; `rtt_alpha` is `RoundTrip`'s alpha. Raises ValueError."""
    return {node: Path(context.device, node, make_estimator(estimator, initial_bps), RoundTrip(initial_rtt_s, rtt_alpha))
            for node in context.remote_nodes}


def checked_alpha(alpha: float) -> float:
    """The weight of a moving average. Raises ValueError when it is not in (0, 1]."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: {alpha!r} is not above 0 and at most 1")
    return float(alpha)
