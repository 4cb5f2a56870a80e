"""What a device knows of model variants: measured latencies, loaded or not, busy, cold after a failure; and their moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from testbed.policies.bandwidth import checked_alpha
from testbed.policies.knowledge import Context, NodeState, Outcome
from testbed.policies.latency import OnlinePercentile, ProfileTable

Key = tuple[str, str]  # node, model


@dataclass
class _State:
    warm: OnlinePercentile
    prior_s: float
    load_s: float  # the last load that was seen; before that what the node's description says
    in_flight: set[str] = field(default_factory=set)  # request ids
    cold_until_ns: int | None = None


class ModelStates:
    """State of the variants (node, model) that one device may use, from its own requests only.

    - Latency: a percentile of the measured times on the node, queue and computation, without network and without loading.
      The node's profile counts as `prior_runs` measurements, as if the model had been timed when it was deployed.
    - Loaded: as the node last said. A model that is not resident costs its loading time on top.
    - Busy: this device has a request in flight on the variant.
    - Cold: for `cold_s` after a request on it failed or timed out.
    - Wait: the device has one compute thread; what it was given and has not finished comes first.
    """

    def __init__(self, context: Context, variants: Iterable[Key], *, percentile: float | None = 0.9, window: int | None = None,
                 prior_runs: int = 10, cold_s: float = 10.0) -> None:
        """`percentile`: None for the mean; `window`: how many measurements count, None for all. Raises ValueError."""
        if prior_runs < 1 or (window is not None and prior_runs > window):
            raise ValueError(f"prior_runs: {prior_runs!r} is not at least 1 and at most the window")
        if not 0 <= cold_s < math.inf:
            raise ValueError(f"cold_s: {cold_s!r} is not a time of at least 0")
        self._device, self._cold_ns = context.device, round(cold_s * 1e9)
        self._states: dict[Key, _State] = {}
        self._requests: dict[str, Key] = {}
        self._free_ns = 0
        times = ProfileTable(context)
        for node, model in variants:
            prior_s = math.fsum(times.stage_s(node, model))
            state = _State(OnlinePercentile(percentile, window), prior_s, context.compute[node].load_s.get(model, 0.0))
            for _ in range(prior_runs):
                state.warm.add(prior_s)
            self._states[node, model] = state

    def begin(self, request_id: str, node: str, model: str, t_ns: int, said: NodeState | None = None) -> None:
        """A request was given to a variant, on a node that `said` this of itself."""
        state = self._states[node, model]
        state.in_flight.add(request_id)
        self._requests[request_id] = (node, model)
        if node == self._device:
            self._free_ns = max(self._free_ns, t_ns) + round(self.latency_s(node, model, said) * 1e9)

    def observe(self, outcome: Outcome) -> None:
        """Learn from a finished request; also from one that was not begun here.

        When the backup answered while the plan goes on, the variant stays busy until `observe_late`.
        """
        self._measure(outcome)
        if not (outcome.backup_won and outcome.error_type is None):
            self._end(outcome)

    def observe_late(self, outcome: Outcome) -> None:
        """Learn from the slower side of a request with a backup."""
        self._measure(outcome)
        self._end(outcome)

    def _measure(self, outcome: Outcome) -> None:
        for done in outcome.computations:
            found = self._states.get((done.node, done.model))
            if found is not None:
                queue_s = 0.0 if done.node == self._device else done.queue_s  # the device's own queue is `wait_s`
                found.warm.add(queue_s + done.duration_s)
                if done.load_s > 0:
                    found.load_s = done.load_s

    def _end(self, outcome: Outcome) -> None:
        key = self._requests.pop(outcome.request_id, None)
        if key is None:
            return
        self._states[key].in_flight.discard(outcome.request_id)
        failed = outcome.status != "ok" or outcome.used_fallback or outcome.error_type is not None
        if key[0] != self._device and failed:
            self._states[key].cold_until_ns = outcome.t_ns + self._cold_ns
        if not any(state.in_flight for (node, _), state in self._states.items() if node == self._device):
            self._free_ns = outcome.t_ns

    def latency_s(self, node: str, model: str, said: NodeState | None = None) -> float:
        """Expected time on the node; with the time to load the model when the node `said` that it is not resident."""
        known = self._states[node, model]
        cold = said is not None and said.resident is not None and model not in said.resident
        return known.warm.value(known.prior_s) + (known.load_s if cold else 0.0)

    def wait_s(self, t_ns: int, inflight: int = 0) -> float:
        """Expected time until the device's compute thread is free.

        `inflight`: requests on it as the device says; those that were not begun here (backups, fallbacks) take the time of the
        fastest local variant each.
        """
        local = [(state, key[1]) for key, state in self._states.items() if key[0] == self._device]
        others = max(0, inflight - sum(len(state.in_flight) for state, _ in local))
        each_s = min((self.latency_s(self._device, model) for _, model in local), default=0.0) if others else 0.0
        return max(0, self._free_ns - t_ns) / 1e9 + others * each_s

    def is_busy(self, node: str, model: str) -> bool:
        """Whether this device has a request in flight on the variant."""
        return bool(self._states[node, model].in_flight)

    def is_cold(self, node: str, model: str, t_ns: int) -> bool:
        """Whether the variant failed less than `cold_s` ago."""
        until_ns = self._states[node, model].cold_until_ns
        return until_ns is not None and t_ns < until_ns


class Moments:
    """Mean and standard deviation of measurements, over all of them or exponentially weighted (MDInference's two modes).

    Weighted with alpha (their code: 0.5): with d = x - mean, mean <- mean + alpha d and
    variance <- (1 - alpha) (variance + alpha d^2). The first measurement sets the mean, with variance 0.
    """

    def __init__(self, alpha: float | None = None) -> None:
        """`alpha`: None for all of them alike. Raises ValueError when it is not in (0, 1]."""
        self._alpha = None if alpha is None else checked_alpha(alpha)
        self.count = 0
        self.mean = 0.0
        self._variance = 0.0

    def add(self, value: float) -> None:
        """Add a measurement. Raises ValueError when it is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not a measurement")
        self.count += 1
        weight = 1.0 / self.count if self._alpha is None or self.count == 1 else self._alpha
        difference = value - self.mean
        self.mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference**2)

    @property
    def deviation(self) -> float:
        """Standard deviation (of the population); 0 before the second measurement."""
        return math.sqrt(self._variance)

