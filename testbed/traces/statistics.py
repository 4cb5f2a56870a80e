"""Numbers that describe a trace: mean, quantiles, variation, memory, outages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.traces.trace import NS_PER_S, FloatArray, Trace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class TraceStatistics:
    """Statistics over whole windows from the first instant; a last partial window is left out.

    Parameters
    ----------
    duration_s, mean_rate_bps: of the whole period.
    quantiles_bps: 5, 25, 50, 75, 95 % of the rate in 1 s windows.
    min_bps, max_bps: of the rate in 1 s windows.
    cov_100ms, cov_1s: coefficient of variation (standard deviation over mean) of the rate in such windows.
    zero_share: share of 1 s windows without a single bit.
    longest_zero_s: longest stretch without a bit, in 100 ms windows.
    autocorrelation_s: first lag at which the autocorrelation of the 1 s rates falls below 1/e, interpolated;
        0 for a constant rate, infinite where it never falls that low.
    """

    duration_s: float
    mean_rate_bps: float
    quantiles_bps: tuple[float, ...]
    min_bps: float
    max_bps: float
    cov_100ms: float
    cov_1s: float
    zero_share: float
    longest_zero_s: float
    autocorrelation_s: float


def window_rates_bps(trace: Trace, window_ns: int) -> FloatArray:
    """float64, mean rate in each whole window of one period (the whole period where it is shorter)."""
    window_ns = min(window_ns, trace.duration_ns)
    bits = trace.bits_per_step(window_ns, trace.duration_ns // window_ns)
    rates: FloatArray = bits.astype(np.float64) * (NS_PER_S / window_ns)
    return rates


def describe(trace: Trace) -> TraceStatistics:
    """All statistics of one trace."""
    seconds = window_rates_bps(trace, NS_PER_S)
    tenths = window_rates_bps(trace, NS_PER_S // 10)
    return TraceStatistics(
        duration_s=trace.duration_ns / NS_PER_S,
        mean_rate_bps=trace.mean_rate_bps,
        quantiles_bps=tuple(float(value) for value in np.quantile(seconds, QUANTILES)),
        min_bps=float(seconds.min()),
        max_bps=float(seconds.max()),
        cov_100ms=_variation(tenths),
        cov_1s=_variation(seconds),
        zero_share=float((seconds == 0).mean()),
        longest_zero_s=_longest_run(tenths == 0) / 10,
        autocorrelation_s=autocorrelation_time(seconds),
    )


def autocorrelation(values: FloatArray, lags: int) -> FloatArray:
    """float64 (lags+1,), the (biased) sample autocorrelation; all zero after lag 0 for a constant series."""
    centred = values - values.mean()
    power = float(centred @ centred)
    result = np.zeros(lags + 1)
    result[0] = 1.0
    if power > 0:
        for lag in range(1, min(lags, len(values) - 1) + 1):
            result[lag] = float(centred[:-lag] @ centred[lag:]) / power
    return result


def autocorrelation_time(values: FloatArray, step_s: float = 1.0) -> float:
    """First time lag at which the autocorrelation falls below 1/e, by linear interpolation between lags."""
    if len(values) < 2 or float(values.std()) == 0:
        return 0.0
    curve = autocorrelation(values, min(len(values) - 1, 600))
    below = np.flatnonzero(curve < np.exp(-1))
    if len(below) == 0:
        return float("inf")
    lag = int(below[0])
    high, low = curve[lag - 1], curve[lag]
    return float(lag - 1 + (high - np.exp(-1)) / (high - low)) * step_s


def _variation(values: FloatArray) -> float:
    mean = float(values.mean())
    return float(values.std()) / mean if mean > 0 else 0.0


def _longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0
