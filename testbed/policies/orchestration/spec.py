"""Keys of an orchestration study: ladder, conditions, constraints, platform, learners."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue
from testbed.policies.orchestration.conditions import PRESETS, Condition, all_links, preset
from testbed.policies.orchestration.models import MOBILENET_V1, Variant, accuracies, from_catalogue
from testbed.policies.orchestration.oracle import Constraint, Problem
from testbed.policies.orchestration.response import Actions, Contention, Fitted, Platform, ResponseSource, read_samples
from testbed.schema.study import Study
from testbed.schema.topology import Strict
from testbed.schema.units import Duration, Fraction, Rate, Size

ALL_LINKS = "all-links"


def _constraint(value: object) -> str:
    try:
        return Constraint.parse(value if isinstance(value, float) else str(value)).name
    except InputError as error:
        raise ValueError(f"{error.problem}|{error.remedy}") from None


def _condition(value: object) -> object:
    if value not in (*PRESETS, ALL_LINKS):
        raise ValueError(f"is no set of conditions|use one of {', '.join((*PRESETS, ALL_LINKS))}")
    return value


@lru_cache(maxsize=4)
def _fitted(probes: tuple[str, ...], weak_probes: tuple[str, ...], ladder: tuple[Variant, ...], actions: Actions) -> Fitted:
    samples = [read_samples(Path(name), weak) for names, weak in ((probes, False), (weak_probes, True)) for name in names]
    return Fitted.fit(pd.concat(samples, ignore_index=True), ladder, actions)


Devices = Annotated[int, Field(ge=1, le=5)]
Demand = Annotated[str, BeforeValidator(_constraint)]
ConditionName = Annotated[str, BeforeValidator(_condition)]


class PlatformSpec(Strict):
    """`Platform` as people write it; see there."""

    mmacs_per_s: float = Field(1300.0, gt=0)
    int8_speedup: float = Field(1.5, gt=0)
    cores: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 2.0, 4.0)
    overhead: Duration
    request: Size
    access_rate: Rate
    uplink_rate: Rate
    access_delay: Duration
    uplink_delay: Duration
    weak_delay: Duration

    @property
    def platform(self) -> Platform:
        """The same for the contention model."""
        return Platform(self.mmacs_per_s, self.int8_speedup, self.cores, self.overhead, self.request, self.access_rate,
                        self.uplink_rate, self.access_delay, self.uplink_delay, self.weak_delay)


class QLearning(Strict):
    """Q-learning for these numbers of devices; `visits`: epochs per entry of the table that may be tried."""

    devices: list[Devices] = Field([1, 2, 3], min_length=1)
    visits: int = Field(5, ge=2, le=1000)
    learning_rate: float = Field(0.9, gt=0, le=1)
    discount: float = Field(0.1, ge=0, lt=1)
    safe_factor: Annotated[float, Field(ge=1)] | None = 1.0


class Dqn(Strict):
    """One DQN over all conditions per number of devices and constraint."""

    devices: list[Devices] = Field([5], min_length=1)
    constraints: list[Demand] = Field(["89%"], min_length=1)
    steps: int = Field(20_000, ge=100)
    chunks: int = Field(10, ge=1)
    width: int = Field(128, ge=8)


class Margin(Strict):
    """The learned policy against placement only, learned from noisy response times, `repeats:` times.

    `noise`: coefficient of variation of one epoch's response times. `visits`: as for Q-learning.
    """

    devices: Devices = 5
    constraint: Demand = "89%"
    noise: Fraction = 0.1
    visits: int = Field(20, ge=2, le=1000)


class OrchestrationStudy(Study):
    """Mean response time of joint decisions over accuracy constraints, numbers of devices, and conditions of the links.

    The ladder is `models:` of a `catalogue:`, most accurate first, or `ladder:`, or MobileNetV1 on ImageNet.
    """

    version: ClassVar[int] = 1

    study: Literal["orchestration"]
    catalogue: str | None = None
    models: list[str] = Field([])
    ladder: list[Variant] = Field([])
    accuracy: Literal["top1", "top5"] = "top5"
    actions: Literal["faithful", "product"] = "faithful"
    devices: list[Devices] = Field([1, 2, 3, 4, 5], min_length=1)
    conditions: list[ConditionName] = Field(list(PRESETS), min_length=1)
    constraints: list[Demand] = Field(["min", "80%", "85%", "89%", "max"], min_length=1)
    platform: PlatformSpec | None = None
    probes: list[str] = Field([])  # requests.csv of emulated trials with fixed plans, in place of a platform
    weak_probes: list[str] = Field([])  # the same with all links weak
    penalty: Annotated[Duration, Field(gt=0)] = "10s"  # type: ignore[assignment]
    qlearning: QLearning | None = None
    dqn: Dqn | None = None
    margin: Margin | None = None
    save: Devices | None = None  # number of devices whose learned policies are written as policies.json

    @model_validator(mode="after")
    def _consistent(self) -> OrchestrationStudy:
        if bool(self.catalogue) != bool(self.models):
            raise ValueError("models: and catalogue: go together|name the models of the catalogue, the most accurate first")
        if bool(self.platform) == bool(self.probes):
            raise ValueError("platform: and probes: are two sources of response times|give one of them")
        if self.weak_probes and not self.probes:
            raise ValueError("weak_probes: go with probes:|add probes: of trials with regular links")
        if self.models and self.ladder:
            raise ValueError("ladder: does not go with models:|remove one of the two")
        if self.save is not None and (self.qlearning is None or self.save not in self.qlearning.devices):
            raise ValueError(f"save: {self.save} devices have no Q-learning|add the number to qlearning.devices")
        if len({m.name for m in self.ladder}) != len(self.ladder):
            raise ValueError("ladder: two models have the same name|rename one")
        return self

    def variants(self) -> tuple[Variant, ...]:
        """The ladder. Raises InputError."""
        if self.catalogue is not None:
            return from_catalogue(Path(self.catalogue), self.models)
        return tuple(self.ladder) or MOBILENET_V1

    def problem(self, devices: int, constraint: str, noise: float = 0.0) -> Problem:
        """The constrained problem for a number of devices. Raises InputError."""
        ladder = self.variants()
        accuracy = accuracies(ladder, self.accuracy)
        if accuracy[0] != max(accuracy):
            raise InputError("is not the most accurate model, which must come first", key="models", value=ladder[0].name,
                             remedy="order the ladder by accuracy; the first runs at the edge and in the cloud")
        make = Actions.faithful if self.actions == "faithful" else Actions.product
        actions = make(len(ladder))
        source: ResponseSource
        if self.platform is not None:
            source = Contention(self.platform.platform, ladder, actions, noise)
        else:
            source = replace(_fitted(tuple(self.probes), tuple(self.weak_probes), ladder, actions), noise=noise)
        return Problem(devices, ladder, actions, accuracy, source, Constraint.parse(constraint), self.penalty)

    def states(self, devices: int) -> dict[str, Condition]:
        """Conditions by name; those that all-links adds are named by their key."""
        found = {name: preset(name, devices) for name in self.conditions if name != ALL_LINKS}
        if ALL_LINKS in self.conditions:
            found |= {c.key: c for c in all_links(devices) if c not in found.values()}
        return found

    def files(self) -> tuple[Path, ...]:
        """The probes."""
        return tuple(Path(name) for name in (*self.probes, *self.weak_probes))

    def content(self) -> dict[str, str]:
        """Weights of the catalogue's models. Raises InputError for what cannot be run."""
        weak = any(node.weak for c in self.states(max(self.devices)).values() for node in c.nodes)
        if self.probes and weak and not self.weak_probes:
            raise InputError("has conditions with weak links, which no probe has seen", key="weak_probes",
                             remedy="add trials with weak links, or keep to EXP-A")
        problem = self.problem(max(self.devices), self.constraints[0])
        for devices in (max(self.devices), *([self.margin.devices] if self.margin else ())):
            _ = self.problem(devices, self.constraints[0]).joint  # refuses too many joint actions
        for condition in self.states(max(self.devices)).values():
            problem.check_penalty(condition)
        if self.catalogue is None:
            return {}
        catalogue = load_catalogue(Path(self.catalogue))
        return {f"model:{name}": catalogue[name].sha256 for name in self.models}
