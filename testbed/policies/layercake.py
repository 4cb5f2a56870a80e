"""LayerCake: which of several models, on the device or in the cloud, answers a request within its deadline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

from testbed.policies.bandwidth import paths_from
from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs
from testbed.policies.knowledge import Context, Observation, Outcome, Probe, ProbeSpec
from testbed.policies.model_state import ModelStates
from testbed.policies.plan import Plan, Step
from testbed.policies.selection import Choice, Variant, fastest, in_cloud, layercake

Backup = Literal["none", "deadline", "proactive"]
Rule = Literal["layercake", "in-cloud"]


class LayerCake(Policy):
    """Chooses one model variant per request: the most accurate that is expected to answer before the deadline.

    Decides: one step, a whole model on the device or on a remote node; the fastest local model as fallback of a remote step,
    and as its backup where asked.

    Uses: budget and least accuracy of the request; accuracy of the models; measured latency, loading and state of each variant
    (`model_state.ModelStates`); round trip and rate of each path, moving averages of probes with alpha 0.5. Expected network
    time = round trip + 8 * (payload + head) / rate. Before the first probe: `initial_rtt_s` and `initial_bps`.

    | option | unit | default | meaning |
    |---|---|---|---|
    | device_models | | the scenario's model | models on the device |
    | remote | | the scenario's model on the last tier | tier -> models there |
    | only | | none | device, remote: the baselines on-device-only and remote-only |
    | rule | | layercake | in-cloud: the most accurate with expected time <= budget, as a server would pick (after INFaaS) |
    | faithful | | false | tight budgets as in the published code, see below |
    | margin | | 0.8 | share of the budget that a variant may take |
    | lookup_s, resize_s | s | 0, 0.05 | taken off the budget before that: asking for candidates, resizing the input |
    | percentile | | 0.9 | of the measured latencies; null: their mean |
    | window | requests | null | how many measured latencies count per variant; null: all |
    | prior_runs | requests | 10 | how many measurements the profile's time counts for |
    | cold_s | s | 10 | a remote variant is left out so long after a failure |
    | probe_period_s, probe_bytes | s, B | 10, 100000 | active probes of the remote nodes |
    | passive | | false | finished transfers count for the rate too |
    | initial_bps, initial_rtt_s | bit/s, s | 5e6, 0.05 | before the first probe |
    | input_codec | | raw | how the input travels |
    | backup | | none | deadline: the fastest local model starts when the budget is over; proactive: earlier |
    | backup_factor | | 1.1 | proactive: it starts after factor * (budget - its latency) |

    `faithful: true` does what the published code does when time is short: when no local variant is in time, the remote ones are
    not considered, and when no variant is feasible the fastest local one answers. Otherwise the remote ones are considered
    always, and the fastest variant anywhere answers when none is feasible.

    Different from the published code: a remote latency never includes the network; a device has one compute thread, so the
    expected wait for it counts; a model that is not resident costs its loading time on the device too. With the published factor
    1.1 a proactive backup starts too late to meet the deadline by itself (it would have to start at 1.0 at the latest): it bounds
    the tail. Below 1 it saves deadlines.

    Version 1. Reference: Ogden and Guo, LayerCake, CCGrid 2023; specified here from the code in its repository.
    """

    id: ClassVar[str] = "layercake"
    all_foreseen: ClassVar[bool] = True

    def __init__(self, context: Context, device_models: Sequence[str] | None = None,
                 remote: Mapping[str, Sequence[str]] | None = None, only: Literal["device", "remote"] | None = None,
                 rule: Rule = "layercake", faithful: bool = False, margin: float = 0.8, lookup_s: float = 0.0,
                 resize_s: float = 0.05, percentile: float | None = 0.9, window: int | None = None, prior_runs: int = 10,
                 cold_s: float = 10.0, probe_period_s: float = 10.0, probe_bytes: int = 100_000, passive: bool = False,
                 initial_bps: float = 5e6, initial_rtt_s: float = 0.05, input_codec: str = "raw", backup: Backup = "none",
                 backup_factor: float = 1.1) -> None:
        """Raises ValueError for options that contradict each other or name what the scenario does not have."""
        super().__init__(context)
        if only not in (None, "device", "remote"):
            raise ValueError(f"only: {only!r} is not device or remote")
        if rule not in get_args(Rule):
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(get_args(Rule))}")
        if backup not in get_args(Backup):
            raise ValueError(f"backup: {backup!r} is not one of {', '.join(get_args(Backup))}")
        if not 0 < margin <= 1 or not backup_factor > 0:
            raise ValueError("margin must be above 0 and at most 1, backup_factor above 0")
        if min(lookup_s, resize_s) < 0:
            raise ValueError("lookup_s and resize_s must be at least 0")
        checked_codecs(input_codec)
        places = places_of(context, device_models, remote)
        self._local = [] if only == "remote" else [key for key in places if key[0] == context.device]
        self._remote = [] if only == "device" else [key for key in places if key[0] != context.device]
        if rule == "in-cloud":
            self._local = []
        if not (self._local or self._remote):
            raise ValueError("there is no model on the device and none on a remote node; name them with device_models and remote")
        if backup != "none" and not self._local:
            raise ValueError("a backup runs on the device: name its models with device_models, and not only: remote")
        self._rule, self._faithful, self._passive = rule, faithful, passive
        self._margin, self._allowance_s = margin, lookup_s + resize_s
        self._backup, self._backup_factor, self._codec = backup, backup_factor, input_codec
        self.states = ModelStates(context, [*self._local, *self._remote], percentile=percentile, window=window,
                                  prior_runs=prior_runs, cold_s=cold_s)
        self.paths = paths_from(context, "ewma", initial_bps, initial_rtt_s, rtt_alpha=0.5)
        if self._remote:
            self.probes = ProbeSpec(probe_period_s, probe_bytes)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """All models of its variants."""
        return tuple(dict.fromkeys(model for _, model in [*self._local, *self._remote]))

    def plans(self) -> tuple[Plan, ...]:
        """Each variant by itself."""
        return tuple(Plan(f"{model}@{node}", (self._step(node, model),)) for node, model in [*self._local, *self._remote])

    def decide(self, observation: Observation) -> Plan:
        """The variant for this request, as a plan of one step."""
        budget_s = observation.budget_s(self.context)
        least = max(observation.min_accuracy, self.context.min_accuracy)
        variants = self.variants(observation)
        if self._rule == "in-cloud":
            choice = in_cloud(variants, budget_s, least)
        else:
            choice = layercake(variants, budget_s, min_accuracy=least, margin=self._margin, allowance_s=self._allowance_s,
                               faithful=self._faithful)
        chosen = choice.variant
        self.states.begin(observation.request_id, chosen.node, chosen.model, observation.t_ns, observation.nodes.get(chosen.node))
        self._scores = self._weighed(choice, budget_s, observation.t_ns)
        name, steps = f"{chosen.model}@{chosen.node}", (self._step(chosen.node, chosen.model),)
        local = [v for v in variants if v.local]
        if chosen.local or not local:
            return Plan(name, steps)
        quickest = fastest(local)
        spare = (self._step(quickest.node, quickest.model),)
        if self._backup == "none":
            return Plan(name, steps, fallback=spare)
        late_s = budget_s if self._backup == "deadline" else self._backup_factor * (budget_s - quickest.latency_s)
        return Plan(name, steps, fallback=spare, backup=spare, backup_after_s=max(0.0, late_s))

    def observe(self, outcome: Outcome) -> None:
        """Latencies, failures and, with `passive`, transfers."""
        self.states.observe(outcome)
        if self._passive:
            for path in self.paths.values():
                path.observe(outcome)

    def observe_late(self, outcome: Outcome) -> None:
        """The same of the side that did not answer first."""
        self.states.observe_late(outcome)
        if self._passive:
            for path in self.paths.values():
                path.observe(outcome)

    def observe_probe(self, probe: Probe) -> None:
        """Round trip and rate."""
        if probe.node in self.paths:
            self.paths[probe.node].observe_probe(probe)

    def scores(self) -> Mapping[str, float]:
        """Of the last decision: budget, expected time and its network part, nominal accuracy, whether it was feasible, and the
        state of the path to the remote node that was chosen or is the nearest."""
        return self._scores

    def variants(self, observation: Observation) -> list[Variant]:
        """All variants as they look now: device first, then the remote ones."""
        t_ns, states = observation.t_ns, self.states
        device = observation.nodes.get(self.context.device)
        wait_s = states.wait_s(t_ns, device.inflight if device is not None else 0)
        found = []
        for node, model in [*self._local, *self._remote]:
            local = node == self.context.device
            latency_s = states.latency_s(node, model, observation.nodes.get(node)) + (wait_s if local else 0.0)
            found.append(Variant(
                node, model, local, accuracy_of(self.context, model), latency_s,
                network_s=0.0 if local else self._network_s(node, model),
                available=not states.is_busy(node, model) and (local or not states.is_cold(node, model, t_ns))))
        return found

    def _network_s(self, node: str, model: str) -> float:
        """Round trip + payload / rate."""
        path = self.paths[node]
        return path.transfer_s(self.context.models[model].bytes_at(0, self._codec)) + path.answer_s

    def _step(self, node: str, model: str) -> Step:
        codec = "raw" if node == self.context.device else self._codec
        return Step(node, model, 0, self.context.models[model].num_stages, codec)

    def _weighed(self, choice: Choice, budget_s: float, t_ns: int) -> dict[str, float]:
        chosen = choice.variant
        scores = {"budget_s": budget_s, "expected_s": chosen.total_s, "network_s": chosen.network_s,
                  "accuracy": chosen.accuracy, "feasible": float(choice.feasible)}
        node = next((n for n in (chosen.node, *(n for n, _ in self._remote)) if n in self.paths), None)
        return scores if node is None else scores | self.paths[node].scores(t_ns)


def places_of(context: Context, device_models: Sequence[str] | None,
              remote: Mapping[str, Sequence[str]] | None) -> list[tuple[str, str]]:
    """Variants (node, model) that options name, device first; by default the scenario's model on device and last tier.

    Raises ValueError naming the option.
    """
    if isinstance(device_models, str) or (remote is not None and any(isinstance(v, str) for v in remote.values())):
        raise ValueError("device_models and remote take lists of models")
    if device_models is None:
        device_models = [context.model]
    if remote is None:
        remote = {context.tiers[-1]: [context.model]} if len(context.tiers) > 1 else {}
    places = [(context.device, model) for model in device_models]
    for tier, models in remote.items():
        if tier not in context.tiers[1:]:
            raise ValueError(f"remote: {tier!r} is not a remote tier; there are {', '.join(context.tiers[1:]) or 'none'}")
        places += [(context.nodes[tier], model) for model in models]
    for _, model in places:
        if model not in context.models:
            raise ValueError(f"there is no model {model!r} in the catalogue; `testbed models list` shows them")
        if context.models[model].input_bytes != context.models[context.model].input_bytes:
            raise ValueError(f"model {model!r} takes another input than {context.model}")
    if len(set(places)) != len(places):
        raise ValueError("a model is named twice for the same node")
    return places


def accuracy_of(context: Context, model: str) -> float:
    """Nominal accuracy of a model; one that the catalogue does not know counts as 0."""
    accuracy = context.models[model].accuracy
    return accuracy if math.isfinite(accuracy) else 0.0
