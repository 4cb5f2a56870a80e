"""A made-up system for policies to be tried on: seeded observations, and outcomes of plans from a simple model of links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from testbed.policies.knowledge import (
    Computation,
    Context,
    ExitPoint,
    ModelInfo,
    NodeInfo,
    NodeState,
    Observation,
    Outcome,
    Probe,
    ProbeSpec,
    Transfer,
)
from testbed.policies.plan import Plan, Step

GAP_S = 0.5  # between requests
_THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)
_CODECS = {"raw": 1.0, "fp16": 0.5, "int8": 0.25, "int8+lz4": 0.15, "int8+zstd": 0.14, "fp16+zstd": 0.4}
_SPEED_UP = {"device1": 1.0, "edge1": 5.0, "cloud1": 20.0}


def made_up_context(seed: int = 1) -> Context:
    """A device, an edge and a cloud; three models of six stages: `small`, `base` with an early exit (the scenario's), `large`."""
    tiers = {"device": "device1", "edge": "edge1", "cloud": "cloud1"}
    models = {info.name: info for info in (_model("small", 0.7, 0.5), _model("base", 0.8, 1.0), _model("large", 0.9, 3.0))}
    cost_s = {"small": 0.01, "base": 0.02, "large": 0.06}  # per stage on the device
    compute = {
        node: NodeInfo(
            node, tier, {name: (cost / _SPEED_UP[node],) * 6 for name, cost in cost_s.items()},
            {name: {"early": 0.1 * cost / _SPEED_UP[node], "final": 0.0} for name, cost in cost_s.items()})
        for tier, node in tiers.items()}
    return Context("device1", tiers, tuple(tiers), models, "base", 0.5, seed, compute)


def _model(name: str, accuracy: float, scale: float) -> ModelInfo:
    sizes = (12_288, *(round(scale * size) for size in (64_000, 32_000, 16_000, 8_000, 4_000)), 40)
    curve = tuple(
        ExitPoint(t, {"early": share, "final": 1 - share}, {"early": accuracy - 0.1 * share, "final": accuracy},
                  accuracy - 0.1 * share**2)
        for t in _THRESHOLDS for share in (max(0.0, min(1.0, 1.2 - 1.2 * t)) if t <= 1 else 0.0,))
    wire = {codec: tuple(round(ratio * size) for size in sizes) for codec, ratio in _CODECS.items()}
    return ModelInfo(
        name=name, stage_names=("a", "b", "c", "d", "e", "f"), exits={"early": 2, "final": 5}, input_bytes=sizes[0],
        output_bytes=sizes[1:], macs=(round(1e7 * scale),) * 6, exit_accuracy={"early": accuracy - 0.1, "final": accuracy},
        exit_curve=curve, wire_bytes={**wire, "uint8": (3_072, *wire["int8"][1:])}, weight_bytes=round(1e6 * scale))


class Rehearsal:
    """Observations and consequences, the same for the same seed and plans.

    Links carry a few Mbit/s that wander; nodes compute for their profile's time. With `trouble`, any part of what could be
    observed may be missing, requests fail, probes are lost, and there may be no time left.
    """

    def __init__(self, context: Context, probes: ProbeSpec | None, seed: int, *, trouble: bool) -> None:
        self._context, self._probes, self._trouble = context, probes, trouble
        self._rng = np.random.default_rng([seed, int(trouble)])
        self._count, self._t_ns = 0, 10**12
        self._rate_bps = {node: 5e6 for node in context.remote_nodes}
        self._rtt_s = {node: 0.02 * (i + 1) for i, node in enumerate(context.remote_nodes)}
        self._uplinks: dict[str, tuple[float, int]] = {}
        self._last_latency_s: float | None = None
        self._probed_ns = 0
        self._next_node = 0
        self._request = Observation(0, "")

    def observation(self) -> Observation:
        """The next request."""
        rng = self._rng
        self._t_ns += round(float(rng.exponential(GAP_S)) * 1e9)
        for node in self._rate_bps:
            self._rate_bps[node] = float(np.clip(self._rate_bps[node] * np.exp(rng.normal(0.0, 0.3)), 5e4, 1e8))
        waiting = int(rng.poisson(0.5))
        deadline_s = float(rng.uniform(0.25, 2.0))
        nodes = {node: NodeState(int(rng.poisson(0.5)), int(rng.poisson(1.0)), None, float(rng.uniform(0, 5)))
                 for node in self._context.nodes.values()}
        seen = Observation(
            t_ns=self._t_ns, request_id=f"{self._context.device}-{self._count:05d}", queue_depth=waiting, inflight=waiting + 1,
            uplink_bps={node: bps for node, (bps, _) in self._uplinks.items()},
            uplink_age_s={node: (self._t_ns - t_ns) / 1e9 for node, (_, t_ns) in self._uplinks.items()},
            last_latency_s=self._last_latency_s, deadline_s=deadline_s, elapsed_s=float(rng.uniform(0, 0.05)),
            min_accuracy=self._context.min_accuracy, nodes=nodes)
        self._count += 1
        self._request = self._worsened(seen) if self._trouble else seen
        return self._request

    def consequences(self, plan: Plan) -> tuple[Outcome, Outcome | None, Probe | None]:
        """What the policy is told after the request: its outcome, the slower side of one with a backup, and a probe."""
        outcome = self._outcome(plan)
        late = None
        if plan.backup and plan.backup_after_s is not None and outcome.latency_s > plan.backup_after_s:
            late = replace(outcome, used_backup=True, backup_won=True, deadline_met=False)
            latency_s = plan.backup_after_s + sum(self._service_s(step) for step in plan.backup)
            model = plan.backup[-1].model
            outcome = replace(self._answer(plan, plan.backup, latency_s, (), ()), exit_id=self._final(model), used_backup=True,
                              backup_won=True)
        self._last_latency_s = outcome.latency_s
        self._t_ns += 1
        return outcome, late, self._probe()

    def _worsened(self, seen: Observation) -> Observation:
        """One kind of trouble, or several."""
        rng = self._rng
        changes: dict[str, Any] = {}
        if rng.random() < 0.4:
            changes |= {"uplink_bps": {}, "uplink_age_s": {}, "last_latency_s": None}
        if rng.random() < 0.4:
            changes["nodes"] = {}
        elif rng.random() < 0.4:
            changes["nodes"] = {self._context.device: seen.nodes[self._context.device]}
        elif rng.random() < 0.3:
            changes["nodes"] = {n: replace(state, resident=(), queue_depth=50, age_s=1e4) for n, state in seen.nodes.items()}
        if rng.random() < 0.3:
            changes["deadline_s"] = None
        if rng.random() < 0.3:
            changes["elapsed_s"] = 30.0  # more than any deadline
        if rng.random() < 0.2:
            changes["min_accuracy"] = 1.0  # more than any model has
        return replace(seen, **changes)

    def _outcome(self, plan: Plan) -> Outcome:
        if self._trouble and self._rng.random() < 0.3:
            kind = str(self._rng.choice(["timeout", "refused", "unreachable", "connection_lost"]))
            if plan.fallback and any(s.node != self._context.device for s in plan.steps):
                latency_s = 1.0 + sum(self._service_s(step) for step in plan.fallback)
                return replace(self._answer(plan, plan.fallback, latency_s, (), ()), used_fallback=True, error_type=kind,
                               exit_id=self._final(plan.fallback[-1].model))
            return Outcome(self._request.request_id, plan, "failed", 10.0, None, None, None, self._t_ns, error_type=kind)
        transfers, computations, latency_s, at = [], [], 0.0, self._context.device
        for step in plan.steps:
            if step.node != at:
                size = self._context.models[step.model].bytes_at(step.start, step.codec) + 600
                duration_s = self._rtt_s.get(step.node, 0.02) / 2 + 8 * size / self._rate_bps.get(step.node, 1e8)
                transfers.append(Transfer(at, step.node, size, duration_s))
                if at == self._context.device:
                    self._uplinks[step.node] = (8 * size / duration_s, self._t_ns)
                latency_s, at = latency_s + duration_s, step.node
            service_s = self._service_s(step)
            queue_s = float(self._rng.exponential(0.002))
            computations.append(Computation(step.node, step.model, step.start, step.stop, queue_s, service_s))
            latency_s += queue_s + service_s
            exits = self._context.models[step.model].exits.values()
            may_leave = step.exit is not None and any(step.start <= stage < step.stop for stage in exits)
            if may_leave and step is not plan.steps[-1] and self._rng.random() < 0.5:
                break
        if at != self._context.device:
            latency_s += self._rtt_s.get(at, 0.02) / 2
            transfers.append(Transfer(at, self._context.device, 700, self._rtt_s.get(at, 0.02) / 2))
        return self._answer(plan, plan.steps[:len(computations)], latency_s, tuple(transfers), tuple(computations))

    def _answer(self, plan: Plan, steps: Sequence[Step], latency_s: float, transfers: tuple[Transfer, ...],
                computations: tuple[Computation, ...]) -> Outcome:
        last, seen = steps[-1], self._request
        exits = self._context.models[last.model].exits
        left = [name for name, stage in exits.items() if last.start <= stage < last.stop]
        exit_id = max(left, key=lambda name: exits[name]) if left else None
        latency_s += seen.elapsed_s
        allowed_s = self._context.deadline_s if seen.deadline_s is None else seen.deadline_s
        return Outcome(seen.request_id, plan, "ok", latency_s, exit_id, float(self._rng.uniform(0.3, 1.0)), last.node,
                       seen.t_ns + round(latency_s * 1e9), latency_s <= allowed_s, transfers=transfers, computations=computations)

    def _probe(self) -> Probe | None:
        spec, remote = self._probes, self._context.remote_nodes
        if spec is None or not remote or self._t_ns - self._probed_ns < spec.period_s * 1e9:
            return None
        self._probed_ns = self._t_ns
        node = remote[self._next_node % len(remote)]
        self._next_node += 1
        if self._trouble and self._rng.random() < 0.5:
            rtt_s = None if self._rng.random() < 0.5 else self._rtt_s[node]
            return Probe(node, self._t_ns, rtt_s, spec.size_bytes, None)
        return Probe(node, self._t_ns, self._rtt_s[node], spec.size_bytes,
                     self._rtt_s[node] + 8 * spec.size_bytes / self._rate_bps[node])

    def _service_s(self, step: Step) -> float:
        info = self._context.compute.get(step.node)
        known = info is not None and step.model in info.stage_s
        return info.service_s(step.model, step.start, step.stop) if info is not None and known else 0.01

    def _final(self, model: str) -> str:
        return self._context.models[model].final_exit
