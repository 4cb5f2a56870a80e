"""Cutting a traced module: head + wire + tail is the whole, live sets and costs against independent oracles."""

from __future__ import annotations

import math
import time
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.errors import InputError
from testbed.inference.graph import Cut, GraphModel, cut_times_s, stage_times_s
from testbed.inference.staged import count_macs

SHAPE = (3, 8, 8)


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Dropout(), nn.Flatten(), nn.Linear(64, 5))


class Residual(nn.Module):
    """Two skip connections, one around the other; ReLU and addition in place, as many published models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.relu(self.norm(self.one(x)))
        outer = self.two(inner)
        outer += inner
        x = self.relu(outer + x)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Inception-like: three branches of one tensor, joined by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        self.head = nn.Linear(9 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = F.avg_pool2d(self.c(x), 3, 1, 1)
        return self.head(torch.cat([a, F.relu(b), c], 1).flatten(1))


class Functional(nn.Module):
    """Parameters used by functions, shapes asked for early, constants made in forward, a tensor split into two."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3) * 0.2)
        self.weight = nn.Parameter(torch.randn(5, 16) * 0.2)
        self.register_buffer("scale", torch.rand(1, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        gray = x.sum(1, keepdim=True) / channels
        y = F.conv2d(gray, self.kernel, stride=2, padding=1).view(n, 4, height * width // 4)
        y = y * torch.sigmoid(self.scale)
        left, right = y.chunk(2, 2)
        gram = torch.bmm(left, right.transpose(1, 2))
        return F.linear(gram.reshape(x.size(0), -1), self.weight) + x.flatten(1).mean(1, keepdim=True)


class ShapeDependent(nn.Module):
    """A branch on a shape: torch.fx cannot follow it, torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        y = self.conv(x)
        return self.head((y + torch.ones(x.shape[0], 4, 1, 1) * F.relu(y)).mean((2, 3)))


MODULES = {m.__name__: m for m in (Chain, Residual, Branches, Functional, ShapeDependent)}


@cache
def make(name: str) -> tuple[nn.Module, GraphModel, Tensor]:
    torch.manual_seed(3)
    module = MODULES[name]()
    for layer in module.modules():  # statistics that are not those of an identity
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    x = torch.rand(5, *SHAPE)
    return module, GraphModel(module, x), x


@pytest.fixture(params=MODULES)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, GraphModel, Tensor]:
    return make(request.param)


@pytest.mark.parametrize("batch", [1, 4])
def test_head_wire_and_tail_are_the_whole_at_every_cut(made: tuple[nn.Module, GraphModel, Tensor], batch: int) -> None:
    module, model, x = made
    with torch.inference_mode():
        whole = module(x[:batch].clone())
        for cut in model.cuts:
            given = x[:batch].clone()
            tensor = model.run(given, 0, cut.index)
            assert torch.equal(given, x[:batch]), "the input is as it was: a fallback may need it again"
            assert tensor.dtype is torch.float32 and tuple(tensor.shape[1:]) == cut.shape
            assert tensor[:1].numel() * 4 == cut.size_bytes
            wire = torch.from_numpy(tensor.numpy().copy())
            assert torch.allclose(model.run(wire, cut.index, model.num_stages), whole, atol=1e-5, rtol=1e-5), cut
        stage_by_stage = x[:batch]
        for i in range(model.num_stages):
            stage_by_stage = model.run(stage_by_stage, i, i + 1)
        assert torch.allclose(stage_by_stage, whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(x[:batch]), whole), "uncut, it is the same sequence of operations"


def test_live_sets_are_those_of_a_brute_force_over_the_edges(made: tuple[nn.Module, GraphModel, Tensor]) -> None:
    """A tensor is live at a place if removing it would leave a later node without an input: an edge spans the place."""
    _, model, _ = made
    traced = model.traced
    last = len(traced.nodes) - 1
    edges = [*traced.edges(), (traced.nodes.index(traced.result), last + 1)]
    for cut, place in zip(model.cuts, model.places, strict=True):
        spanning = {a for a in range(last + 1) for b in range(last + 2) if (a, b) in edges and a <= place < b}
        assert [name for name, _ in cut.live] == [traced.names[traced.nodes[i]] for i in sorted(spanning)], cut


def test_every_edge_is_cut_somewhere_or_it_is_said_why_not(made: tuple[nn.Module, GraphModel, Tensor]) -> None:
    _, model, _ = made
    refused = {u.after for u in model.uncut}
    for a, b in model.traced.edges():
        crossed = [p for p in model.places if a <= p < b]
        between = {model.traced.names[n] for n in model.traced.nodes[a:b]}
        assert crossed or between <= refused, (a, b)
    if refused:
        assert all("is not a tensor" in u.why for u in model.uncut)
    else:
        assert len(model.cuts) == len(model.traced.nodes), "one cut behind every node, and one before the first"


def test_only_the_place_between_a_split_and_its_parts_is_no_cut() -> None:
    uncut = {name: [u.after for u in make(name)[1].uncut] for name in MODULES}
    assert len(uncut.pop("Functional")) == 2 and not any(uncut.values()), uncut


def test_packed_sizes_of_a_residual_block() -> None:
    _, model, _ = make("Residual")
    cuts = {c.after: c for c in model.cuts}
    one = 6 * 8 * 8
    assert cuts["input"].shape == SHAPE and cuts["stem"].shape == (6, 8, 8)
    assert cuts["one"].shape == (2 * one,) and cuts["one"].size_bytes == 2 * one * 4  # the main path and the skip
    assert [n for n, _ in cuts["two"].live] == ["stem", "relu", "two"] and cuts["two"].size_bytes == 3 * one * 4
    assert cuts["mean"].shape == (6,) and cuts["head"].shape == (5,)


def test_macs_of_every_cut_of_known_layers() -> None:
    """Closed forms: outputs x inputs per group x kernel; in x out; n x m x k of a matrix product."""
    conv = 4 * 8 * 8 * 3 * 9
    _, chain, _ = make("Chain")
    x = torch.zeros(1, *SHAPE)
    assert chain.macs() == [conv, 0, 0, 0, 0, 0, 64 * 5]
    functional = dict(zip(make("Functional")[1].stage_names, make("Functional")[1].macs(), strict=True))
    assert functional["conv2d"] == 4 * 4 * 4 * 1 * 9 and functional["bmm"] == 4 * 4 * 8 and functional["linear"] == 16 * 5
    assert sum(functional.values()) == 4 * 4 * 4 * 9 + 4 * 4 * 8 + 16 * 5
    grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
    assert count_macs(grouped, torch.zeros(1, 8, 5, 5)) == 12 * 5 * 5 * (8 // 4) * 9
    assert count_macs(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), x) == 192 * 7
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = 5  # q, k, v and output projections; scores and weighted sum of both heads; two linear layers
    assert count_macs(attention, torch.zeros(1, tokens, 8)) == 4 * tokens * 64 + 2 * 2 * tokens * tokens * 4 + 2 * tokens * 8 * 16


def test_measured_times_are_of_the_right_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only one layer moves on, that layer is behind the cuts before it and before those behind it."""
    now_s = 0.0

    class Slow(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal now_s
            now_s += 1.0
            return super().forward(x)

    Slow.__module__ = "torch.nn"  # a leaf of the graph, as a layer of torch is
    model = GraphModel(nn.Sequential(nn.Conv2d(3, 4, 3), Slow(), nn.Flatten(), nn.Linear(144, 5)), torch.rand(3, *SHAPE))
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    assert stage_times_s(model, 3, 1) == [0, 1, 0, 0]
    assert cut_times_s(model, 3, 1) == [(0, 1)] * 2 + [(1, 0)] * 3


class Data(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] if x.sum() > 0 else -x.flatten(1)[:, :5]


class Forward(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, factor: float = 1.0) -> object:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize(("module", "says"), [
    (Data(), "cannot be traced"),
    (nn.Linear(7, 5), "fails on 2 samples of 3x8x8"),
    (nn.Conv2d(3, 3, 3), "returns float32"),
    (Forward(lambda x: {"logits": x}), "returns a dict"),
    (Forward(lambda x: (x > 0).flatten(1)), "returns bool"),
    (Forward(lambda x: x.view(2, -1)), "for 3 samples"),
    (Forward(lambda x: torch.ones(x.shape[0], 5)), "does not compute its output from its input"),
    (Forward(lambda x: F.dropout(x.flatten(1))), "other logits"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_cut_is_refused_with_the_way_out(module: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        GraphModel(module, torch.rand(3, *SHAPE))
    assert caught.value.remedy and caught.value.key == "model" and "\n" not in str(caught.value)


def test_a_cut_that_loses_shared_memory_is_refused() -> None:
    """The tail's in-place change of a tensor does not reach a view of it that was packed beside it."""
    with pytest.raises(InputError, match="other logits when it is cut after"):
        GraphModel(Forward(_aliased), torch.rand(3, *SHAPE) - 0.5)


def _aliased(x: Tensor) -> Tensor:
    y = x * 2
    view = y.flatten(1)
    y.relu_()
    return view[:, :5] + y.mean((1, 2, 3), keepdim=False)[:, None]


def test_optional_arguments_keep_their_defaults_and_bytes_are_of_the_shape() -> None:
    model = GraphModel(Forward(lambda x: x.flatten(1)[:, :5] * 2), torch.rand(3, *SHAPE))
    assert model.cuts[-1] == Cut(model.num_stages, model.cuts[-1].after, ((model.cuts[-1].after, (5,)),))
    assert model.cuts[0].size_bytes == 4 * math.prod(SHAPE)


def test_dependencies_explain_the_bytes_of_every_cut(made: tuple[nn.Module, GraphModel, Tensor]) -> None:
    _, model, _ = made
    edges, sizes = model.dependencies()
    assert all(-1 <= a < b < model.num_stages for a, b in edges) and {b for _, b in edges} == set(range(model.num_stages))
    readers = {v: [b for a, b in edges if a == v] for v in range(-1, model.num_stages)}
    assert [v for v in range(model.num_stages) if not readers[v]] == [model.num_stages - 1]  # the result is read by nobody
    if model.uncut:
        return  # a stage of several nodes may make several tensors with different readers
    for cut in model.cuts[:-1]:
        live = [v for v in range(-1, cut.index) if any(b >= cut.index for b in readers[v])]
        assert cut.size_bytes == sum(4 * math.prod(model.input_shape) if v == -1 else sizes[v] for v in live)


def test_dependencies_of_a_residual_block() -> None:
    model = GraphModel(Residual(), torch.rand(3, *SHAPE))
    edges, sizes = model.dependencies()
    names = ["input", *model.stage_names]
    named = {(names[a + 1], names[b + 1]) for a, b in edges}
    assert {("stem", "one"), ("stem", "add_1"), ("relu", "two"), ("relu", "add"), ("two", "add")} <= named, named
    assert sizes == [4 * 6 * 64] * (len(sizes) - 2) + [4 * 6, 4 * 5]
