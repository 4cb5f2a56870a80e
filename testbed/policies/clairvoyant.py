"""Clairvoyant: the plan that ends first, given what the links will carry. A bound, not a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.inference.codecs import is_codec_name
from testbed.policies.base import Policy
from testbed.policies.candidates import Candidate, Queues, candidates, lossy_plans, required_accuracy, unknown_threshold
from testbed.policies.knowledge import Context, Observation
from testbed.policies.plan import Plan
from testbed.policies.truth import NS_PER_S, Truth


class Clairvoyant(Policy):
    """Enumerates all plans and takes the one whose answer comes first, with the replayed capacity revealed to it.

    It knows the traces with their offsets, the delays and the planned events of the trial (`truth`), and the plans that it
    chose before: its own requests wait for each other, first come, first served, on every worker and link. It does not know
    other devices' requests, nor what each sample's exits will answer. Greedy: a request is served as fast as possible, also
    where that makes the next ones wait; so on a busy device it is no lower bound, and the oracle of the report is.

    Inputs: t_ns, inflight, min_accuracy of the observation; service times, payloads and exit statistics of the context.

    | option | unit | default | meaning |
    |---|---|---|---|
    | codecs | | [raw] | codecs that plans may use |
    | input_codecs | | `codecs` | those that the input may travel in |
    | thresholds | 0..1 | [] | thresholds of early exits that plans may use; the model's exit statistics must have them |
    | chains | | true | plans over two remote nodes too |
    | models | | [the scenario's] | models that plans may use |

    Plans must reach the request's `min_accuracy`; where that is 0, the accuracy of the scenario's whole model.

    Version 1. No paper.
    """

    id = "clairvoyant"
    max_decision_s = 0.05
    clairvoyant: ClassVar[bool] = True

    def __init__(self, context: Context, codecs: Sequence[str] = ("raw",), input_codecs: Sequence[str] | None = None,
                 thresholds: Sequence[float] = (), chains: bool = True, models: Sequence[str] = ()) -> None:
        super().__init__(context)
        self._models = tuple(models) or (context.model,)
        self._plans = checked_candidates(context, codecs, input_codecs, thresholds, chains, self._models)
        self._truth: Truth | None = None
        self._queues = Queues()
        self._scores: dict[str, float] = {}

    def reveal(self, truth: Truth) -> None:
        """What the links will carry."""
        self._truth = truth

    def decide(self, observation: Observation) -> Plan:
        """The plan whose answer comes first; before anything is revealed, the first that reaches the accuracy."""
        asked = required_accuracy(self.context, observation.min_accuracy)
        fit = [c for c in self._plans if not c.accuracy < asked] or [max(self._plans, key=lambda c: c.accuracy)]
        if self._truth is None:
            self._scores = {}
            return fit[0].plan
        now = float(observation.t_ns - self._truth.start_ns)
        if observation.inflight == 0:
            self._queues = Queues()
        ends = [self._queues.finish_ns(c, self._truth, now, commit=False) for c in fit]
        best = min(range(len(fit)), key=ends.__getitem__)
        self._queues.finish_ns(fit[best], self._truth, now, commit=True)
        self._scores = {"predicted_s": (ends[best] - now) / NS_PER_S, "plans": float(len(fit))}
        return fit[best].plan

    def plans(self) -> tuple[Plan, ...]:
        """Those with codecs; outputs do not depend on the exits that are asked."""
        return lossy_plans(self._plans)

    def models(self) -> tuple[str, ...]:
        """Those of the option."""
        return tuple(dict.fromkeys((self.context.model, *self._models)))

    def scores(self) -> Mapping[str, float]:
        """`predicted_s`: latency of the chosen plan from the decision on; `plans`: how many were compared."""
        return self._scores


def checked_candidates(context: Context, codecs: Sequence[str], input_codecs: Sequence[str] | None,
                       thresholds: Sequence[float], chains: bool, models: Sequence[str]) -> tuple[Candidate, ...]:
    """`candidates`, with the options of a scenario checked. Raises ValueError."""
    for name in models:
        if name not in context.models:
            raise ValueError(f"models: there is no model {name!r} in the catalogue")
    for key, value in (("codecs", codecs), ("input_codecs", input_codecs)):
        if isinstance(value, str) or (value is not None and not value):
            raise ValueError(f"{key}: must be a list with at least one codec, got {value!r}")
        for codec in value or ():
            if not is_codec_name(codec):
                raise ValueError(f"{key}: there is no codec {codec!r}")
    if (unknown := unknown_threshold(context, models, thresholds)) is not None:
        raise ValueError(f"thresholds: {unknown[1]}")
    found = candidates(context, models=models, codecs=codecs, input_codecs=input_codecs, thresholds=thresholds,
                       chains=chains)
    if not found:
        raise ValueError("no plan can be made: no node of this scenario has service times for the model")
    return found
