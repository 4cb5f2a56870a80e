"""Scenario files: which topology, model, policies, load, repeats, seeds and sweep make one experiment."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from testbed.schema.topology import Strict, Topology
from testbed.schema.units import Duration, Fraction, Rate, Size

POLICY_NAME = r"^[a-z0-9][a-z0-9_.-]{0,39}$"


class ExitRule(Strict):
    """When an early exit may answer: confidence of the exit head against a threshold.

    `calibrated`: the confidence is that of the logits divided by the exit's temperature in the catalogue.
    """

    kind: Literal["max_probability", "entropy"] = "max_probability"
    threshold: float = Field(ge=0)
    calibrated: bool = False


class StepSpec(Strict):
    """One step of a plan as people write it: which tier runs which stages, and how its input travels."""

    tier: str
    model: str | None = None
    stages: str | None = Field(None, pattern=r"^\d*:\d*$", examples=["0:3"])
    codec: str = "raw"
    exit: ExitRule | None = None


class PlanSpec(Strict):
    """A fixed plan: one of the named kinds, or explicit steps."""

    name: str = Field(pattern=POLICY_NAME)
    plan: Literal["device-only", "edge-only", "cloud-only", "split", "early-exit", "steps"]
    model: str | None = None
    at: int | str | None = None
    exit: str | None = None
    threshold: float | None = Field(None, ge=0)
    rule: Literal["max_probability", "entropy"] = "max_probability"
    calibrated: bool = False
    head: str | None = None
    tail: str | None = None
    codec: str = "raw"
    input_codec: str = "raw"
    steps: list[StepSpec] = []
    fallback: Literal["none", "device"] = "none"
    retries: int = Field(0, ge=0, le=10)

    @model_validator(mode="after")
    def _needs(self) -> PlanSpec:
        if self.plan == "split" and self.at is None:
            raise ValueError("at: is missing|name the stage before which the model is cut, for example at: 2")
        if self.plan == "early-exit" and self.threshold is None:
            raise ValueError("threshold: is missing|a probability, for example threshold: 0.8")
        if (self.plan == "steps") != bool(self.steps):
            raise ValueError("steps: go with plan: steps, and only with it|write plan: steps and list the steps")
        if self.plan != "early-exit" and self.threshold is not None:
            raise ValueError("threshold: belongs to plan: early-exit|remove it, or change the plan")
        if self.plan != "early-exit" and self.calibrated:
            raise ValueError("calibrated: belongs to plan: early-exit|remove it, or change the plan")
        if self.plan != "split" and self.at is not None:
            raise ValueError("at: belongs to plan: split|remove it, or change the plan")
        return self


class PolicySpec(Strict):
    """A policy that decides per request: a built-in by name, or a user's `file.py:Class`."""

    name: str = Field(pattern=POLICY_NAME)
    policy: str = Field(pattern=r"^[A-Za-z0-9_./-]+(\.py:[A-Za-z_]\w*)?$")
    options: dict[str, Any] = {}
    fallback: Literal["none", "device"] = "none"
    retries: int = Field(0, ge=0, le=10)


SHORT_PLANS = ("device-only", "edge-only", "cloud-only")


def _policy(value: object) -> object:
    """`device-only` is short for `{name: device-only, plan: device-only}`."""
    if isinstance(value, str):
        if value not in SHORT_PLANS:
            raise ValueError(f"is not a plan that needs no options|use one of {', '.join(SHORT_PLANS)}, or a mapping "
                             "such as {name: split, plan: split, at: 2}")
        return PlanSpec.model_validate({"name": value, "plan": value})
    if isinstance(value, dict):
        if ("plan" in value) == ("policy" in value):
            raise ValueError("needs exactly one of plan: and policy:|write {name: split, plan: split, at: 2} or "
                             "{name: mine, policy: my_policy.py:Mine}")
        kind = PlanSpec if "plan" in value else PolicySpec
        return kind.model_validate({"name": value.get("plan"), **value} if kind is PlanSpec else value)
    return value


def _sweep(value: object) -> object:
    """A mapping `{key: [values]}` is crossed; a list `[{key: value, ...}, ...]` is taken point by point."""
    if isinstance(value, dict):
        for key, values in value.items():
            if not isinstance(values, list):
                raise ValueError(f"{key} has no list of values|write for example sweep: {{{key}: [{values}]}}, or a list of "
                                 "points: sweep: [{...}, {...}]")
    elif isinstance(value, list):
        for i, point in enumerate(value):
            if not isinstance(point, dict) or not point:
                raise ValueError(f"point {i + 1} is not a mapping of keys to values|write for example "
                                 "sweep: [{load.rate_per_s: 1, seed: 2}]")
        if not value:
            raise ValueError("lists no points|list at least one, or remove sweep:")
    else:
        raise ValueError("is neither a mapping of keys to lists nor a list of points|write sweep: {load.rate_per_s: [1, 2]}")
    return value


Pixels = Annotated[int, Field(ge=1, le=4096)]


def _square(value: object) -> object:
    """`32` is short for `[32, 32]`: height and width."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class Queue(Strict):
    """How requests wait on a device before the policy decides them.

    `workers`: requests of a device that may be under way at a time; without it none waits. `order`: which one is next,
    the first that came, or the one with the earliest deadline (scheduled instant plus its own deadline).
    """

    order: Literal["fifo", "edf"] = "fifo"
    workers: int | None = Field(None, ge=1, le=10_000)

    @model_validator(mode="after")
    def _waits(self) -> Queue:
        if self.order == "edf" and self.workers is None:
            raise ValueError("workers: is missing: without a limit no request waits, and there is no order|"
                             "write for example queue: {order: edf, workers: 2}")
        return self


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("is not a range above zero|write the shorter duration first, for example [250ms, 1s]")
    return value


DurationRange = Annotated[tuple[Duration, Duration], AfterValidator(_ordered)]


class Pivot(Strict):
    """Another range of deadlines for the requests [from, to) of each device, counted from 0 without the warm-up."""

    requests: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    uniform: DurationRange

    @model_validator(mode="after")
    def _range(self) -> Pivot:
        if self.requests[0] >= self.requests[1]:
            raise ValueError("requests: is not a range|write from and to, for example requests: [200, 400]")
        return self


class Deadlines(Strict):
    """A deadline of its own for every request, drawn uniformly from a range; `pivot` changes the range for a while."""

    uniform: DurationRange
    pivot: list[Pivot] = []

    @model_validator(mode="after")
    def _apart(self) -> Deadlines:
        ranges = sorted(p.requests for p in self.pivot)
        for before, after in pairwise(ranges):
            if after[0] < before[1]:
                raise ValueError(f"pivot: requests {list(before)} and {list(after)} overlap|end one before the next begins")
        return self


class Load(Strict):
    """What arrives: per device, an open loop with scheduled instants, or a closed loop.

    `deadlines` gives every request its own; `deadline` stays what policies know as the usual one. `min_accuracy` is what
    requests ask of the model that answers.
    """

    requests_per_device: int = Field(60, ge=1, le=1_000_000)
    warmup_requests: int = Field(5, ge=0, le=10_000)
    arrivals: Literal["poisson", "periodic", "closed"] = "poisson"
    rate_per_s: float = Field(2.0, gt=0, le=10_000)
    deadline: Duration = "500ms"  # type: ignore[assignment]
    timeout: Duration = "10s"  # type: ignore[assignment]
    deadlines: Deadlines | None = None
    min_accuracy: Fraction = 0.0
    queue: Queue = Queue()

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Load:
        if self.arrivals == "closed" and self.queue.workers is not None:
            raise ValueError("queue: with arrivals: closed one request at a time is under way, none waits|"
                             "remove queue:, or use arrivals: poisson")
        return self


class Event(Strict):
    """A fault or change at a time after the start of the load."""

    at: Duration
    kind: Literal["link_down", "link_up", "handover", "node_crash", "node_restart", "node_pause", "node_resume",
                  "partition", "heal", "rate"]
    link: str | None = None
    node: str | None = None
    tier: str | None = None
    direction: Literal["up", "down", "both"] = "both"
    duration: Duration | None = None
    rate: Rate | None = None

    @model_validator(mode="after")
    def _target(self) -> Event:
        wants = ("link" if self.kind in ("link_down", "link_up", "handover", "rate")
                 else "tier" if self.kind in ("partition", "heal") else "node")
        if getattr(self, wants) is None:
            raise ValueError(f"kind {self.kind} needs {wants}:|name the {wants} it happens to")
        if self.kind == "rate" and self.rate is None:
            raise ValueError("kind rate needs rate:|write for example rate: 1mbit")
        if self.kind == "handover" and self.duration is None:
            raise ValueError("kind handover needs duration:|write for example duration: 80ms")
        return self


class Calibration(Strict):
    """How links and nodes are measured idle before the load, and what a miss does."""

    mode: Literal["stop", "mark", "off"] = "mark"
    iperf_time: Duration = "1s"  # type: ignore[assignment]
    pings: int = Field(10, ge=1, le=1000)
    rate_tolerance: Fraction = 0.05
    rtt_tolerance: Duration = "3ms"  # type: ignore[assignment]


class ValidityLimit(Strict):
    """Another limit for one validity check, or another consequence of missing it."""

    limit: float | None = Field(None, ge=0)
    on_fail: Literal["fail", "warn", "off"] = "fail"


class Oracle(Strict):
    """Plans that the best plan in hindsight is chosen from; see docs/regret.md.

    `codecs`, `thresholds` (of early exits) and `models`: what plans may use; absent, the codecs that the scenario's policies
    name, no early exits, and the scenario's model. `input_codecs`: of the input, where not all `codecs` are meant for it.
    `chains`: also plans over two remote nodes. `min_accuracy`: what a plan must reach; absent, the load's, or else the
    accuracy of the scenario's whole model.
    """

    codecs: list[str] | None = None
    input_codecs: list[str] | None = None
    thresholds: list[Annotated[float, Field(ge=0)]] = []
    models: list[str] | None = None
    chains: bool = True
    min_accuracy: Fraction | None = None


class Price(Strict):
    """What computing on a tier costs: invocations x time x memory, as serverless platforms bill it.

    A computation costs `per_invocation` + (loading + computing time) x `memory` x `per_gb_s`; 1 GB is 10^9 bytes.
    """

    per_invocation: float = Field(0.0, ge=0)
    per_gb_s: float = Field(0.0, ge=0)
    memory: Size = Field(ge=1)


class Prices(Strict):
    """Prices of the tiers that are paid for; the others are free."""

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    tiers: dict[str, Price] = Field(min_length=1)


class Scenario(Strict):
    """One experiment. Its trials are policies x sweep points x repeats, each in a network of its own."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,59}$")
    description: str = ""
    topology: Topology
    model: str
    dataset: str
    image_size: Annotated[tuple[Pixels, Pixels] | None, BeforeValidator(_square)] = None
    catalogue: str | None = None
    policies: list[Annotated[PlanSpec | PolicySpec, BeforeValidator(_policy)]] = Field(min_length=1)
    load: Load = Load()
    devices: str | None = None
    events: list[Event] = []
    repeats: int = Field(1, ge=1, le=1000)
    seed: int = Field(1, ge=0)
    trace_offset: Literal["same", "random"] = "same"
    sweep: Annotated[dict[str, list[Any]] | list[dict[str, Any]], BeforeValidator(_sweep)] = {}
    replay_step: Duration = "10ms"  # type: ignore[assignment]
    calibration: Calibration = Calibration()
    validity: dict[str, float | ValidityLimit] = {}
    oracle: Oracle | None = None
    prices: Prices | None = None

    @property
    def device_tier(self) -> str:
        """The tier whose nodes issue requests: `devices:`, or the first tier."""
        return self.devices or self.topology.tiers[0].name

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        names = [p.name for p in self.policies]
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise ValueError(f"policies: two policies are called {doubles[0]!r}|give each its own name:")
        tiers = [t.name for t in self.topology.tiers]
        if self.devices is not None and self.devices not in tiers:
            raise ValueError(f"devices: {self.devices!r} is not a tier of the topology|use one of {', '.join(tiers)}")
        for tier in self.prices.tiers if self.prices is not None else ():
            if tier not in tiers:
                raise ValueError(f"prices.tiers: there is no tier {tier!r}|use one of {', '.join(tiers)}")
        links = {f"{a}-{b}" for _, a, b in self.topology.node_links()}
        for i, event in enumerate(self.events):
            for key, known in (("link", links), ("node", set(self.topology.node_names)), ("tier", set(tiers))):
                name = getattr(event, key)
                if name is not None and name not in known:
                    raise ValueError(f"events[{i}].{key}: there is no {key} {name!r}|use one of "
                                     f"{', '.join(sorted(known))}")
        for i, policy in enumerate(self.policies):
            if isinstance(policy, PlanSpec):
                used = [s.tier for s in policy.steps] + [t for t in (policy.head, policy.tail) if t]
                used += {"edge-only": ["edge"], "cloud-only": ["cloud"]}.get(policy.plan, [])
                for tier in used:
                    if tier not in tiers:
                        raise ValueError(f"policies[{i}]: plan {policy.plan} needs a tier {tier!r}, which the topology "
                                         f"does not have|its tiers are {', '.join(tiers)}")
        return self
