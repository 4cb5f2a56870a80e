"""The seam between what is known about a request and what is done with it: Observation -> Policy -> Plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from testbed.errors import InputError


@dataclass(frozen=True)
class ExitRule:
    """An early exit may answer when its confidence passes the threshold.

    `max_probability`: largest softmax probability >= threshold. `entropy`: softmax entropy divided by log(classes),
    between 0 and 1, <= threshold (the normalised entropy of DDNN, ICDCS 2017). `calibrated`: of the logits divided by the
    exit's temperature in the catalogue.
    """

    kind: str
    threshold: float
    calibrated: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a plan: `node` runs stages `start` (inclusive) to `stop` (exclusive) of `model`.

    `codec` says how this step's input travels to it when the step before ran on another node (or, for the first
    step, when it is not the device's own).
    """

    node: str
    model: str
    start: int
    stop: int
    codec: str = "raw"
    exit: ExitRule | None = None


@dataclass(frozen=True)
class Plan:
    """An ordered list of steps; `fallback` is run on the device when a remote step fails."""

    name: str
    steps: tuple[Step, ...]
    fallback: tuple[Step, ...] = ()
    retries: int = 0

    def wire(self) -> list[dict[str, Any]]:
        """The steps as JSON-ready mappings, the form that nodes understand."""
        return [asdict(step) for step in self.steps]

    def fallback_wire(self) -> list[dict[str, Any]]:
        """The fallback steps in the same form."""
        return [asdict(step) for step in self.fallback]

    @property
    def label(self) -> str:
        """`device1[0:2]>edge1[2:5]`: what the `plan` column shows."""
        return ">".join(f"{s.node}[{s.start}:{s.stop}]" for s in self.steps)

    @property
    def split_point(self) -> int | None:
        """First stage that runs on another node than the first; None when there is no cut."""
        first = self.steps[0]
        return next((s.start for s in self.steps[1:] if s.node != first.node and s.model == first.model), None)


@dataclass(frozen=True)
class ModelInfo:
    """What a policy may know of a model without loading it."""

    name: str
    stage_names: tuple[str, ...]
    exits: Mapping[str, int]  # exit name -> index of the stage after which it stands
    input_bytes: int
    output_bytes: tuple[int, ...]  # per stage, float32
    macs: tuple[int, ...] = ()

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.stage_names)

    def stage(self, which: int | str, *, key: str) -> int:
        """Index of a cut given by number (0..num_stages) or by stage name. Raises InputError."""
        if isinstance(which, int) and 0 <= which <= self.num_stages:
            return which
        if isinstance(which, str) and which in self.stage_names:
            return self.stage_names.index(which)
        raise InputError(f"model {self.name} has no such split point", key=key, value=which,
                         remedy=f"use 0 to {self.num_stages}, or a stage: {', '.join(self.stage_names)}")


@dataclass(frozen=True)
class Context:
    """What stays the same during a trial for one device."""

    device: str
    nodes: Mapping[str, str]  # tier -> the node of that tier that serves this device (the device's own tier: itself)
    tiers: tuple[str, ...]  # from the device side to the cloud side
    models: Mapping[str, ModelInfo]
    model: str
    deadline_s: float
    seed: int


@dataclass(frozen=True)
class Observation:
    """What is known when a request is decided. None means not measured (yet).

    | field | unit | meaning |
    |---|---|---|
    | t_ns | ns | CLOCK_MONOTONIC |
    | queue_depth | requests | waiting for this device's worker |
    | inflight | requests | of this device, issued and not finished |
    | uplink_bps | bit/s | payload rate of the last finished upload, per destination node |
    | uplink_age_s | s | age of that estimate, per destination node |
    | last_latency_s | s | of the last finished request |
    """

    t_ns: int
    request_id: str
    queue_depth: int = 0
    inflight: int = 0
    uplink_bps: Mapping[str, float] = field(default_factory=dict)
    uplink_age_s: Mapping[str, float] = field(default_factory=dict)
    last_latency_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a request; given to `Policy.observe`."""

    request_id: str
    plan: Plan
    status: str
    latency_s: float
    exit_id: str | None
    exit_confidence: float | None
    final_node: str | None


class Policy(ABC):
    """Decides a plan per request. One object lives for a trial on one device and is called from one thread.

    A user's own policy is a subclass in any file, named in the scenario as `policy: my_policy.py:MyPolicy`; its
    `options:` arrive as keyword arguments after the context.
    """

    id: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raised when the same input would give other plans

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def decide(self, observation: Observation) -> Plan:
        """The plan for this request. Must not block."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from a finished request; the default does nothing."""
        return None

    def scores(self) -> Mapping[str, float]:
        """What the last decision weighed, for the decision log; the default is empty."""
        return {}
