"""Neurosurgeon: one cut of a layer chain between the device and a server, chosen per request for latency or energy."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.policies.bandwidth import MESSAGE_BYTES, paths_from
from testbed.policies.base import Policy
from testbed.policies.chain import (
    best,
    checked_codecs,
    cut_plan,
    energies_j,
    latencies_s,
    model_of,
    payloads,
    server_of,
)
from testbed.policies.knowledge import Context, Observation, Outcome, Probe, ProbeSpec
from testbed.policies.latency import LoadFactor, ProfileTable, RegressionTable, StageTimes
from testbed.policies.plan import Plan


class Neurosurgeon(Policy):
    """Cuts the model before the stage that makes the predicted latency (or the device's energy) smallest.

    ### Decides
    The cut j in 0..N of N stages: 0 sends the input, N answers on the device.

        latency: argmin_j  sum_{i<=j} TM_i + D_j / B + rtt + k * sum_{i>j} TC_i        (no D_j / B and no rtt for j = N)
        energy:  argmin_j  device_compute_w * sum_{i<=j} TM_i + uplink_w * D_j / B

    TM, TC: predicted stage times of the device and of the server; D_j: bytes at the cut in its codec, with the message's
    head; B, rtt: estimated from finished transfers and from probes; k: how much longer than predicted the server takes
    (queueing and computing; it ages, see `LoadFactor`). The round trip is not in the published sum: it is part of what its
    transfer time measures.

    ### Options
    | option | default | meaning |
    |---|---|---|
    | objective | latency | `latency` or `energy` |
    | device_compute_w, uplink_w | - | watts, device computing and device sending; needed, and used, by `energy` only |
    | estimator | ewma | of the rate: `last`, `ewma`, `kalman` |
    | initial_bps, initial_rtt_s | 5e6, 0.05 | taken before the first sample |
    | load | true | use the load factor k; else k = 1 |
    | load_half_life_s | 10 | time after which half of a measured k - 1 is believed |
    | node | nearest | tier or name of the server |
    | codec, input_codec | raw | how tensors, and the input, travel |
    | regression | - | file of `testbed profile --regressors`: stage times by layer regression, not from the profiles |
    | slowdown | 1 each | with `regression`: tier -> factor on the times of the machine that was measured |
    | probe_period_s, probe_bytes | 2, 10000 | probes of the server; period 0: none |

    Without probes, a policy that has come to answer on the device never learns that the network has recovered.

    ### Reference
    Kang et al., Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge, ASPLOS 2017.

    ### Versions
    1: first.
    """

    id = "neurosurgeon"
    version = 1

    def __init__(self, context: Context, objective: str = "latency", device_compute_w: float | None = None,
                 uplink_w: float | None = None, estimator: str = "ewma", initial_bps: float = 5e6, initial_rtt_s: float = 0.05,
                 load: bool = True, load_half_life_s: float = 10.0, node: str | None = None, model: str | None = None,
                 codec: str = "raw", input_codec: str = "raw", regression: str | None = None,
                 slowdown: Mapping[str, float] | None = None, probe_period_s: float = 2.0, probe_bytes: int = 10_000) -> None:
        """Raises ValueError for options that cannot be."""
        super().__init__(context)
        if objective not in ("latency", "energy"):
            raise ValueError(f"objective: {objective!r} is neither latency nor energy")
        if objective == "energy" and (device_compute_w is None or uplink_w is None):
            raise ValueError("objective: energy needs device_compute_w: and uplink_w:, in watts")
        self._compute_w, self._uplink_w = checked_watts(device_compute_w), checked_watts(uplink_w)
        checked_codecs(codec, input_codec)
        self._objective, self._use_load = objective, load
        self._model = model_of(context, model)
        self._server = server_of(context, node)
        self._codec, self._input_codec = codec, input_codec
        times: StageTimes = ProfileTable(context)
        if regression is not None:
            times = RegressionTable(regression, context, slowdown or {})
        elif slowdown:
            raise ValueError("slowdown: goes with regression:")
        self._device_s = times.stage_s(context.device, self._model.name)
        self._server_s = times.stage_s(self._server, self._model.name)
        self._bytes = payloads(self._model, codec, input_codec)
        self._path = paths_from(context, estimator, initial_bps, initial_rtt_s)[self._server]
        self._load = LoadFactor(half_life_s=load_half_life_s)
        self.probes = probes_every(probe_period_s, probe_bytes)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """The one model that it cuts."""
        return (self._model.name,)

    def plans(self) -> tuple[Plan, ...]:
        """Every cut."""
        return tuple(self._plan(cut) for cut in range(self._model.num_stages + 1))

    def decide(self, observation: Observation) -> Plan:
        """The plan with the best cut for the estimates of this moment."""
        k = self._load.k(observation.t_ns) if self._use_load else 1.0
        end = self._model.num_stages
        round_s = [self._path.transfer_s(size) + self._path.answer_s for size in self._bytes[:end]] + [0.0]
        costs = latency_s = latencies_s(self._device_s, self._server_s, round_s, k)
        if self._objective == "energy":
            sending_s = [8 * (size + MESSAGE_BYTES) / self._path.rate.bps for size in self._bytes[:end]] + [0.0]
            costs = energies_j(self._device_s, sending_s, self._compute_w, self._uplink_w)
        cut = best(costs)
        self._scores = {"cut": float(cut), "predicted_s": latency_s[cut], "device_only_s": latency_s[end],
                        "offload_s": latency_s[0], "k": k, **self._path.scores(observation.t_ns)}
        if self._objective == "energy":
            self._scores["predicted_j"] = costs[cut]
        return self._plan(cut)

    def _plan(self, cut: int) -> Plan:
        return cut_plan(self.id, self.context, self._model, cut, self._server, self._codec, self._input_codec)

    def observe(self, outcome: Outcome) -> None:
        """Rate and round trip from its transfers, the load factor from the server's computations."""
        self._path.observe(outcome)
        for done in outcome.computations:
            if done.node == self._server and done.model == self._model.name:
                self._load.update(done, sum(self._server_s[done.start:done.stop]), outcome.t_ns)

    def observe_probe(self, probe: Probe) -> None:
        """Rate and round trip from a probe of the server."""
        self._path.observe_probe(probe)

    def scores(self) -> Mapping[str, float]:
        """Cut, predicted latency of it, of the device alone and of sending the input; k; rate, its age, round trip."""
        return self._scores


def probes_every(period_s: float, size_bytes: int) -> ProbeSpec | None:
    """Probes with this period; None when it is 0. Raises ValueError."""
    if period_s < 0 or size_bytes < 1:
        raise ValueError("probe_period_s: is at least 0, and probe_bytes: at least 1")
    return ProbeSpec(period_s, size_bytes) if period_s else None


def checked_watts(value: float | None) -> float:
    """A power in watts; 0 when absent. Raises ValueError when it is negative."""
    if value is not None and not value >= 0:
        raise ValueError(f"device_compute_w:, uplink_w: {value!r} is not a power of at least 0 W")
    return float(value or 0.0)
