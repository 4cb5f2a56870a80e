"""MDInference: the most accurate cloud model that fits what the upload leaves of the deadline, with a duplicate on the device."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, get_args

from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs
from testbed.policies.knowledge import Context, Observation, Outcome
from testbed.policies.latency import ProfileTable
from testbed.policies.layercake import accuracy_of, places_of
from testbed.policies.model_state import Moments
from testbed.policies.plan import Plan, Step
from testbed.policies.selection import Variant, fast_enough, most_accurate

Rule = Literal["greedy", "naive", "random", "weighted"]


class MDInference(Policy):
    """Chooses one cloud model per request: the most accurate with mean + gamma sigma < deadline - 2 * upload time.

    Decides: one remote step; on the device a duplicate that starts so late that its answer comes just before the deadline, so
    that it counts only when the cloud's has not come. When no model fits, the fastest remote one.

    Uses: budget of the request; accuracy of the models; mean and standard deviation of each model's measured time on the
    node (queue and computation; the profile's time before the first); the time of the last upload. The published server decides
    when the input is there and has measured its upload; this device decides before, so the upload of the request before stands
    for it. Before the first: payload / `initial_bps` + `initial_rtt_s` / 2.

    | option | unit | default | meaning |
    |---|---|---|---|
    | remote | | the scenario's model on the last tier | tier -> models there |
    | duplicate, device_model | | true, the scenario's model | whether there is a duplicate, and its model |
    | guard_s | s | 0.005 | the duplicate is ready so long before the deadline, for what starting and answering take |
    | gamma | | 1 | standard deviations of safety |
    | alpha | | null | null: all measurements count alike; else exponentially weighted (their code: 0.5) |
    | rule | | greedy | naive: mean < deadline, without the network; random, weighted: any that fits, alike or by accuracy |
    | initial_bps, initial_rtt_s | bit/s, s | 5e6, 0.05 | before the first upload |
    | input_codec | | raw | how the input travels |

    Different from the paper: its duplicate starts at once and is held back until the deadline. The answers are the same; the
    device computes less, because a duplicate that is not needed does not start.

    Version 1. Reference: Ogden and Guo, MDInference, IC2E 2020, arXiv 2002.06603; specified here from its simulator's code.
    """

    id: ClassVar[str] = "mdinference"
    all_foreseen: ClassVar[bool] = True

    def __init__(self, context: Context, remote: Mapping[str, Sequence[str]] | None = None,
                 device_model: str | None = None, duplicate: bool = True, guard_s: float = 0.005, gamma: float = 1.0,
                 alpha: float | None = None, rule: Rule = "greedy", initial_bps: float = 5e6, initial_rtt_s: float = 0.05,
                 input_codec: str = "raw") -> None:
        """Raises ValueError for options that are out of range or name what the scenario does not have."""
        super().__init__(context)
        if rule not in get_args(Rule):
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(get_args(Rule))}")
        if min(gamma, guard_s, initial_rtt_s) < 0 or not initial_bps > 0:
            raise ValueError("gamma, guard_s and initial_rtt_s must be at least 0, initial_bps above 0")
        checked_codecs(input_codec)
        places = places_of(context, [device_model or context.model] if duplicate else [], remote)
        self._local = next((key for key in places if key[0] == context.device), None)
        self._remote = [key for key in places if key[0] != context.device]
        if not self._remote:
            raise ValueError("there is no remote model; name some with remote")
        self._rule, self._gamma, self._guard_s, self._codec = rule, gamma, guard_s, input_codec
        self._random = random.Random(context.seed)
        self._times = {key: Moments(alpha) for key in places}
        table = ProfileTable(context)
        self._prior_s = {key: math.fsum(table.stage_s(*key)) for key in places}
        self._initial = initial_bps, initial_rtt_s
        self._upload_s: dict[str, float] = {}
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """All models of its variants."""
        return tuple(dict.fromkeys(model for _, model in self._times))

    def plans(self) -> tuple[Plan, ...]:
        """Each variant by itself."""
        return tuple(Plan(f"{model}@{node}", (self._step(node, model),)) for node, model in self._times)

    def decide(self, observation: Observation) -> Plan:
        """The cloud model for this request, and its duplicate."""
        sla_s = observation.budget_s(self.context)
        variants = [self._variant(*key) for key in self._remote]
        chosen = self._pick(variants, sla_s)
        self._scores = {"budget_s": sla_s, "upload_s": chosen.network_s / 2, "expected_s": chosen.total_s,
                        "sigma_s": chosen.spread_s, "accuracy": chosen.accuracy}
        name, steps = f"{chosen.model}@{chosen.node}", (self._step(chosen.node, chosen.model),)
        if self._local is None:
            return Plan(name, steps)
        own = self._variant(*self._local)
        spare = (self._step(*self._local),)
        start_s = max(0.0, sla_s - own.latency_s - self._gamma * own.spread_s - self._guard_s)
        return Plan(name, steps, fallback=spare, backup=spare, backup_after_s=start_s)

    def observe(self, outcome: Outcome) -> None:
        """Times on the nodes, and of the upload."""
        for done in outcome.computations:
            if (done.node, done.model) in self._times:
                self._times[done.node, done.model].add(done.queue_s + done.duration_s + done.load_s)
        for sent in outcome.transfers:
            if sent.src_node == self.context.device:
                self._upload_s[sent.dst_node] = sent.duration_s

    def observe_late(self, outcome: Outcome) -> None:
        """The same of the side that did not answer first."""
        self.observe(outcome)

    def scores(self) -> Mapping[str, float]:
        """Of the last decision: budget, upload time, expected time and its sigma, nominal accuracy."""
        return self._scores

    def _pick(self, variants: Sequence[Variant], sla_s: float) -> Variant:
        """The variant by the policy's rule."""
        if self._rule == "naive":
            blind = {replace(v, spread_s=0.0, network_s=0.0): v for v in variants}
            return blind[most_accurate(fast_enough(list(blind), sla_s))]
        eligible = fast_enough(variants, sla_s, self._gamma)
        if self._rule == "greedy":
            return most_accurate(eligible)
        weights = [v.accuracy for v in eligible] if self._rule == "weighted" else []
        return self._random.choices(eligible, weights if any(weights) else None)[0]

    def _variant(self, node: str, model: str) -> Variant:
        local, times = node == self.context.device, self._times[node, model]
        mean_s = times.mean if times.count else self._prior_s[node, model]
        return Variant(node, model, local, accuracy_of(self.context, model), mean_s, times.deviation,
                       0.0 if local else 2 * self._upload(node, model))

    def _upload(self, node: str, model: str) -> float:
        bps, rtt_s = self._initial
        payload_bytes = self.context.models[model].bytes_at(0, self._codec) + MESSAGE_BYTES
        return self._upload_s.get(node, 8 * payload_bytes / bps + rtt_s / 2)

    def _step(self, node: str, model: str) -> Step:
        codec = "raw" if node == self.context.device else self._codec
        return Step(node, model, 0, self.context.models[model].num_stages, codec)
