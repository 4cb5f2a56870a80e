"""DADS: a DAG of layers split by a minimum cut, for latency when requests are rare and for throughput when they are dense."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from testbed.policies.bandwidth import MESSAGE_BYTES, paths_from
from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs, cut_plan, model_of, server_of
from testbed.policies.knowledge import Context, Observation, Outcome, Probe
from testbed.policies.latency import ProfileTable
from testbed.policies.neurosurgeon import probes_every
from testbed.policies.partition import Stages, partition_of, vertex_payloads
from testbed.policies.plan import Plan

_ARRIVALS = 16  # requests over which the rate of arrivals is measured
_RATES_PER_DECADE = 20  # one partition is kept for all rates within 6% of one of these


@dataclass(frozen=True)
class _Choice:
    """What is executed: `cut` of the order of execution, its stages; objective of the minimum cut and of what is executed."""

    cut: int
    stages: Stages
    optimum_s: float
    predicted_s: float
    is_exact: bool


class Dads(Policy):
    """Splits the model's graph between the device (edge) and a server (cloud), in one of two modes.

    ### Decides
    Te, Tt, Tc: time that a request occupies the device, the uplink and the server.

        light: min Te + Tt + Tc       (DSL, a minimum cut)
        heavy: min max(Te, Tt, Tc)    (DSH, weighted minimum cuts; at most three times the optimum)

    The loop of the paper: take the estimated rate; light; if its largest stage exceeds 1/Q, heavy; if that exceeds it too,
    `overloaded` is 1 in the scores (the paper then asks for a lower frame rate). Q is the rate of this device's requests.
    Corrected against the paper: no dependency may lead from the server back to the device (`Partition.light`). Anything that is
    sent also costs a round trip and the message's head, once; with them the device alone may be better, and is taken then.

    ### Execution
    Stages run in the order of execution of the model, so a split is executed when its device side is a prefix of that order: in
    a chain always. Else the best prefix is executed; when that is worse, `exact` is 0 in the scores: `optimum_s` is the predicted
    objective of the minimum cut, `predicted_s` that of what is executed.

    ### Options
    | option | default | meaning |
    |---|---|---|
    | mode | auto | `light` or `heavy` keeps to one; `auto` is the loop |
    | frame_rate | - | Q per second; measured over the last 16 requests when absent |
    | estimator | ewma | of the rate: `last`, `ewma`, `kalman` |
    | initial_bps, initial_rtt_s | 5e6, 0.05 | taken before the first sample |
    | node | nearest | tier or name of the server |
    | codec, input_codec | raw | how tensors, and the input, travel |
    | probe_period_s, probe_bytes | 2, 10000 | probes of the server; period 0: none |

    A partition is computed for a rate rounded to 20 steps per decade (by at most 6%), once, and kept. That takes about 1 ms for
    six stages; for a graph of 80 vertices 3 ms in light and 0.05 s in heavy mode.

    ### Reference
    Hu, Bao, Wang and Liu, Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge, INFOCOM 2019.

    ### Versions
    1: first.
    """

    id = "dads"
    version = 1

    def __init__(self, context: Context, mode: str = "auto", frame_rate: float | None = None, estimator: str = "ewma",
                 initial_bps: float = 5e6, initial_rtt_s: float = 0.05, node: str | None = None, model: str | None = None,
                 codec: str = "raw", input_codec: str = "raw", probe_period_s: float = 2.0, probe_bytes: int = 10_000) -> None:
        """Raises ValueError for options that cannot be."""
        super().__init__(context)
        if mode not in ("auto", "light", "heavy"):
            raise ValueError(f"mode: {mode!r} is not one of auto, light, heavy")
        if frame_rate is not None and not frame_rate > 0:
            raise ValueError(f"frame_rate: {frame_rate!r} is not a rate above 0 per second")
        checked_codecs(codec, input_codec)
        self._mode, self._frame_rate = mode, frame_rate
        self._model = model_of(context, model)
        self._server = server_of(context, node)
        self._codec, self._input_codec = codec, input_codec
        times = ProfileTable(context)
        self._edge_s = times.stage_s(context.device, self._model.name)
        self._cloud_s = times.stage_s(self._server, self._model.name)
        self._bytes = vertex_payloads(self._model, codec, input_codec)
        self._path = paths_from(context, estimator, initial_bps, initial_rtt_s)[self._server]
        self._arrivals: deque[float] = deque(maxlen=_ARRIVALS)
        self._kept: dict[tuple[int, bool], _Choice] = {}
        self._alone = Stages(sum(self._edge_s), 0.0, 0.0)
        self.probes = probes_every(probe_period_s, probe_bytes)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """The one model that it splits."""
        return (self._model.name,)

    def plans(self) -> tuple[Plan, ...]:
        """Every cut."""
        return tuple(self._plan(cut) for cut in range(self._model.num_stages + 1))

    def decide(self, observation: Observation) -> Plan:
        """The plan of the partition for the estimated rate, in the mode that the rate of requests asks for."""
        self._arrivals.append(observation.t_ns / 1e9 - observation.elapsed_s)
        per_s = self._requests_per_s()
        heavy = self._mode == "heavy"
        choice = self._choose(heavy)
        if self._mode == "auto" and per_s * choice.stages.longest_s > 1:
            heavy, choice = True, self._choose(True)
        self._scores = {
            "cut": float(choice.cut), "heavy": float(heavy), "predicted_s": choice.predicted_s, "optimum_s": choice.optimum_s,
            "exact": float(choice.is_exact), "edge_s": choice.stages.edge_s, "sending_s": choice.stages.sending_s,
            "cloud_s": choice.stages.cloud_s, "requests_per_s": per_s,
            "overloaded": float(per_s * choice.stages.longest_s > 1), **self._path.scores(observation.t_ns)}
        return self._plan(choice.cut)

    def _plan(self, cut: int) -> Plan:
        return cut_plan(self.id, self.context, self._model, cut, self._server, self._codec, self._input_codec)

    def _requests_per_s(self) -> float:
        """Q: given, or measured between the instants for which the last requests were scheduled; 0 before there are two."""
        if self._frame_rate is not None:
            return self._frame_rate
        passed_s = max(self._arrivals) - min(self._arrivals)
        return (len(self._arrivals) - 1) / passed_s if passed_s > 0 else 0.0

    def _choose(self, heavy: bool) -> _Choice:
        step = round(_RATES_PER_DECADE * math.log10(self._path.rate.bps))
        if (step, heavy) not in self._kept:
            self._kept[step, heavy] = self._search(10 ** (step / _RATES_PER_DECADE), heavy)
        found = self._kept[step, heavy]
        if heavy or found.cut == self._model.num_stages:
            return found
        # light: whatever is sent also waits for a round trip, which no partition changes
        rtt_s, alone_s = self._path.rtt.s, self._alone.total_s
        if found.predicted_s + rtt_s >= alone_s:
            return _Choice(self._model.num_stages, self._alone, min(alone_s, found.optimum_s + rtt_s), alone_s, True)
        return replace(found, predicted_s=found.predicted_s + rtt_s, optimum_s=min(alone_s, found.optimum_s + rtt_s))

    def _search(self, bps: float, heavy: bool) -> _Choice:
        """The partition for a rate, and the cut that is executed for it; objectives without the round trip."""
        problem = partition_of(self._model, self._edge_s, self._cloud_s, self._bytes, bps)
        edge_side = problem.heavy() if heavy else problem.light()
        is_prefix = edge_side == problem.prefix(len(edge_side))
        cut = len(edge_side) if is_prefix else problem.best_prefix(longest=heavy)

        def objective(stages: Stages) -> float:
            return stages.longest_s if heavy else stages.total_s

        def with_head(stages: Stages) -> Stages:
            return replace(stages, sending_s=stages.sending_s + 8 * MESSAGE_BYTES / bps) if stages.sending_s else stages

        optimum, executed = with_head(problem.stages(edge_side)), with_head(problem.stages(problem.prefix(cut)))
        return _Choice(cut, executed, objective(optimum), objective(executed),
                       is_prefix or objective(executed) <= objective(optimum) * (1 + 1e-9))

    def observe(self, outcome: Outcome) -> None:
        """Rate and round trip from its transfers."""
        self._path.observe(outcome)

    def observe_probe(self, probe: Probe) -> None:
        """Rate and round trip from a probe of the server."""
        self._path.observe_probe(probe)

    def scores(self) -> Mapping[str, float]:
        """Cut, mode, objective of the minimum cut and of what is executed, the three stages, Q; rate, its age, round trip."""
        return self._scores
