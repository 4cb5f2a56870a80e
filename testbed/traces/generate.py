"""A seeded generator of synthetic LTE bandwidth, up and down together: same seed, same bytes, on any machine.

The model. In steps of 20 ms the capacity of direction *d* is

    C_d(t) = m_d * min(k * exp(S_d(t) + F_d(t)), peak_ratio) * A(t)

* S, slow: shadowing by buildings and the load of the cell, together an AR(1) process in the log domain,
  that is Gudmundson's exponentially correlated shadowing (Electronics Letters 27(23), 1991), with standard
  deviation ``slow_std`` (nepers) and correlation time ``slow_time_s``. Up and down share half of its
  variance: one path, two schedulers.
* F, fast: fading and scheduling, AR(1) in the log domain with ``fast_std`` and ``fast_time_s``, independent
  up and down.
* A, availability, shared by both directions: 0 during outages, which begin as a Poisson process
  (``outages_per_min``) and last exponentially long (mean ``outage_s``), and during handovers
  (``handovers_per_min``), which interrupt for a uniform time in ``handover_s`` and then draw the slow process
  anew: another cell. 1 otherwise.
* ``peak_ratio``: the modulation, the grants and the category of the modem bound the rate.
* k is solved so that the mean over the period is the asked m_d.

Rates are rounded to 1 kbit/s. Randomness is Python's ``random.Random``, whose ``random()`` is guaranteed to
stay the same across versions, turned into normal deviates by ``statistics.NormalDist``; numpy's streams
carry no such promise. The parameters of the three mobility classes were fitted by eye to statistics (not to
samples) of public captures; ``docs/traces.md`` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

import numpy as np

from testbed.errors import InputError
from testbed.traces.trace import Trace

STEP_MS = 20
QUANTUM_BPS = 1000
SHARED_SLOW_VARIANCE = 0.5


@dataclass(frozen=True)
class Mobility:
    """Parameters of one mobility class; standard deviations are in nepers (natural logarithm)."""

    slow_std: float
    slow_time_s: float
    fast_std: float
    fast_time_s: float
    peak_ratio: float
    outages_per_min: float
    outage_s: float
    handovers_per_min: float
    handover_s: tuple[float, float]


MOBILITY: dict[str, Mobility] = {
    "static": Mobility(0.22, 4.0, 0.28, 0.10, 1.9, 0.15, 1.5, 0.0, (0.05, 0.1)),
    "walking": Mobility(0.48, 4.5, 0.65, 0.08, 5.0, 0.30, 1.5, 0.5, (0.05, 0.2)),
    "driving": Mobility(0.80, 11.0, 0.30, 0.15, 2.8, 1.00, 0.8, 3.0, (0.05, 0.4)),
}


def generate_pair(
    mobility: str | Mobility,
    seed: int,
    *,
    duration_s: float,
    up_bps: float,
    down_bps: float,
    variability: float = 1.0,
    outages_per_min: float | None = None,
) -> tuple[Trace, Trace]:
    """Uplink and downlink of one synthetic drive (walk, stay).

    Parameters
    ----------
    mobility: ``static``, ``walking``, ``driving``, or parameters of one's own.
    seed: same seed, same traces.
    duration_s: period, a multiple of 20 ms.
    up_bps, down_bps: mean rates in bit/s, met within the rounding to 1 kbit/s.
    variability: factor on both standard deviations (0 leaves only outages and handovers).
    outages_per_min: instead of the class's own rate.
    """
    model = _model(mobility)
    steps = round(duration_s * 1000 / STEP_MS)
    if not 1 <= duration_s <= 86_400 or abs(steps * STEP_MS / 1000 - duration_s) > 1e-9:
        raise InputError(
            "the duration of a generated trace must be a multiple of 20 ms from 1 s to a day",
            key="duration",
            value=duration_s,
        )
    if not 0 <= variability <= 3:
        raise InputError("variability must lie between 0 and 3", key="variability", value=variability)
    outage_rate = model.outages_per_min if outages_per_min is None else outages_per_min
    if not 0 <= outage_rate * model.outage_s <= 30:
        raise InputError(
            "outages must leave at least half of the time",
            key="outages_per_min",
            value=outage_rate,
            remedy=f"at most {30 / model.outage_s:g} a minute of mean {model.outage_s:g} s",
        )
    available, new_cell = _availability(model, seed, steps, outage_rate)
    shared = _ar1(Random(f"{seed}/slow/shared"), model.slow_time_s, steps, new_cell)
    traces = []
    for direction, mean_bps in (("up", up_bps), ("down", down_bps)):
        if not 50 * QUANTUM_BPS <= mean_bps <= 1e9:
            raise InputError(
                "the mean rate must lie between 50 kbit/s and 1 Gbit/s", key=direction, value=mean_bps
            )
        own = _ar1(Random(f"{seed}/slow/{direction}"), model.slow_time_s, steps, new_cell)
        fast = _ar1(Random(f"{seed}/fast/{direction}"), model.fast_time_s, steps, [])
        slow_std = variability * model.slow_std
        shared_std, own_std = (
            math.sqrt(part) * slow_std for part in (SHARED_SLOW_VARIANCE, 1 - SHARED_SLOW_VARIANCE)
        )
        gains = [
            math.exp(shared_std * a + own_std * b + variability * model.fast_std * c)
            for a, b, c in zip(shared, own, fast, strict=True)
        ]
        rates = _scale(gains, available, model.peak_ratio, mean_bps)
        # round to whole quanta and carry the rest, so that rounding never moves the mean
        units = np.diff(np.floor(np.cumsum(np.array(rates) / QUANTUM_BPS) + 0.5), prepend=0.0).astype(
            np.int64
        )
        units[np.array(available) == 0] = 0
        bits_per_unit = QUANTUM_BPS * STEP_MS // 1000
        times = np.arange(steps + 1, dtype=np.int64) * (STEP_MS * 1_000_000)
        traces.append(Trace(times, units * bits_per_unit, name=f"synthetic.{direction}"))
    return traces[0], traces[1]


def _model(mobility: str | Mobility) -> Mobility:
    if isinstance(mobility, Mobility):
        return mobility
    if mobility not in MOBILITY:
        raise InputError(
            "unknown mobility class",
            key="mobility",
            value=mobility,
            remedy=f"the classes are {', '.join(MOBILITY)}",
        )
    return MOBILITY[mobility]


def _ar1(random: Random, time_s: float, steps: int, restarts: list[int]) -> list[float]:
    """A stationary AR(1) process of variance 1 sampled every step, drawn anew at each index in `restarts`."""
    keep = math.exp(-STEP_MS / 1000 / time_s)
    fresh = math.sqrt(1 - keep * keep)
    anew = set(restarts)
    value, values = 0.0, []
    for index, deviate in zip(range(steps), _normals(random), strict=False):
        value = deviate if index == 0 or index in anew else keep * value + fresh * deviate
        values.append(value)
    return values


def _availability(
    model: Mobility, seed: int, steps: int, outages_per_min: float
) -> tuple[list[int], list[int]]:
    """1 or 0 per step, and the steps at which a new cell begins to serve."""
    step_s = STEP_MS / 1000
    available, new_cell = [1] * steps, []
    random = Random(f"{seed}/outage")
    for begin in _poisson(random, outages_per_min / 60, steps * step_s):
        _clear(available, begin, -math.log(1 - random.random()) * model.outage_s)
    random = Random(f"{seed}/handover")
    for begin in _poisson(random, model.handovers_per_min / 60, steps * step_s):
        low, high = model.handover_s
        gap_s = low + (high - low) * random.random()
        _clear(available, begin, gap_s)
        new_cell.append(min(steps - 1, round((begin + gap_s) / step_s)))
    return available, new_cell


def _clear(available: list[int], begin_s: float, length_s: float) -> None:
    first = round(begin_s * 1000 / STEP_MS)
    for index in range(first, min(len(available), first + max(1, round(length_s * 1000 / STEP_MS)))):
        available[index] = 0


def _poisson(random: Random, rate_hz: float, end_s: float) -> Iterator[float]:
    """Instants of a Poisson process in [0, end)."""
    instant = 0.0
    while rate_hz > 0:
        instant += -math.log(1 - random.random()) / rate_hz
        if instant >= end_s:
            return
        yield instant


def _normals(random: Random) -> Iterator[float]:
    inverse = NormalDist().inv_cdf
    while True:
        uniform = random.random()
        yield inverse(uniform if uniform > 0 else 2.0**-54)


def _scale(gains: list[float], available: list[int], peak_ratio: float, mean_bps: float) -> list[float]:
    """The factor k by bisection: mean of min(k * gain, peak) * available equals 1; times the asked mean."""
    if sum(available) * peak_ratio <= 1.01 * len(gains):
        raise InputError(
            "outages leave too little time to reach the mean rate",
            key="outages_per_min",
            remedy="choose another seed, a longer duration or fewer outages",
        )
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        mean = math.fsum(
            min(middle * g, peak_ratio) * a for g, a in zip(gains, available, strict=True)
        ) / len(gains)
        low, high = (middle, high) if mean < 1 else (low, middle)
    return [min(low * g, peak_ratio) * a * mean_bps for g, a in zip(gains, available, strict=True)]
