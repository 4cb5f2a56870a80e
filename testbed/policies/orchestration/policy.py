"""The policy `orchestrated`: every device reads the same joint decision from a trained policy and does its own part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs
from testbed.policies.knowledge import Context, Observation
from testbed.policies.orchestration.conditions import links
from testbed.policies.orchestration.response import TIERS
from testbed.policies.orchestration.saved import read
from testbed.policies.plan import Plan, Step


class Orchestrated(Policy):
    """Place and model from a joint decision for all devices, learned before.

    Decides: one step, a whole model on the device, the edge or in the cloud, the same for every request of a trial.
    Uses: the file `saved`, the constraint, and which links are weak. The condition is static and the same for all devices, so
    each computes the same joint action; device i takes part i. No message between devices is needed.

    | option | default | meaning |
    |---|---|---|
    | saved | | file of an orchestration study (`policies.json`), relative to the scenario |
    | constraint | | one of those it was trained for, for example `70%`, `min` or `max` |
    | weak | none | devices behind weak links, by name; `edge` for the uplink of the edge |
    | input_codec | raw | how the input travels |

    Version 1. Reference: Shahhosseini et al., arXiv 2202.10541 (ACM TECS 2022).
    """

    id: ClassVar[str] = "orchestrated"
    all_foreseen: ClassVar[bool] = True

    def __init__(self, context: Context, saved: str = "", constraint: str = "", weak: Sequence[str] = (),
                 input_codec: str = "raw") -> None:
        """Raises ValueError for options that contradict the scenario, InputError for what the file does not have."""
        super().__init__(context)
        if not saved or not constraint:
            raise ValueError("needs saved: (a file of an orchestration study) and constraint:")
        checked_codecs(input_codec)
        trained = read(Path(saved))
        number = re.search(r"\d+$", context.device)
        place = int(number[0]) - 1 if number else 0
        if not place < trained.devices:
            raise ValueError(f"{trained.name} was trained for {trained.devices} devices, {context.device} is not one of them")
        known = [f"device{i + 1}" for i in range(trained.devices)]
        strangers = [name for name in weak if name not in (*known, "edge")]
        if strangers:
            raise ValueError(f"weak: {strangers[0]!r} is not one of {', '.join((*known, 'edge'))}")
        missing = [name for name in trained.ladder if name not in context.models]
        if missing:
            raise ValueError(f"{trained.name} needs the model {missing[0]}, which the catalogue does not have")
        if len(context.tiers) != len(TIERS):
            raise ValueError("needs three tiers: devices, edge, cloud")
        condition = links([name in weak for name in known], "edge" in weak)
        self.joint = trained.action(constraint, condition)
        nodes = dict(zip(TIERS, (context.nodes[tier] for tier in context.tiers), strict=True))
        tier, _, model = self.joint[place].partition(":")
        step = Step(nodes[tier], model, 0, context.models[model].num_stages, input_codec)
        self._plan = Plan(self.joint[place], (step,))
        self._models = tuple(dict.fromkeys(part.partition(":")[2] for part in self.joint))

    def models(self) -> tuple[str, ...]:
        """Those of the joint decision, of all devices."""
        return self._models

    def plans(self) -> tuple[Plan, ...]:
        """Its part of the joint decision."""
        return (self._plan,)

    def decide(self, observation: Observation) -> Plan:
        """Its part of the joint decision."""
        return self._plan

    def scores(self) -> Mapping[str, float]:
        """The whole joint decision, one entry per device: the mean nominal accuracy that its model has."""
        return {f"{i + 1} {part}": self.context.models[part.partition(":")[2]].accuracy for i, part in enumerate(self.joint)}
