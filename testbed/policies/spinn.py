"""SPINN: where to split a model and how sure an early exit must be, from expected costs; a local answer without the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from testbed.policies.bandwidth import paths_from
from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs, model_of, server_of
from testbed.policies.exits_math import BranchyTimes, Expected
from testbed.policies.knowledge import Context, Observation, Outcome, Probe
from testbed.policies.latency import LoadFactor
from testbed.policies.neurosurgeon import probes_every
from testbed.policies.plan import ExitRule, Plan, Step

METRICS = ("latency", "worst", "accuracy_loss", "server", "bytes")
_NEAR = 0.1  # of a constraint that nothing meets: so much worse than the nearest is as good


@dataclass(frozen=True)
class Candidate:
    """A split and a threshold with their expected costs; every metric is better when it is smaller."""

    expected: Expected
    latency: float  # s, mean over samples
    worst: float  # s, of a sample that leaves at the final exit
    accuracy_loss: float  # against the full model, on the calibration split
    server: float  # s of the server's time, mean over samples
    bytes: float  # sent, mean over samples

    def metric(self, name: str) -> float:
        """One of METRICS."""
        value: float = getattr(self, name)
        return value


class Spinn(Policy):
    """Chooses split and exit threshold together, and answers with a local exit when the server cannot be reached.

    ### Decides
    All splits s in 0..N with all thresholds of the catalogue's exit curve (0 to above 1, the same for every exit):

        latency(s, threshold) = sum over stages and exit heads of P(reach) * time + P(not left before s) * transfer(s)

    P comes from the calibration split; a time is that of the node's profile times a factor that is measured as requests finish
    (computing over predicted, on the server with queueing; it ages). transfer = 8 * payload / rate + round trip. Exits on both
    sides may answer.

    Then the constraints in the order given: each keeps the candidates that meet it; when none does, those within a tenth of the
    one that comes nearest. A request's least accuracy comes before them. Of what is left, the least `objective`; equal ones by
    latency, server time, bytes.

    ### Without the server
    A plan that fails is answered by the deepest exit that the device reaches in what is left of the budget (`Plan.fallback`);
    the same starts by itself just in time for the deadline when no answer has come (`Plan.backup`); where one of the two is
    expected to be late, not before the moment at which the final exit was expected. A server is gone after a request fell back,
    failed, or was overtaken by its backup, and after a failed probe: the device then answers alone, with the deepest exit that
    fits the budget, until a probe or a late answer comes, or `retry_s` have passed and a request is tried again.

    ### Options
    | option | default | meaning |
    |---|---|---|
    | constraints | [{accuracy_loss: 0.01}] | list of one `metric: limit` each, the most important first |
    | objective | latency | metric to minimise among what the constraints leave |
    | codec, input_codec | int8+lz4, the codec | how tensors, and the input, travel |
    | estimator | ewma | of the rate: `last`, `ewma`, `kalman` |
    | initial_bps, initial_rtt_s | 5e6, 0.05 | taken before the first sample |
    | load, load_half_life_s | true, 10 | scale predicted times by what was measured on each node |
    | backup | true | start the local answer in time for the deadline |
    | guard_s | 0.01 | so much earlier than its predicted time needs |
    | retry_s | 2 | time after which a server that was gone is tried again |
    | node, model | nearest, the scenario's | tier or name of the server; model with an exit curve |
    | probe_period_s, probe_bytes | 2, 10000 | probes of the server, in s and bytes; they fail after `retry_s`; 0: none |

    Metrics: `latency` (s, mean: a share of the requests takes longer), `worst` (s, of a request that leaves at no early exit),
    `accuracy_loss` (0..1), `server` (s of the server's time per request), `bytes` (sent per request). The limit of the first
    two may be the word `deadline`: the request's budget.
    Without probes a policy that has come to answer on the device alone never learns that the network has recovered.

    Different from the paper: 8-bit quantisation and LZ4 as there, but no shuffling of bits in between; the grid of thresholds is
    the catalogue's.

    ### Reference
    Laskaridis, Venieris, Almeida, Leontiadis and Lane, SPINN: Synergistic Progressive Inference of Neural Networks over Device
    and Cloud, MobiCom 2020.

    ### Versions
    1: first.
    """

    id: ClassVar[str] = "spinn"
    version: ClassVar[int] = 1

    def __init__(self, context: Context, constraints: Sequence[Mapping[str, float | str]] = ({"accuracy_loss": 0.01},),
                 objective: str = "latency", codec: str = "int8+lz4", input_codec: str | None = None, estimator: str = "ewma",
                 initial_bps: float = 5e6, initial_rtt_s: float = 0.05, load: bool = True, load_half_life_s: float = 10.0,
                 backup: bool = True, guard_s: float = 0.01, retry_s: float = 2.0, node: str | None = None,
                 model: str | None = None, probe_period_s: float = 2.0, probe_bytes: int = 10_000) -> None:
        """Raises ValueError for options that cannot be, and for a model without an exit curve."""
        super().__init__(context)
        if objective not in METRICS:
            raise ValueError(f"objective: {objective!r} is not one of {', '.join(METRICS)}")
        if guard_s < 0 or retry_s <= 0:
            raise ValueError("guard_s: is at least 0, and retry_s: above 0")
        self._codec, self._input_codec = codec, codec if input_codec is None else input_codec
        checked_codecs(self._codec, self._input_codec)
        self._objective, self._constraints = objective, _checked_constraints(constraints)
        self._model = model_of(context, model)
        if not self._model.exit_curve:
            raise ValueError(f"model {self._model.name} has no exit curve in the catalogue; `testbed models statistics` measures "
                             "that of a model with early exits")
        self._times = BranchyTimes(context, self._model, server_of(context, node), self._codec, self._input_codec)
        self._full_accuracy = self._model.exit_curve[-1].accuracy
        self._expected = [self._times.expected(point, split)
                          for split in range(self._model.num_stages + 1) for point in self._model.exit_curve]
        self._local_s = {name: self._times.local_s(name) for name, _ in self._times.exits}
        self._path = paths_from(context, estimator, initial_bps, initial_rtt_s)[self._times.server]
        self._use_load = load
        self._load = {node: LoadFactor(half_life_s=load_half_life_s) for node in (context.device, self._times.server)}
        self._backup, self._guard_s, self._retry_ns = backup, guard_s, round(retry_s * 1e9)
        self._gone_until_ns: int | None = None
        self.probes = probes_every(probe_period_s, probe_bytes)
        if self.probes is not None:
            self.probes = replace(self.probes, timeout_s=retry_s)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """The one model that it splits."""
        return (self._model.name,)

    def plans(self) -> tuple[Plan, ...]:
        """Every split; outputs do not depend on the threshold."""
        point = self._model.exit_curve[0]
        return tuple(Plan(self.id, self._steps(split, point.threshold)) for split in range(self._model.num_stages + 1))

    def decide(self, observation: Observation) -> Plan:
        """The best split and threshold, or a local exit while the server is gone."""
        t_ns, budget_s = observation.t_ns, observation.budget_s(self.context)
        device_k, server_k = (self._k(node, t_ns) for node in (self.context.device, self._times.server))
        common = {"budget_s": budget_s, "device_k": device_k, "server_k": server_k, **self._path.scores(t_ns)}
        if self._gone_until_ns is not None and t_ns < self._gone_until_ns:
            exit_name = self._deepest(budget_s, device_k)
            self._scores = {"server_gone": 1.0, "exit_stage": float(self._model.exits[exit_name]),
                            "predicted_s": device_k * self._local_s[exit_name], **common}
            return Plan(f"{self.id}:local", self._local(exit_name))
        chosen, unmet = choose(self.candidates(device_k, server_k), self._limits(observation, budget_s), self._objective)
        self._scores = {
            "server_gone": 0.0, "split": float(chosen.expected.split), "threshold": chosen.expected.point.threshold,
            "predicted_s": chosen.latency, "worst_s": chosen.worst, "accuracy": chosen.expected.point.accuracy,
            "server_s": chosen.server, "sent_share": chosen.expected.sent_share, "sent_bytes": chosen.bytes,
            "unmet": float(unmet), **common}
        return self._plan(chosen, budget_s, device_k)

    def observe(self, outcome: Outcome) -> None:
        """Rate, round trip and load factors; whether the server is gone."""
        self._learn(outcome)
        if any(step.node != self.context.device for step in outcome.plan.steps):
            if outcome.status != "ok" or outcome.used_fallback or outcome.backup_won:
                self._gone_until_ns = outcome.t_ns + self._retry_ns
            elif outcome.final_node != self.context.device:
                self._gone_until_ns = None

    def observe_late(self, outcome: Outcome) -> None:
        """The same from the slower side of a request: a server that answers after the backup was late, and is not gone."""
        self._learn(outcome)
        if outcome.backup_won and outcome.status == "ok" and outcome.final_node != self.context.device:
            self._gone_until_ns = None

    def observe_probe(self, probe: Probe) -> None:
        """Rate and round trip from a probe of the server; whether it is there."""
        self._path.observe_probe(probe)
        if probe.node == self._times.server:
            self._gone_until_ns = probe.t_ns + self._retry_ns if probe.rtt_s is None else None

    def scores(self) -> Mapping[str, float]:
        """Split, threshold, and what they are expected to give: mean and worst latency, accuracy, server time, share and bytes
        sent; how many constraints are not met; whether the server is gone; load factors; budget; rate, its age, round trip."""
        return self._scores

    def candidates(self, device_k: float = 1.0, server_k: float = 1.0) -> list[Candidate]:
        """All splits and thresholds with their costs for the present estimates."""
        path = self._path
        found = []
        for e in self._expected:
            away_s = path.transfer_s(e.payload_bytes) + path.answer_s if e.split < self._model.num_stages else 0.0
            found.append(Candidate(e, device_k * e.device_s + server_k * e.server_s + e.sent_share * away_s,
                                   device_k * e.whole_device_s + server_k * e.whole_server_s + away_s,
                                   self._full_accuracy - e.point.accuracy, e.server_s, e.sent_bytes))
        return found

    def _learn(self, outcome: Outcome) -> None:
        self._path.observe(outcome)
        heads = any(s.exit is not None and s.exit.kind != "always" for s in outcome.plan.steps)
        for done in outcome.computations:
            if done.node == self.context.device:  # its queue is this policy's own requests
                done = replace(done, queue_s=0.0)
            if done.node in self._load:
                self._load[done.node].update(done, self._times.predicted_s(done, heads), outcome.t_ns)

    def _limits(self, observation: Observation, budget_s: float) -> list[tuple[str, float]]:
        least = max(observation.min_accuracy, self.context.min_accuracy)
        first = [("accuracy_loss", self._full_accuracy - least)] if least > 0 else []
        return first + [(name, budget_s if limit is None else limit) for name, limit in self._constraints]

    def _k(self, node: str, t_ns: int) -> float:
        return self._load[node].k(t_ns) if self._use_load else 1.0

    def _deepest(self, budget_s: float, device_k: float) -> str:
        """The deepest exit that the device reaches within the budget; the first when it reaches none."""
        names = [name for name, _ in self._times.exits]
        return next((name for name in reversed(names) if device_k * self._local_s[name] <= budget_s), names[0])

    def _local(self, exit_name: str) -> tuple[Step, ...]:
        stop = self._model.exits[exit_name] + 1
        return (Step(self.context.device, self._model.name, 0, stop, exit=ExitRule("always", 0.0)),)

    def _steps(self, split: int, threshold: float) -> tuple[Step, ...]:
        model, end = self._model.name, self._model.num_stages
        rule = ExitRule("max_probability", threshold) if threshold <= 1 else None
        head = (Step(self.context.device, model, 0, split, exit=rule),) if split else ()
        codec = self._codec if split else self._input_codec
        return (*head, Step(self._times.server, model, split, end, codec, rule)) if split < end else head

    def _plan(self, chosen: Candidate, budget_s: float, device_k: float) -> Plan:
        split = chosen.expected.split
        steps = self._steps(split, chosen.expected.point.threshold)
        if split == self._model.num_stages:
            return Plan(self.id, steps)
        spent_s = device_k * chosen.expected.whole_device_s + self._path.rtt.s  # when a server is found to be gone
        spare = self._deepest(budget_s - spent_s - self._guard_s, device_k)
        local = self._local(spare)
        if not self._backup:
            return Plan(self.id, steps, local)
        after_s = budget_s - device_k * self._local_s[spare] - self._guard_s
        if chosen.worst > budget_s or after_s < 0:  # one of the two is late anyway: a backup is for what is later than expected
            after_s = max(after_s, chosen.worst)
        return Plan(self.id, steps, local, backup=local, backup_after_s=after_s)


def choose(candidates: Sequence[Candidate], limits: Sequence[tuple[str, float]], objective: str) -> tuple[Candidate, int]:
    """The best candidate under (metric, limit) constraints in order of importance, and how many of them it misses."""
    left = list(candidates)
    for name, limit in limits:
        nearest = min(c.metric(name) for c in left)
        bound = (limit if nearest <= limit else nearest + _NEAR * abs(nearest)) + 1e-12
        left = [c for c in left if c.metric(name) <= bound]
    best = min(left, key=lambda c: (c.metric(objective), c.latency, c.server, c.bytes))
    return best, sum(best.metric(name) > limit + 1e-12 for name, limit in limits)


def _checked_constraints(constraints: Sequence[Mapping[str, float | str]]) -> list[tuple[str, float | None]]:
    """(metric, limit) in order; the limit `deadline` becomes None."""
    found: list[tuple[str, float | None]] = []
    for item in constraints:
        if not isinstance(item, Mapping) or len(item) != 1:
            raise ValueError("constraints: is a list of one `metric: limit` each, such as [{accuracy_loss: 0.01}, "
                             "{latency: deadline}]")
        (name, limit), = item.items()
        if name not in METRICS:
            raise ValueError(f"constraints: {name!r} is not one of {', '.join(METRICS)}")
        if limit == "deadline" and name in ("latency", "worst"):
            found.append((name, None))
        elif isinstance(limit, bool) or not isinstance(limit, int | float):
            raise ValueError(f"constraints: the limit {limit!r} of {name} is not a number" + (
                " or the word deadline" if name in ("latency", "worst") else ""))
        else:
            found.append((name, float(limit)))
    return found
