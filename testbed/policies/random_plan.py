"""Random: any plan, each as likely as the others. A bound, not a system."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from testbed.policies.base import Policy
from testbed.policies.candidates import lossy_plans, required_accuracy
from testbed.policies.clairvoyant import checked_candidates
from testbed.policies.knowledge import Context, Observation
from testbed.policies.plan import Plan


class RandomPlan(Policy):
    """Draws uniformly from the plans that the clairvoyant policy compares. Deterministic under the context's seed.

    Inputs: min_accuracy of the observation (plans below it, or below the whole model where it is 0, are not drawn).

    | option | unit | default | meaning |
    |---|---|---|---|
    | codecs | | [raw] | codecs that plans may use |
    | input_codecs | | `codecs` | those that the input may travel in |
    | thresholds | 0..1 | [] | thresholds of early exits that plans may use; the model's exit statistics must have them |
    | chains | | true | plans over two remote nodes too |
    | models | | [the scenario's] | models that plans may use |

    Version 1. No paper.
    """

    id = "random"

    def __init__(self, context: Context, codecs: Sequence[str] = ("raw",), input_codecs: Sequence[str] | None = None,
                 thresholds: Sequence[float] = (), chains: bool = True, models: Sequence[str] = ()) -> None:
        super().__init__(context)
        self._models = tuple(models) or (context.model,)
        self._plans = checked_candidates(context, codecs, input_codecs, thresholds, chains, self._models)
        self._random = Random(context.seed)

    def decide(self, observation: Observation) -> Plan:
        """One of the plans."""
        asked = required_accuracy(self.context, observation.min_accuracy)
        fit = [c for c in self._plans if not c.accuracy < asked] or [max(self._plans, key=lambda c: c.accuracy)]
        return self._random.choice(fit).plan

    def plans(self) -> tuple[Plan, ...]:
        """Those with codecs; outputs do not depend on the exits that are asked."""
        return lossy_plans(self._plans)

    def models(self) -> tuple[str, ...]:
        """Those of the option."""
        return tuple(dict.fromkeys((self.context.model, *self._models)))
