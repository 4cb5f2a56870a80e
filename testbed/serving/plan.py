"""Plans as they travel: an ordered list of steps, parsed strictly from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from testbed.inference.codecs import CODECS, is_codec_name
from testbed.inference.exits import ExitRule

MAX_STEPS = 16
NO_EXIT = ExitRule()
_KEYS = {"node", "model", "start", "stop", "codec", "exit"}


class PlanError(ValueError):
    """A plan that cannot be: wrong keys or types, or steps that do not fit each other."""


@dataclass(frozen=True)
class Step:
    """One step: `node` runs stages start..stop-1 of `model`; its input travels in `codec`; `rule` may end the plan."""

    node: str
    model: str
    start: int
    stop: int
    codec: str = "raw"
    rule: ExitRule = NO_EXIT

    def to_json(self) -> dict[str, Any]:
        """The JSON that `parse_steps` reads."""
        return {"node": self.node, "model": self.model, "start": self.start, "stop": self.stop, "codec": self.codec,
                "exit": self.rule.to_json()}

    @property
    def stages(self) -> str:
        """`2:5`, as in the `hops` table."""
        return f"{self.start}:{self.stop}"


def parse_steps(value: object) -> list[Step]:
    """Steps from JSON. A step goes on where the one before it stopped, or begins anew (start 0) with the request's input.

    Raises PlanError.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_STEPS:
        raise PlanError(f"a plan is a list of 1 to {MAX_STEPS} steps")
    steps = [_step(item, f"plan[{i}]") for i, item in enumerate(value)]
    for i, (before, step) in enumerate(pairwise(steps), start=1):
        goes_on = step.model == before.model and step.start == before.stop
        # beginning anew needs the request's input where the step before it ran, because that node sends it on
        if not goes_on and not (step.start == 0 and before.start == 0):
            raise PlanError(f"plan[{i}] begins at stage {step.start} of {step.model}, but plan[{i - 1}] stops at stage "
                            f"{before.stop} of {before.model}")
    return steps


def _step(item: object, where: str) -> Step:
    if not isinstance(item, Mapping) or not {"node", "model", "start", "stop"} <= set(item) <= _KEYS:
        raise PlanError(f"{where} is an object of node, model, start, stop and, if wanted, codec, exit")
    for key in ("node", "model"):
        if not isinstance(item[key], str) or not 0 < len(item[key]) <= 200:
            raise PlanError(f"{where}.{key} is a name")
    for key in ("start", "stop"):
        if type(item[key]) is not int or not 0 <= item[key] <= 10_000:
            raise PlanError(f"{where}.{key} is a stage number")
    if item["start"] >= item["stop"]:
        raise PlanError(f"{where}: start {item['start']} is not before stop {item['stop']}")
    codec = item.get("codec", "raw")
    if not is_codec_name(codec):
        raise PlanError(f"{where}.codec is one of {CODECS.choices}; or bottleneck:MODEL@CUT")
    try:
        rule = ExitRule.parse(item.get("exit"))
    except ValueError as error:
        raise PlanError(f"{where}.exit: {error}") from None
    return Step(item["node"], item["model"], item["start"], item["stop"], codec, rule)
