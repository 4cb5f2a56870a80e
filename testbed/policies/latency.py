"""Predictors of service times: stage times of a node's profile, a percentile of what was measured, a server's load factor."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from testbed.inference.regressors import load_regressors
from testbed.policies.bandwidth import checked_alpha
from testbed.policies.knowledge import Computation, Context


class StageTimes(Protocol):
    """Predicts how long each stage of a model takes on a node, for one sample."""

    def stage_s(self, node: str, model: str) -> tuple[float, ...]:
        """Seconds per stage; all at least 0. Raises ValueError when nothing is known of them."""


class ProfileTable:
    """Stage times as the nodes' compute profiles state them (`Context.compute`)."""

    def __init__(self, context: Context) -> None:
        self._compute = context.compute

    def stage_s(self, node: str, model: str) -> tuple[float, ...]:
        """Seconds per stage. Raises ValueError for a node or model without times."""
        known = self._compute.get(node)
        if known is None or model not in known.stage_s:
            raise ValueError(f"no times are known of {model} on {node}; its compute profile needs a table or a slowdown")
        return known.stage_s[model]


class RegressionTable:
    """Stage times as layer regressions predict them (`testbed profile --regressors`), times a factor per tier.

    The file holds times of the machine on which it was made; `slowdown` says how much longer the nodes of a tier take.
    """

    def __init__(self, file: str, context: Context, slowdown: Mapping[str, float]) -> None:
        """Raises InputError for the file; ValueError for a tier that is not there or a factor that is not above 0."""
        for tier, factor in slowdown.items():
            if tier not in context.tiers:
                raise ValueError(f"slowdown: there is no tier {tier!r}; use {', '.join(context.tiers)}")
            if not isinstance(factor, int | float) or not 0 < factor < math.inf:
                raise ValueError(f"slowdown: {factor!r} is not a factor above 0")
        self._file, self._stages = file, load_regressors(file).stages
        self._factor = {node: float(slowdown.get(tier, 1.0)) for tier, node in context.nodes.items()}

    def stage_s(self, node: str, model: str) -> tuple[float, ...]:
        """Seconds per stage. Raises ValueError for a model that is not in the file."""
        if model not in self._stages:
            raise ValueError(f"regression: {self._file} predicts no times of {model}; make it with a catalogue that has it")
        return tuple(self._factor[node] * s for s in self._stages[model])


class OnlinePercentile:
    """A percentile of the last measurements: the element at index floor(q * n) of the n sorted ones, at most the last.

    LayerCake keeps one per model variant with q = 0.9; `q=None` gives the mean, its other mode.
    """

    def __init__(self, q: float | None = 0.9, window: int | None = None) -> None:
        """`window`: how many measurements count; all of them when absent. Raises ValueError."""
        if q is not None and not 0 <= q <= 1:
            raise ValueError(f"percentile: {q!r} is not between 0 and 1")
        if window is not None and window < 1:
            raise ValueError(f"window: {window!r} is not at least 1")
        self._q = q
        self._window = window
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        """Add a measurement. Raises ValueError when it is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not a measurement")
        self._order.append(value)
        insort(self._sorted, value)
        if self._window is not None and len(self._order) > self._window:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def value(self, default: float) -> float:
        """The percentile (or mean), or `default` before the first measurement."""
        n = len(self._sorted)
        if n == 0:
            return default
        if self._q is None:
            return math.fsum(self._sorted) / n
        return self._sorted[min(math.floor(self._q * n), n - 1)]


class LoadFactor:
    """How many times longer than predicted a node takes: k of Neurosurgeon (ASPLOS 2017), of queueing and computing together.

    k = moving average of (queue + compute) / moving average of the prediction, so that a short computation, whose ratio is
    mostly queue, counts for little. What is measured ages: k - 1 halves every `half_life_s`, because a server that is avoided
    for its load would never be measured again. Loading a cold model is not load and is left out.
    """

    def __init__(self, alpha: float = 0.5, half_life_s: float = 10.0) -> None:
        """Raises ValueError when alpha is not in (0, 1] or `half_life_s` is not positive."""
        if not half_life_s > 0:
            raise ValueError(f"half_life_s: {half_life_s!r} is not a time above 0")
        self._alpha, self._half_life_s = checked_alpha(alpha), half_life_s
        self._measured_s: float | None = None
        self._predicted_s = 0.0
        self._t_ns = 0

    def update(self, computation: Computation, predicted_s: float, t_ns: int) -> bool:
        """Learn from a computation that was predicted to take `predicted_s` on an idle node; says whether it was used."""
        measured_s = computation.queue_s + computation.duration_s
        if not (predicted_s > 0 and measured_s >= 0 and math.isfinite(measured_s) and math.isfinite(predicted_s)):
            return False
        if self._measured_s is None:
            self._measured_s, self._predicted_s = measured_s, predicted_s
        else:
            self._measured_s += self._alpha * (measured_s - self._measured_s)
            self._predicted_s += self._alpha * (predicted_s - self._predicted_s)
        self._t_ns = t_ns
        return True

    def k(self, t_ns: int) -> float:
        """The factor now; 1 before the first measurement."""
        if self._measured_s is None:
            return 1.0
        age_s = max(0.0, (t_ns - self._t_ns) / 1e9)
        kept: float = 0.5 ** (age_s / self._half_life_s)
        return 1.0 + (self._measured_s / self._predicted_s - 1.0) * kept
