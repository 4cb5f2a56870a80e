"""Topology files: tiers of nodes and the links between them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from testbed.schema.units import Duration, Fraction, Rate, Size

NAME_PATTERN = r"^[a-z][a-z_]{0,7}$"
MAX_NODE_NAME = 10  # with "-eth0" this is the 15 characters that Linux allows an interface name
MAX_NODES = 250  # addresses of one emulated /16 are plenty; Linux interface names and this machine's patience are not


class Strict(BaseModel):
    """Base of all file models: an unknown key is an error, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Queue(Strict):
    """Drop-tail limit of a link's queue: exactly one of packets, bytes or time (at the link's mean rate)."""

    packets: int | None = Field(None, ge=2)
    bytes: Size | None = None
    time: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> Queue:
        if sum(v is not None for v in (self.packets, self.bytes, self.time)) != 1:
            raise ValueError("needs exactly one of packets, bytes, time|for example queue: {time: 200ms}")
        return self


def _queue(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lower()
        if text.endswith(("b",)):
            return {"bytes": value}
        if text.endswith(("packets", "packet", "p")):
            number = text.removesuffix("s").removesuffix("packet").removesuffix("p").strip()
            if not number.isdigit():
                raise ValueError("is not a queue limit|write 200ms, 64KB or 50packets")
            return {"packets": int(number)}
        return {"time": value}
    if isinstance(value, (int, float)):
        raise ValueError("has no unit|write 200ms, 64KB or 50packets")
    return value


def _traces(value: object) -> object:
    """One file, or several to be played one after the other."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("names no file|name one, or a list of files to be played one after the other")
    return value


def _traces_written(value: tuple[str, ...] | None) -> str | list[str] | None:
    return value if value is None else value[0] if len(value) == 1 else list(value)


_TRACE_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                 "description": "trace file, or several to be played one after the other"}


class Loss(Strict):
    """Packet loss: independent (`rate`), or Gilbert-Elliott with probabilities good->bad `p`, bad->good `r`."""

    rate: Fraction | None = None
    correlation: Fraction = 0.0
    p: Fraction | None = None
    r: Fraction | None = None
    loss_bad: Fraction = 1.0
    loss_good: Fraction = 0.0

    @model_validator(mode="after")
    def _one(self) -> Loss:
        if (self.rate is None) == (self.p is None):
            raise ValueError("needs either rate or p and r|write loss: 1% or loss: {p: 1%, r: 20%}")
        if (self.p is None) != (self.r is None):
            raise ValueError("needs p and r together|write loss: {p: 1%, r: 20%}")
        return self


class Direction(Strict):
    """One direction of a link. A rate is fixed or replayed from a trace; without either it is not shaped.

    `burst`: how much an idle link saves up of its fixed rate and lets through at once, IP bytes; one frame and 2 ms of the rate
    without it. It counts from the start of the load on.
    """

    rate: Rate | None = None
    burst: Size | None = None
    trace: Annotated[tuple[str, ...] | None, BeforeValidator(_traces), PlainSerializer(_traces_written),
                     WithJsonSchema(_TRACE_SCHEMA)] = None
    trace_column: str | None = None
    trace_offset: Duration = 0.0
    trace_scale: float = Field(1.0, gt=0)
    trace_clip: Rate | None = None
    at_end: Literal["loop", "stop"] = "loop"
    delay: Duration = 0.0
    jitter: Duration = 0.0
    jitter_distribution: Literal["normal", "uniform", "pareto"] = "normal"
    jitter_log: str | None = None
    loss: Annotated[Loss | None, BeforeValidator(
        lambda v: {"rate": v} if isinstance(v, (str, int, float)) else v)] = None
    reorder: Fraction = 0.0
    duplicate: Fraction = 0.0
    queue: Annotated[Queue | None, BeforeValidator(_queue)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Direction:
        if self.rate is not None and self.trace is not None:
            raise ValueError("has both rate and trace|keep one of them")
        if self.rate is not None and self.rate < 8000:
            raise ValueError("has a rate below 8kbit|a link that carries nothing is a fault event, not a rate")
        if self.burst is not None and (self.rate is None or self.burst < 2000):
            raise ValueError("has a burst without a fixed rate, or one below 2000B|a burst is saved up from rate:, and holds a "
                             "frame at least")
        if self.jitter > self.delay and self.jitter_distribution != "pareto":
            raise ValueError("has more jitter than delay|raise delay or lower jitter")
        if self.queue is not None and self.rate is None and self.trace is None:
            raise ValueError("has a queue limit but no rate or trace|a link that is not shaped has no queue")
        if self.reorder and not self.delay:
            raise ValueError("has reorder without delay|give the link a delay")
        return self


class Link(Strict):
    """A link between two tiers (or two named nodes); `up` goes from the first to the second."""

    between: tuple[str, str]
    up: Direction | None = None
    down: Direction | None = None
    both: Direction | None = None

    @model_validator(mode="after")
    def _directions(self) -> Link:
        if self.both is not None and (self.up is not None or self.down is not None):
            raise ValueError("has both: beside up: or down:|use either both: or up: and down:")
        if self.between[0] == self.between[1]:
            raise ValueError(f"joins {self.between[0]!r} to itself|name two different tiers or nodes")
        return self

    def direction(self, which: Literal["up", "down"]) -> Direction:
        """The effective parameters of one direction; absent means not shaped."""
        return self.both or (self.up if which == "up" else self.down) or Direction()


class Compute(Strict):
    """Speed of a node: this machine's (`real`), or a compute profile that holds the worker to its service times.

    `outputs: memoised` looks predictions up that were computed once and kept on disk; only the profile's time passes.
    """

    profile: str | None = None
    outputs: Literal["computed", "memoised"] = "computed"

    @model_validator(mode="after")
    def _timed(self) -> Compute:
        if self.outputs == "memoised" and self.profile is None:
            raise ValueError("outputs: memoised needs a profile: looking up says nothing about how long computing takes|"
                             "write for example compute: {profile: raspberry-pi-4, outputs: memoised}")
        return self


class Residency(Strict):
    """Models that a node of the tier keeps in memory; without it all of them are, from the start.

    `budget`: weights that may be in memory at a time (size of their files); the model that was not used for longest goes.
    `load_rate`, `load_floor`: loading a cold model takes its weights over this rate and the floor; without a rate, what
    reading and building it takes on this machine. `keep_alive`: a model that was not used for this long is unloaded.
    `resident`: models that are in memory when the load begins.
    """

    budget: Size | None = None
    load_rate: Rate | None = None
    load_floor: Duration = 0.0
    keep_alive: Duration | None = None
    resident: list[str] = []

    @model_validator(mode="after")
    def _floor(self) -> Residency:
        if self.load_floor and self.load_rate is None:
            raise ValueError("load_floor: goes with load_rate:|write for example load_rate: 400mbit")
        return self


def _compute(value: object) -> object:
    if value == "real":
        return {}
    if isinstance(value, dict) and value.get("profile") == "real":
        return {**value, "profile": None}
    return {"profile": value} if isinstance(value, str) else value


class Tier(Strict):
    """A tier of equal nodes, named `<tier>1`, `<tier>2`, ..."""

    name: str = Field(pattern=NAME_PATTERN)
    count: int = Field(1, ge=1, le=MAX_NODES)
    compute: Annotated[Compute, BeforeValidator(_compute)] = Compute()
    runtime: Literal["container", "process"] = "container"
    image: str = "host"
    cpus: float | None = Field(None, gt=0)
    memory: Size | None = None
    residency: Residency | None = None

    @model_validator(mode="after")
    def _loading(self) -> Tier:
        if self.residency is not None and self.residency.load_rate is None and self.compute.outputs == "memoised":
            raise ValueError("residency.load_rate: is missing: with outputs: memoised no weights are read|"
                             "write for example residency: {load_rate: 400mbit}")
        return self

    @property
    def nodes(self) -> list[str]:
        """Names of this tier's nodes."""
        return [f"{self.name}{i + 1}" for i in range(self.count)]


class Tcp(Strict):
    """TCP of all hosts.

    `congestion`: congestion control, as the kernel calls it; this machine's default when absent. A kernel lets a private
    namespace choose `reno` and what the machine lists in net.ipv4.tcp_allowed_congestion_control.
    `slow_start_after_idle`: a connection that was idle for a retransmission time-out starts again from a window of ten
    segments (RFC 5681, section 4.1). Off: it goes on with the window that it had.
    """

    congestion: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{1,14}$")
    slow_start_after_idle: bool = True


class Topology(Strict):
    """Tiers, ordered from the device side to the cloud side, and the links between them."""

    description: str = ""
    tiers: list[Tier] = Field(min_length=1)
    links: list[Link] = []
    switch: Literal["bridge", "ovs"] = "bridge"
    delay_backend: Literal["auto", "netem", "tap"] = "auto"
    tcp: Tcp = Tcp()

    @model_validator(mode="after")
    def _reachable(self) -> Topology:
        names = [t.name for t in self.tiers]
        doubles = {n for n in names if names.count(n) > 1}
        if doubles:
            raise ValueError(f"tiers: two tiers are called {sorted(doubles)[0]!r}|give every tier its own name")
        if sum(t.count for t in self.tiers) > MAX_NODES:
            raise ValueError(f"tiers: more than {MAX_NODES} nodes in all|lower a count")
        for node in self.node_names:
            if len(node) > MAX_NODE_NAME:
                raise ValueError(f"tiers: node name {node!r} is longer than {MAX_NODE_NAME} characters|"
                                 "give the tier a shorter name")
        known = set(names) | set(self.node_names)
        for i, link in enumerate(self.links):
            for end in link.between:
                if end not in known:
                    raise ValueError(f"links[{i}].between: names {end!r}, which is neither a tier nor a node|"
                                     f"use one of {', '.join(names)} or a node such as {self.node_names[0]}")
        pairs = [(a, b) for _, a, b in self.node_links()]
        if len({frozenset(p) for p in pairs}) != len(pairs):
            raise ValueError("links: two links join the same pair of nodes|remove one of them")
        touched = {n for pair in pairs for n in pair} if len(self.node_names) > 1 else set(self.node_names)
        reached = self._component(pairs) if touched.issuperset(self.node_names) else touched
        for tier in self.tiers:
            lost = [n for n in tier.nodes if n not in reached]
            if lost:
                raise ValueError(f"tiers: no link reaches tier {tier.name!r} (node {lost[0]})|"
                                 f"add links: - between: [{tier.name}, OTHER_TIER]")
        if self.switch == "bridge" and len(pairs) >= len(self.node_names):
            raise ValueError("switch: bridge cannot be used with a topology that has loops|write switch: ovs")
        return self

    @property
    def node_names(self) -> list[str]:
        """All nodes, tier by tier."""
        return [n for t in self.tiers for n in t.nodes]

    def tier_of(self, node: str) -> Tier:
        """The tier that a node belongs to. Raises KeyError."""
        for tier in self.tiers:
            if node in tier.nodes:
                return tier
        raise KeyError(node)

    def node_links(self) -> list[tuple[Link, str, str]]:
        """Links between nodes: tier pairs are expanded, node i of the larger tier joining node i mod n of the other."""
        expanded: list[tuple[Link, str, str]] = []
        tiers = {t.name: t for t in self.tiers}
        for link in self.links:
            a = tiers[link.between[0]].nodes if link.between[0] in tiers else [link.between[0]]
            b = tiers[link.between[1]].nodes if link.between[1] in tiers else [link.between[1]]
            size = max(len(a), len(b))
            expanded += [(link, a[i % len(a)], b[i % len(b)]) for i in range(size)]
        return expanded

    def path(self, src: str, dst: str) -> list[str]:
        """Nodes on the (fewest-links) path from src to dst, both included; [] when there is none."""
        neighbours: dict[str, list[str]] = {n: [] for n in self.node_names}
        for _, a, b in self.node_links():
            neighbours[a].append(b)
            neighbours[b].append(a)
        frontier, seen = [[src]], {src}
        while frontier:
            route = frontier.pop(0)
            if route[-1] == dst:
                return route
            for nxt in neighbours[route[-1]]:
                if nxt not in seen:
                    seen.add(nxt)
                    frontier.append([*route, nxt])
        return []

    def path_links(self, src: str, dst: str) -> list[str]:
        """Names of the links that a packet from src to dst crosses, in order."""
        named = {frozenset((a, b)): f"{a}-{b}" for _, a, b in self.node_links()}
        return [named[frozenset(pair)] for pair in pairwise(self.path(src, dst))]

    def serving_node(self, device: str, tier: str) -> str:
        """The node of `tier` that serves `device`: itself, or the nearest by links (ties: lowest number)."""
        own = self.tier_of(device)
        if own.name == tier:
            return device
        nodes = next(t for t in self.tiers if t.name == tier).nodes
        return min(nodes, key=lambda n: (len(self.path(device, n)) or 10**6, nodes.index(n)))

    def _component(self, pairs: list[tuple[str, str]]) -> set[str]:
        reached, grew = {self.node_names[0]}, True
        while grew:
            grew = False
            for a, b in pairs:
                if (a in reached) != (b in reached):
                    reached |= {a, b}
                    grew = True
        return reached


def topology_json_schema() -> dict[str, Any]:
    """JSON Schema of topology files, for editors."""
    return Topology.model_json_schema()
