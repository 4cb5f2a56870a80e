"""Cutting any traced module at any node: every cut with its live tensors, and the stages between the cuts."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from testbed.errors import InputError
from testbed.inference.staged import StagedModel, count_macs
from testbed.inference.trace import Traced

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Cut:
    """A place between two nodes. `live`: name and shape for one sample of every tensor made before it and used after it."""

    index: int
    after: str
    live: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size_bytes(self) -> int:
        """float32 bytes of the live tensors of one sample."""
        return sum(4 * math.prod(shape) for _, shape in self.live)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, for one sample, of the one tensor that crosses: the live tensor's, or the length of all, packed."""
        return self.live[0][1] if len(self.live) == 1 else (self.size_bytes // 4,)


@dataclass(frozen=True)
class Uncut:
    """A place that is no cut, because of a live value that cannot be sent."""

    after: str
    why: str


class _Stage(nn.Module):
    """The nodes between two cuts, from the packed tensor of one to the packed tensor of the other."""

    def __init__(self, part: fx.GraphModule, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.part, self._shapes = part, shapes
        self._sizes = [math.prod(shape) for shape in shapes]

    def unpack(self, x: Tensor) -> tuple[Tensor, ...]:
        """The live tensors, each (N, *shape), of a packed tensor (N, total); one alone is not packed."""
        if len(self._shapes) == 1:
            return (x,)
        parts = torch.split_with_sizes(x, self._sizes, 1)
        return tuple(t.reshape(len(x), *shape).contiguous() for t, shape in zip(parts, self._shapes, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return pack(self.part(*self.unpack(x)))


def pack(tensors: tuple[Tensor, ...]) -> Tensor:
    """One tensor as it is; several flattened per sample and joined: (N, total)."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.reshape(len(t), -1) for t in tensors], 1)


class GraphModel(StagedModel):
    """Any module that can be traced, as stages of one node each; stage i lies between cut i and cut i + 1.

    What crosses a cut is one float32 tensor. Where one tensor is live it is that tensor; where several are (a residual
    edge beside the main path), they are flattened per sample and joined in the order in which they were made. Within
    one call of `run` nothing is packed. A place where a live value is not a float32 tensor with one row per sample is
    no cut: the nodes around it are one stage, and `uncut` says why. There are no exits but the final one.
    """

    def __init__(self, module: nn.Module, x: Tensor, *, check: bool = True) -> None:
        """Trace `module`, in evaluation mode, for samples x (N, ...), N at least 3.

        check: run head and tail of every cut and compare with the whole. Raises InputError, without a file, for a module
        that cannot be traced, does not fit the samples, or is not the same when it is cut.
        """
        module.eval().requires_grad_(False)
        traced = Traced(module, x)
        places, uncut = _places(traced)
        live = [[traced.nodes[0]], *(traced.live(p) for p in places[1:])]
        stages, writes = [], []
        for i, (begin, end) in enumerate(pairwise(places)):
            body = traced.nodes[begin + 1:end + 1]
            part = traced.part(live[i], body, live[i + 1])
            stages.append((traced.names[body[0]], _Stage(part, tuple(traced.values[n].shape for n in live[i]))))
            writes.append(any(map(traced.changes_in_place, body)))
        super().__init__(stages, {}, tuple(x.shape[1:]))
        self.eval()
        self.traced = traced
        self.places = places
        self.cuts = tuple(Cut(i, traced.names[traced.nodes[place]],
                              tuple((traced.names[n], traced.values[n].shape) for n in live[i]))
                          for i, place in enumerate(places))
        self.uncut = uncut
        self.parts = tuple(stage for _, stage in stages)
        self._writes = writes
        if check:
            self._check(x)

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Stages start..stop-1 of x (N, ...), the tensor at cut `start`; gives the tensor at cut `stop`."""
        if not 0 <= start <= stop <= self.num_stages:
            raise ValueError(f"stages {start}:{stop} are not within 0:{self.num_stages}")
        if start == stop:
            return x
        values = self.parts[start].unpack(x.clone() if any(self._writes[start:stop]) else x)
        for stage in self.parts[start:stop]:
            values = stage.part(*values)
        return pack(values)

    def dependencies(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Which stage reads what another made, as pairs (from, to) with -1 for the input; and, per stage, the float32 bytes of
        one sample that other stages read, or that are the result."""
        stage_of: dict[int, int] = {}  # position of a node -> its stage
        for index, (begin, end) in enumerate(pairwise(self.places)):
            stage_of |= {position: index for position in range(begin + 1, end + 1)}
        stage_of[0] = -1
        edges, read = set(), {self.traced.nodes.index(self.traced.result)}
        for a, b in self.traced.edges():
            if stage_of[a] != stage_of[b]:
                edges.add((stage_of[a], stage_of[b]))
                read.add(a)
        sizes = [0] * self.num_stages
        for position in read - {0}:
            sizes[stage_of[position]] += 4 * math.prod(self.traced.values[self.traced.nodes[position]].shape)
        return sorted(edges), sizes

    def macs(self) -> list[int]:
        """Multiply-accumulates of every stage for one sample."""
        found, values = [], (torch.zeros(1, *self.input_shape),)
        for stage in self.parts:
            found.append(count_macs(stage.part, *values))
            with torch.inference_mode():
                values = stage.part(*values)
        return found

    def _check(self, x: Tensor) -> None:
        n = len(self.traced.expected[0])
        whole = self.traced.expected[0]
        scale = max(1.0, float(whole.abs().max()))
        with torch.inference_mode():
            for cut in self.cuts:
                parts = self.run(self.run(x[:n], 0, cut.index), cut.index, self.num_stages)
                if not torch.allclose(parts, whole, rtol=_TOLERANCE, atol=_TOLERANCE * scale):
                    raise InputError(
                        f"gives other logits when it is cut after {cut.after} (by up to "
                        f"{float((parts - whole).abs().max()):.2g})", key="model",
                        remedy="look for an in-place operation on a tensor that is also used elsewhere, or for random "
                        "numbers in forward()")


def _places(traced: Traced) -> tuple[list[int], tuple[Uncut, ...]]:
    """Positions of the nodes behind which the graph can be cut, the input's first, and the places that are no cuts."""
    last = len(traced.nodes) - 1
    places, uncut = [0], []
    for place in range(1, last):
        objections = [f"{traced.names[n]} {why}" for n in traced.live(place) if (why := traced.values[n].objection)]
        if objections:
            uncut.append(Uncut(traced.names[traced.nodes[place]], "; ".join(objections)))
        else:
            places.append(place)
    return [*places, last], tuple(uncut)


def stage_cuts(model: GraphModel) -> dict[int, int]:
    """Which cuts of a traced StagedModel are those between its own stages: cut of the graph -> cut of the stages."""
    stages = [_stage_of(node) for node in model.traced.nodes]
    found = {}
    for cut, place in zip(model.cuts, model.places, strict=True):
        here, behind = stages[place], stages[place + 1] if place + 1 < len(stages) else None
        if here is not None and here != behind:
            found[cut.index] = here + 1
    return found


def _stage_of(node: fx.Node) -> int | None:
    """The stage of a StagedModel in whose forward() a node was made."""
    for path in node.meta.get("nn_module_stack", {}):
        parts = str(path).split(".")
        if parts[:2] == ["module", "stages"] and len(parts) > 2:
            return int(parts[2])
    return None


def stage_times_s(model: GraphModel, repeats: int = 30, warmup: int = 5) -> list[float]:
    """Median time of every stage for one sample, within runs of the whole model: nothing is packed."""
    return _measure(model, repeats, warmup)[0]


def cut_times_s(model: GraphModel, repeats: int = 30, warmup: int = 5) -> list[tuple[float, float]]:
    """Time before and after every cut for one sample: the medians of the stages, of packing and of unpacking, added."""
    stages, packs, unpacks = _measure(model, repeats, warmup)
    return [(sum(stages[:cut]) + packs[cut], unpacks[cut] + sum(stages[cut:])) for cut in range(model.num_stages + 1)]


def _measure(model: GraphModel, repeats: int, warmup: int) -> tuple[list[float], list[float], list[float]]:
    """Medians of each stage, and of packing and unpacking at each cut.

    Short intervals within whole runs: another program that takes the processor for a while spoils few of them.
    """
    x = torch.rand(1, *model.input_shape, generator=torch.Generator().manual_seed(0))
    stages: list[list[float]] = [[] for _ in range(model.num_stages)]
    packs: list[list[float]] = [[] for _ in range(model.num_stages + 1)]
    unpacks: list[list[float]] = [[] for _ in range(model.num_stages)]
    with torch.inference_mode():
        for _ in range(warmup + repeats):
            values: tuple[Tensor, ...] = (x.clone(),)
            for i, stage in enumerate(model.parts):
                begin = time.perf_counter()
                packed = pack(values)
                between = time.perf_counter()
                stage.unpack(packed)
                packs[i].append(between - begin)
                unpacks[i].append(time.perf_counter() - between)
                begin = time.perf_counter()
                values = stage.part(*values)
                stages[i].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            pack(values)
            packs[-1].append(time.perf_counter() - begin)

    def medians(times: list[list[float]]) -> list[float]:
        return [statistics.median(t[warmup:]) for t in times]

    return medians(stages), medians(packs), [*medians(unpacks), 0.0]
