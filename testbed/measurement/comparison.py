"""The difference between two policies on the same requests: per metric and per tier, with intervals. See docs/statistics.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats

from testbed.errors import InputError
from testbed.measurement.components import DOWNLINK
from testbed.measurement.metrics import COMPONENT, METRICS, Metric
from testbed.measurement.pairing import Pairs, pair
from testbed.measurement.stats import (
    Interval,
    Units,
    difference_interval,
    quantile_interval,
    ratio_interval,
    samples_needed,
    share_interval,
    too_few_samples,
    unit_correlation,
    units_of,
)

if TYPE_CHECKING:
    from testbed.measurement.summary import Group

COMPARED = ("latency_mean", "latency_p50", "latency_p95", "latency_p99", "accuracy", "deadline_hit", "correct_in_time",
            "bytes_up", "bytes_down")
WHERE_KNOWN = ("effective_accuracy", "cost_per_1000")  # compared where both sides have them
FAILED = Metric("failed_share", "share", "requests that failed or were dropped / all requests", "mean",
                lambda f: (~f["ok"]).astype("float64"))
PAIR_MEDIAN = "latency_pair_median"  # median over requests of B's latency minus A's
OTHER = "everything else"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """b - a of one metric. `only_a` and `only_b` count the pairs in which just that side had it (shares, McNemar)."""

    metric: str
    unit: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""
    only_a: int | None = None
    only_b: int | None = None
    p_value: float | None = None

    @property
    def relative(self) -> tuple[float | None, float | None, float | None]:
        """Difference, low and high over a; None where a is zero or the value is missing."""
        if not self.a:
            return None, None, None
        base = abs(self.a)
        found = [None if x is None else x / base for x in (self.difference, self.low, self.high)]
        return found[0], found[1], found[2]

    @property
    def sign(self) -> int:
        """-1 or +1 when the interval excludes zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Comparison:
    """Group b against group a."""

    a: Group
    b: Group
    name_a: str
    name_b: str
    paired: bool
    requests: int
    differs: tuple[str, ...]
    effects: tuple[Effect, ...]
    tiers: tuple[Effect, ...]


def compare(a: Group, b: Group, *, paired: bool = True, names: tuple[str, str] | None = None, seed: int = 0) -> Comparison:
    """Compare two groups of trials. Raises InputError when `paired` and their conditions are not the same."""
    pairs = pair(a.trials, b.trials, paired=paired)
    if not len(pairs.a) or not len(pairs.b):
        raise InputError("there are no measured requests to compare", key=f"{a.label} / {b.label}",
                         remedy="compare runs that hold results")
    units = tuple(units_of(frame["trial"].to_numpy("int64")) for frame in (pairs.a, pairs.b))
    chosen = [metric for name in (*COMPARED, *WHERE_KNOWN) for metric in METRICS if metric.name == name]
    chosen = [m for m in chosen if m.name in COMPARED or all(m.of(frame).notna().any() for frame in (pairs.a, pairs.b))]
    effects = [_effect(metric, pairs, (units[0], units[1]), seed) for metric in (*chosen, FAILED)]
    if paired:
        effects.insert(1, _pair_median(pairs, units[0]))
    tiers = [_effect(_component(name, columns), pairs, (units[0], units[1]), seed)
             for name, columns in tier_parts(pairs, a.trials[0].tiers).items()]
    left, right = names or (a.label, b.label)
    return Comparison(a, b, left, right, paired, len(pairs.a), pairs.differs, tuple(effects), tuple(tiers))


def tier_parts(pairs: Pairs, tiers: Sequence[str]) -> dict[str, list[str]]:
    """Part of the latency -> its component columns; every component is in exactly one part, so parts add up to it.

    A tier holds its queue, its loading and its computing; a way up is a part of its own, and so is everything on the way down.
    """
    found = list(dict.fromkeys(c for frame in (pairs.a, pairs.b) for c in frame.columns if c.startswith(COMPONENT)))
    names = {column: column.removeprefix(COMPONENT) for column in found}
    parts: dict[str, list[str]] = {tier: [] for tier in tiers}
    for column, name in names.items():
        head, _, tail = name.partition(" ")
        if tail in ("queue", "load", "compute"):
            parts.setdefault(head, []).append(column)
        else:
            parts.setdefault(name if tail == "up" or name == DOWNLINK else OTHER, []).append(column)
    order = [*tiers, *sorted(key for key in parts if key.endswith(" up")), DOWNLINK]
    return {key: parts[key] for key in [*order, *(k for k in parts if k not in order)] if parts.get(key)}


def _component(name: str, columns: Sequence[str]) -> Metric:
    def of(frame: pd.DataFrame) -> pd.Series:
        present = [column for column in columns if column in frame.columns]
        zero = pd.Series(0.0, index=frame.index).where(frame["ok"] & frame["latency_s"].notna())
        return zero + frame[present].sum(axis=1) if present else zero

    return Metric(name, "s", "mean time of this part over requests answered on both sides", "mean", of)


def _effect(metric: Metric, pairs: Pairs, units: tuple[Units, Units], seed: int) -> Effect:
    x, y = (metric.of(frame).to_numpy("float64", na_value=np.nan) for frame in (pairs.a, pairs.b))
    used_x, used_y = np.isfinite(x), np.isfinite(y)
    if pairs.paired:
        used_x = used_y = used_x & used_y
    x, y, unit_x, unit_y = x[used_x], y[used_y], units[0].take(used_x), units[1].take(used_y)
    count = min(len(x), len(y))
    if not count:
        return Effect(metric.name, metric.unit, None, None, None, None, None, 0, "not applicable: no such request")
    if metric.aggregate == "quantile":
        return _quantile_effect(metric, x, y, (unit_x, unit_y), pairs.paired)
    a, b = float(x.mean()), float(y.mean())
    if metric.unit == "share" and np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all():
        found = difference_interval(a, share_interval(x, unit_x), b, share_interval(y, unit_y),
                                    unit_correlation(x, y, unit_x) if pairs.paired else 0.0)
        if not pairs.paired:
            return _made(metric, a, b, found, count)
        only_a, only_b = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
        p = float(scipy_stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
        return _made(metric, a, b, found, count, only_a, only_b, p)
    if pairs.paired:
        found = ratio_interval(y - x, np.ones_like(x), unit_x, seed=seed, signed=True)
    else:
        found = difference_interval(a, ratio_interval(x, np.ones_like(x), unit_x, seed=seed),
                                    b, ratio_interval(y, np.ones_like(y), unit_y, seed=seed + 1))
    return _made(metric, a, b, found, count)


def _quantile_effect(metric: Metric, x: FloatArray, y: FloatArray, units: tuple[Units, Units], paired: bool) -> Effect:
    count, q = min(len(x), len(y)), metric.quantile
    if count < samples_needed(q):
        return Effect(metric.name, metric.unit, None, None, None, None, None, count, f"blank: {too_few_samples(count, q)}")
    a, b = (float(np.sort(v)[int(np.ceil(q * len(v))) - 1]) for v in (x, y))
    # of the two shares below their own percentile
    alike = unit_correlation((x <= a).astype("float64"), (y <= b).astype("float64"), units[0]) if paired else 0.0
    found = difference_interval(a, quantile_interval(x, q, units[0]), b, quantile_interval(y, q, units[1]), alike)
    return _made(metric, a, b, found, count)


def _pair_median(pairs: Pairs, units: Units) -> Effect:
    apart = (pairs.b["latency_s"] - pairs.a["latency_s"]).where(pairs.a["ok"] & pairs.b["ok"]).to_numpy("float64")
    used = np.isfinite(apart)
    count = int(used.sum())
    if count < samples_needed(0.5):
        return Effect(PAIR_MEDIAN, "s", None, None, None, None, None, count, f"blank: {too_few_samples(count, 0.5)}")
    middle = float(np.sort(apart[used])[int(np.ceil(0.5 * count)) - 1])
    found = quantile_interval(apart[used], 0.5, units.take(used))
    return Effect(PAIR_MEDIAN, "s", None, None, middle, found.low, found.high, count,
                  f"no interval: {found.reason}" if found.reason else "")


def _made(metric: Metric, a: float, b: float, found: Interval, count: int, only_a: int | None = None,
          only_b: int | None = None, p_value: float | None = None) -> Effect:
    note = f"no interval: {found.reason}" if found.reason else ""
    return Effect(metric.name, metric.unit, a, b, b - a, found.low, found.high, count, note, only_a, only_b, p_value)
