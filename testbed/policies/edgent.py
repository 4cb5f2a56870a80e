"""Edgent: the exit to which a model is shortened and the cut of that branch: as accurate as the deadline allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.policies.bandwidth import ESTIMATORS, MESSAGE_BYTES, Path, RateEstimator, RoundTrip, make_estimator
from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs, model_of, server_of
from testbed.policies.changepoint import ChangePointRate
from testbed.policies.exits_math import Branch, BranchyTimes, by_accuracy
from testbed.policies.knowledge import Context, Observation, Outcome, Probe
from testbed.policies.latency import LoadFactor
from testbed.policies.neurosurgeon import probes_every
from testbed.policies.plan import ExitRule, Plan, Step

STATES_BPS = tuple(round(5e4 * 2000 ** (i / 32)) for i in range(33))  # 50 kbit/s to 100 Mbit/s, each 27% above the one before


class Edgent(Policy):
    """Shortens the model to one of its exits ("right-sizing") and cuts that branch between the device and a server.

    ### Decides
    Exits from the most to the least accurate; for each the cut with the least predicted latency

        device stages + 8 * payload / rate + round trip + k * (server stages)         (no transfer when nothing is sent)

    with the head of that exit where it runs. The first exit whose least latency is within the request's budget is taken;
    when none is, the fastest of all (the paper's search then has no answer). All samples leave at the chosen exit: the
    plan ends there, with the rule `always`. So a longer deadline never lowers the accuracy.

    ### Modes
    `static`: the rate is that of the estimator. `dynamic`: samples of the rate go through Bayesian online change-point
    detection; the rate of the current regime is replaced by the nearest of `states_bps` (on a logarithmic scale), whose costs
    were computed beforehand: the configuration map. The paper's map is made offline from bandwidth traces for one deadline and
    keeps one configuration per state; ours keeps the costs of all, so that each request's own budget and the measured round
    trip and load count too.

    ### Options
    | option | default | meaning |
    |---|---|---|
    | mode | static | `static` or `dynamic` |
    | estimator | ewma | of the rate, static mode: `last`, `ewma`, `kalman` |
    | states_bps | 33 from 5e4 to 1e8 | bandwidth states of the map, bit/s, rising; dynamic mode |
    | hazard, deviation | 0.02, 0.2 | dynamic mode: probability of a change per sample; relative noise of samples |
    | initial_bps, initial_rtt_s | 5e6, 0.05 | taken before the first sample |
    | load, load_half_life_s | true, 10 | use the load factor k of the server (`latency.LoadFactor`); else k = 1 |
    | node, model | nearest, the scenario's | tier or name of the server; model with exits |
    | codec, input_codec | raw | how tensors, and the input, travel |
    | probe_period_s, probe_bytes | 2, 10000 | probes of the server, in s and bytes; 0: none |

    Without probes a policy that has come to answer on the device never learns that the network has recovered.

    ### Reference
    Li, Zeng, Zhou and Chen, Edge AI: On-Demand Accelerating Deep Neural Network Inference via Edge Computing, IEEE
    Transactions on Wireless Communications, 2020 (first: MECOMM 2018). Change points: Adams and MacKay, 2007.

    ### Versions
    1: first.
    """

    id: ClassVar[str] = "edgent"
    version: ClassVar[int] = 1

    def __init__(self, context: Context, mode: str = "static", estimator: str = "ewma",
                 states_bps: Sequence[float] = STATES_BPS, hazard: float = 0.02, deviation: float = 0.2,
                 initial_bps: float = 5e6, initial_rtt_s: float = 0.05, load: bool = True, load_half_life_s: float = 10.0,
                 node: str | None = None, model: str | None = None, codec: str = "raw", input_codec: str = "raw",
                 probe_period_s: float = 2.0, probe_bytes: int = 10_000) -> None:
        """Raises ValueError for options that cannot be."""
        super().__init__(context)
        if mode not in ("static", "dynamic"):
            raise ValueError(f"mode: {mode!r} is neither static nor dynamic")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator: {estimator!r} is not one of {', '.join(ESTIMATORS)}")
        checked_codecs(codec, input_codec)
        self._model = model_of(context, model)
        self._times = BranchyTimes(context, self._model, server_of(context, node), codec, input_codec)
        self._codec, self._input_codec, self._use_load = codec, input_codec, load
        self._order = by_accuracy(self._model)
        branches = self._times.branches()
        self._branches = {name: [b for b in branches if b.exit_name == name] for name in self._order}
        self._states = _checked_states(states_bps) if mode == "dynamic" else ()
        rate: RateEstimator = ChangePointRate(initial_bps, hazard, deviation) if self._states \
            else make_estimator(estimator, initial_bps)
        self._path = Path(context.device, self._times.server, rate, RoundTrip(initial_rtt_s))
        self._map = {bps: self._without_delay(bps) for bps in self._states}
        self._load = LoadFactor(half_life_s=load_half_life_s)
        self.probes = probes_every(probe_period_s, probe_bytes)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """The one model that it shortens and cuts."""
        return (self._model.name,)

    def plans(self) -> tuple[Plan, ...]:
        """Every exit with every cut."""
        return tuple(self._plan(branch) for branches in self._branches.values() for branch in branches)

    def decide(self, observation: Observation) -> Plan:
        """The most accurate exit that meets the request's budget, with its best cut."""
        budget_s = observation.budget_s(self.context)
        k = self._load.k(observation.t_ns) if self._use_load else 1.0
        bps, sending_s = self._sending_s()
        best: dict[str, tuple[float, Branch]] = {}
        for name in self._order:
            costs = [(b.device_s + k * b.server_s + (0.0 if s is None else s + self._path.rtt.s), -b.cut, b)
                     for b, s in zip(self._branches[name], sending_s[name], strict=True)]
            latency_s, _, branch = min(costs, key=lambda cost: cost[:2])  # of equal ones the one that sends least
            best[name] = (latency_s, branch)
            if latency_s <= budget_s:
                break
        else:
            name = min(self._order, key=lambda e: best[e][0])
        latency_s, branch = best[name]
        self._scores = {"exit_stage": branch.stop - 1.0, "cut": float(branch.cut), "predicted_s": latency_s, "budget_s": budget_s,
                        "accuracy": self._model.exit_accuracy[name], "k": k, "used_bps": bps,
                        **self._path.scores(observation.t_ns)}
        if isinstance(self._path.rate, ChangePointRate):
            self._scores |= {"changes": float(self._path.rate.detector.changes),
                             "run_length": float(self._path.rate.detector.run_length)}
        return self._plan(branch)

    def observe(self, outcome: Outcome) -> None:
        """Rate and round trip from its transfers, the load factor from the server's computations."""
        self._path.observe(outcome)
        for done in outcome.computations:
            if done.node == self._times.server:
                self._load.update(done, self._times.predicted_s(done, heads=False), outcome.t_ns)

    def observe_probe(self, probe: Probe) -> None:
        """Rate and round trip from a probe of the server."""
        self._path.observe_probe(probe)

    def scores(self) -> Mapping[str, float]:
        """Exit (its stage), cut, predicted latency, budget, accuracy of that exit; k; the rate that was used, the estimate, its
        age, round trip; in dynamic mode the number of changes so far and how many samples the current regime has."""
        return self._scores

    def _sending_s(self) -> tuple[float, dict[str, list[float | None]]]:
        """The rate that counts, and the time of each branch's message at it."""
        if not self._states:
            return self._path.rate.bps, self._without_delay(self._path.rate.bps)
        bps = nearest_state(self._states, self._path.rate.bps)
        return bps, self._map[bps]

    def _without_delay(self, bps: float) -> dict[str, list[float | None]]:
        return {name: [None if b.payload_bytes is None else 8 * (b.payload_bytes + MESSAGE_BYTES) / bps for b in branches]
                for name, branches in self._branches.items()}

    def _plan(self, branch: Branch) -> Plan:
        model, cut, rule = self._model.name, branch.cut, ExitRule("always", 0.0)
        if cut == branch.stop:
            return Plan(self.id, (Step(self.context.device, model, 0, cut, exit=rule),))
        head = (Step(self.context.device, model, 0, cut),) if cut else ()
        tail = Step(self._times.server, model, cut, branch.stop, self._codec if cut else self._input_codec, rule)
        return Plan(self.id, (*head, tail))


def nearest_state(states_bps: Sequence[float], bps: float) -> float:
    """The bandwidth state whose logarithm is nearest; of two as near the lower. States rise."""
    i = bisect_left(states_bps, bps)
    around = states_bps[max(0, i - 1):i + 1]
    return min(around, key=lambda state: abs(math.log(state / bps)))


def _checked_states(states_bps: Sequence[float]) -> tuple[float, ...]:
    states = tuple(float(bps) for bps in states_bps)
    if not states or not all(0 < a < math.inf for a in states) or list(states) != sorted(set(states)):
        raise ValueError("states_bps: is a rising list of rates above 0, in bit/s")
    return states
