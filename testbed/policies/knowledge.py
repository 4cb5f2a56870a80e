"""What a policy may know: of models and nodes before the load, of links and queues at a decision, of finished work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from testbed.errors import InputError
from testbed.policies.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class ExitPoint:
    """What happens on the calibration split when each sample leaves at the first exit whose largest softmax probability
    reaches `threshold`: share of samples by exit, accuracy of those that leave there, and accuracy over all."""

    threshold: float
    share: Mapping[str, float]
    exit_accuracy: Mapping[str, float]
    accuracy: float


@dataclass(frozen=True)
class ModelInfo:
    """What a policy may know of a model without loading it."""

    name: str
    stage_names: tuple[str, ...]
    exits: Mapping[str, int]  # exit name -> index of the stage after which it stands
    input_bytes: int
    output_bytes: tuple[int, ...]  # per stage, float32
    macs: tuple[int, ...] = ()
    exit_accuracy: Mapping[str, float] = field(default_factory=dict)  # exit name -> accuracy when all leave there
    exit_curve: tuple[ExitPoint, ...] = ()  # by rising threshold; empty where it was not measured
    wire_bytes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # codec -> mean payload per cut 0..num_stages
    weight_bytes: int = 0  # of the file from which a cold model is loaded
    edges: tuple[tuple[int, int], ...] = ()  # data dependencies between stages (-1: the input); empty: a chain
    vertex_bytes: tuple[int, ...] = ()  # with `edges`: output of each stage by itself, float32

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.stage_names)

    @property
    def final_exit(self) -> str:
        """Name of the exit after the last stage."""
        return max(self.exits, key=lambda name: self.exits[name])

    @property
    def accuracy(self) -> float:
        """Accuracy of the whole model; NaN where the catalogue does not say."""
        return self.exit_accuracy.get(self.final_exit, float("nan"))

    def bytes_at(self, cut: int, codec: str = "raw") -> int:
        """Mean payload of the tensor at a cut (0: the input) in a codec. Where the codec was not measured: without what is
        compressed on top (`int8` for `int8+lz4`), else float32."""
        for known in (codec, codec.partition("+")[0]):
            if known in self.wire_bytes:
                return self.wire_bytes[known][cut]
        return self.input_bytes if cut == 0 else self.output_bytes[cut - 1]

    def stage(self, which: int | str, *, key: str) -> int:
        """Index of a cut given by number (0..num_stages) or by stage name. Raises InputError."""
        if isinstance(which, int) and 0 <= which <= self.num_stages:
            return which
        if isinstance(which, str) and which in self.stage_names:
            return self.stage_names.index(which)
        raise InputError(f"model {self.name} has no such split point", key=key, value=which,
                         remedy=f"use 0 to {self.num_stages}, or a stage: {', '.join(self.stage_names)}")


@dataclass(frozen=True)
class NodeInfo:
    """What is known of a node before the load: its tier and how long it takes for each stage of each model.

    Times come from the node's compute profile; of a node that runs at this machine's speed, from the catalogue's
    reference measurement.
    """

    name: str
    tier: str
    stage_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # model -> seconds per stage
    head_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # model -> exit -> seconds of its head
    load_s: Mapping[str, float] = field(default_factory=dict)  # model -> seconds to load it when it is cold
    memory_budget_bytes: int | None = None  # for weights; None: every model stays resident

    def service_s(self, model: str, start: int, stop: int, exits: tuple[str, ...] = ()) -> float:
        """Predicted time of stages start..stop-1 of a model with the heads of `exits`, for one sample."""
        heads = self.head_s.get(model, {})
        return sum(self.stage_s[model][start:stop]) + sum(heads.get(name, 0.0) for name in exits)


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
    compute: Mapping[str, NodeInfo] = field(default_factory=dict)  # node -> what is known of it; only those of `nodes`
    min_accuracy: float = 0.0  # that a request asks for

    @property
    def remote_nodes(self) -> tuple[str, ...]:
        """The nodes that serve this device, without itself, from the device side to the cloud side."""
        return tuple(self.nodes[tier] for tier in self.tiers if self.nodes[tier] != self.device)


@dataclass(frozen=True)
class NodeState:
    """What a node last said of itself (an answer or a probe brings it along); of the device, as it is."""

    queue_depth: int = 0  # requests that wait for its worker
    inflight: int = 0  # requests that wait or are computed
    resident: tuple[str, ...] | None = None  # models in memory; None: all of them, always
    age_s: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What is known when a request is decided. None, or a missing node, means not measured (yet).

    | field | unit | meaning |
    |---|---|---|
    | t_ns | ns | CLOCK_MONOTONIC |
    | queue_depth | requests | waiting for this device's worker |
    | inflight | requests | of this device, issued and not finished |
    | uplink_bps | bit/s | payload rate of the last finished upload, per destination node |
    | uplink_age_s | s | age of that estimate, per destination node |
    | last_latency_s | s | of the last finished request |
    | deadline_s | s | time that this request is allowed, from its scheduled instant |
    | elapsed_s | s | time since its scheduled instant, spent waiting on the device |
    | min_accuracy | 0..1 | accuracy that this request asks for |
    | nodes | | node -> what is known of its state; the device among them |
    """

    t_ns: int
    request_id: str
    queue_depth: int = 0
    inflight: int = 0
    uplink_bps: Mapping[str, float] = field(default_factory=dict)
    uplink_age_s: Mapping[str, float] = field(default_factory=dict)
    last_latency_s: float | None = None
    deadline_s: float | None = None
    elapsed_s: float = 0.0
    min_accuracy: float = 0.0
    nodes: Mapping[str, NodeState] = field(default_factory=dict)

    def budget_s(self, context: Context) -> float:
        """Time left for this request: its deadline, or the context's, less what has passed; may be negative."""
        return (context.deadline_s if self.deadline_s is None else self.deadline_s) - self.elapsed_s


@dataclass(frozen=True)
class Transfer:
    """A finished transfer of one request between two nodes. `duration_s`: first byte handed over to last byte read."""

    src_node: str
    dst_node: str
    payload_bytes: int
    duration_s: float


@dataclass(frozen=True)
class Computation:
    """A finished computation of one request: stages start..stop-1 of `model` on `node`.

    `load_s` is what loading a cold model took before it (0: it was resident).
    """

    node: str
    model: str
    start: int
    stop: int
    queue_s: float
    duration_s: float
    load_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a request; given to `Policy.observe`.

    `used_fallback`: the device answered because the plan failed (`error_type` says how). `used_backup`: the backup was
    started, and `backup_won` whether its answer was the one that counted.
    """

    request_id: str
    plan: Plan
    status: str
    latency_s: float
    exit_id: str | None
    exit_confidence: float | None
    final_node: str | None
    t_ns: int = 0  # CLOCK_MONOTONIC, when the answer was there
    deadline_met: bool = False
    error_type: str | None = None
    used_fallback: bool = False
    used_backup: bool = False
    backup_won: bool = False
    transfers: tuple[Transfer, ...] = ()
    computations: tuple[Computation, ...] = ()


@dataclass(frozen=True)
class ProbeSpec:
    """Active probes that a policy asks for: every `period_s` each remote node gets an empty echo, then one of `size_bytes`."""

    period_s: float = 10.0
    size_bytes: int = 100_000
    timeout_s: float = 5.0


@dataclass(frozen=True)
class Probe:
    """A finished probe of a node; given to `Policy.observe_probe`. Times exclude what the node itself needed.

    `rtt_s`: of the empty echo; None when it failed. `size_bytes` were sent up and nothing but an acknowledgement came
    back: `duration_s`, from the first byte handed over until that; None when it failed.
    """

    node: str
    t_ns: int
    rtt_s: float | None
    size_bytes: int
    duration_s: float | None
    state: NodeState = NodeState()


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def from_json(kind: type[T], data: Any) -> T:
    """A Context, Observation, Outcome, Probe or Plan from the JSON form of `to_json`. Raises pydantic.ValidationError."""
    anything: Any = kind
    found: T = _adapter(anything).validate_python(data)
    return found


def to_json(value: Any) -> Any:
    """A value of this file, or a plan, as JSON-ready mappings and lists."""
    kind: Any = type(value)
    return _adapter(kind).dump_python(value, mode="json")
