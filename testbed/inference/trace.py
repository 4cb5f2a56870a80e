"""Tracing an nn.Module into a graph: torch.fx, else torch.export; what each node gives, and what is live at each place."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn

from testbed.errors import InputError

BATCHES = (2, 3)  # two batch sizes tell a dimension that follows the batch from one that does not
WAY_OUT = ("give it fixed control flow, or let build() return a testbed.inference.staged.StagedModel of stages made by "
           "hand (docs/models.md)")
_QUERY_METHODS = {"size", "dim", "ndimension", "numel", "nelement"}
_QUERY_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "layout"}


class Kind(Enum):
    """What a node's value depends on."""

    DATA = "the samples"
    QUERY = "a tensor's shape or type"
    CONSTANT = "neither: parameters, and what is made of parameters and shapes"


@dataclass(frozen=True)
class Value:
    """What a node gave for each of the two batch sizes: (shape, dtype) of a tensor, or the plain value."""

    seen: tuple[Any, Any]
    is_tensor: bool

    @property
    def objection(self) -> str | None:
        """Why it cannot cross a cut; None when it can: float32 (N, ...)."""
        if not self.is_tensor:
            return "is not a tensor"
        (shape, dtype), (other, _) = self.seen
        if dtype is not torch.float32:
            return f"is {str(dtype).removeprefix('torch.')}, not float32"
        if (not shape or shape[0] != BATCHES[0] or other[0] != BATCHES[1]) or shape[1:] != other[1:]:
            return "has not one row per sample"
        return "is empty" if 0 in shape else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, for a tensor that can cross a cut."""
        shape: tuple[int, ...] = self.seen[0][0]
        return shape[1:]


class _Only(nn.Module):
    """The module with its first argument only: the others keep their defaults, and a single layer is a graph too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class Traced:
    """A module as a graph.

    `nodes` are the nodes that compute on samples, in the order of execution; the first is the input. Parameters, and
    what depends on shapes only, are not among them: whoever needs them makes them again.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        """Trace `module` for samples x (N, ...), N at least 3. Raises InputError naming what does not fit."""
        self.expected = [_call(module, x[:n]) for n in BATCHES]  # (N, classes) of the module itself
        self.graph = _trace(module, x[:BATCHES[0]])
        self.values = _values(self.graph, x)
        self.kinds = _kinds(self.graph.graph, self.values)
        self.nodes = [n for n in self.graph.graph.nodes if self.kinds.get(n) is Kind.DATA]
        self.names = _display_names(self.nodes)
        result = next(n for n in self.graph.graph.nodes if n.op == "output").args[0]
        if isinstance(result, tuple | list) and len(result) == 1:  # as torch.export gives it
            result = result[0]
        if not isinstance(result, fx.Node) or self.kinds[result] is not Kind.DATA or result is self.nodes[0]:
            raise InputError("does not compute its output from its input", key="model", remedy=WAY_OUT)
        self.result = result
        position = {node: i for i, node in enumerate(self.nodes)}
        self._last_use = {node: max((position[u] for u in node.users if u in position), default=position[node])
                          for node in self.nodes}
        self._last_use[result] = len(self.nodes)

    def live(self, after: int) -> list[fx.Node]:
        """Nodes among the first after + 1 whose value is used behind them: what a cut at this place has to carry."""
        return [n for n in self.nodes[:after + 1] if self._last_use[n] > after]

    def edges(self) -> list[tuple[int, int]]:
        """Edges of the graph as pairs of positions in `nodes`."""
        position = {node: i for i, node in enumerate(self.nodes)}
        return [(position[a], position[b]) for b in self.nodes for a in b.all_input_nodes if a in position]

    def part(self, inputs: list[fx.Node], body: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
        """A module of its own that computes `body`: takes the values of `inputs`, gives a tuple of those of `outputs`.

        The first input has one row per sample: the batch size is read from it.
        """
        graph = fx.Graph()
        made: dict[fx.Node, Any] = {n: graph.placeholder(n.name) for n in inputs}
        rows: list[fx.Node] = []

        def shape(at: tuple[Any, Any]) -> Any:
            if at[0] == at[1]:
                return at[0]
            if isinstance(at[0], tuple):
                return tuple(shape(pair) for pair in zip(*at, strict=True))
            if not rows:
                rows.append(graph.call_method("size", (made[inputs[0]], 0)))
            factor = at[0] // BATCHES[0]
            return rows[0] if factor == 1 else graph.call_function(operator.mul, (rows[0], factor))

        def get(node: fx.Node) -> Any:
            if node not in made:
                query = self.kinds[node] is Kind.QUERY
                made[node] = shape(self.values[node].seen) if query else graph.node_copy(node, get)
            return made[node]

        for node in body:
            made[node] = graph.node_copy(node, get)
        graph.output(tuple(made[n] for n in outputs))
        return fx.GraphModule(self.graph, graph)

    def changes_in_place(self, node: fx.Node) -> bool:
        """Whether the node may write into its input's memory."""
        target = node.target
        if node.op == "call_module":
            return bool(getattr(self.graph.get_submodule(str(target)), "inplace", False))
        schema = getattr(target, "_schema", None)
        name = str(target) if node.op == "call_method" else getattr(target, "__name__", "")
        return bool((schema is not None and schema.is_mutable) or (name.endswith("_") and not name.endswith("__"))
                    or node.kwargs.get("inplace") or node.kwargs.get("out") is not None or any(a is True for a in node.args[1:])
                    or (getattr(target, "__module__", "") == "_operator" and name in _IN_PLACE_OPERATORS))


_IN_PLACE_OPERATORS = {"setitem", *(f"i{name}" for name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"))}


def _call(module: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.inference_mode():
            y = module(x.clone())
    except Exception as error:
        raise InputError(f"fails on {len(x)} samples of {'x'.join(map(str, x.shape[1:]))}: {_brief(error)}", key="model",
                         remedy="it takes one float32 batch (N, channels, height, width), of any N") from error
    if not isinstance(y, Tensor):
        raise InputError(f"returns a {type(y).__name__}, not one tensor", key="model",
                         remedy="return the logits (N, classes) only")
    if y.dtype is not torch.float32 or y.ndim != 2 or len(y) != len(x):
        raise InputError(f"returns {str(y.dtype).removeprefix('torch.')} {list(y.shape)} for {len(x)} samples", key="model",
                         remedy="return float32 logits (N, classes)")
    return y


def _trace(module: nn.Module, x: Tensor) -> fx.GraphModule:
    wrapped = _Only(module)
    try:
        return fx.GraphModule(wrapped, fx.Tracer().trace(wrapped))
    except Exception as error:  # whatever the module's own code raises when it meets a proxy
        try:
            return _export(wrapped, x)
        except Exception as second:
            raise InputError(f"cannot be traced: torch.fx says: {_brief(error)}; torch.export says: {_brief(second)}",
                             key="model", remedy=WAY_OUT) from error


def _export(module: nn.Module, x: Tensor) -> fx.GraphModule:
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    exported = program.module()
    assert isinstance(exported, fx.GraphModule)
    for node in list(exported.graph.nodes):
        if node.op == "call_module" and str(node.target) == "_guards_fn":  # checks of the shapes, which are known here
            exported.graph.erase_node(node)
    exported.recompile()
    return exported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints and logs at length what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the shape and type, or the plain value, of what every node gave."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, tuple[bool, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        is_tensor = isinstance(value, Tensor)
        self.seen[n] = (is_tensor, (tuple(value.shape), value.dtype) if is_tensor else _plain(value))
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return value if isinstance(value, int | float | torch.dtype | torch.device | torch.layout) else type(value)


def _values(graph: fx.GraphModule, x: Tensor) -> dict[fx.Node, Value]:
    runs = []
    for n in BATCHES:
        recorder = _Recorder(graph)
        with torch.inference_mode():
            recorder.run(x[:n].clone())
        runs.append(recorder.seen)
    return {node: Value((value, runs[1][node][1]), is_tensor) for node, (is_tensor, value) in runs[0].items()}


def _kinds(graph: fx.Graph, values: dict[fx.Node, Value]) -> dict[fx.Node, Kind]:
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            kinds[node] = Kind.DATA
        elif not any(kinds[n] is Kind.DATA for n in node.all_input_nodes):
            kinds[node] = Kind.CONSTANT
        else:
            query = _is_query(node) and _follows_batch(values[node].seen)
            kinds[node] = Kind.QUERY if query else Kind.DATA
    return {n: kind for n, kind in kinds.items() if n.op != "output"}


def _is_query(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUERY_METHODS
    if node.target is getattr:
        return node.args[1] in _QUERY_ATTRIBUTES
    return node.op == "call_function" and str(node.target) in ("aten.sym_size.int", "aten.sym_numel.default")


def _follows_batch(seen: tuple[Any, Any]) -> bool:
    """Whether a queried value is constant, or a multiple of the batch size, or a tuple of such."""
    one, two = seen
    if one == two:
        return True
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(_follows_batch, zip(one, two, strict=True)))
    return isinstance(one, int) and one * BATCHES[1] == two * BATCHES[0] and one % BATCHES[0] == 0


def _display_names(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """Names of the module itself, without the wrapper's prefix; they differ."""
    names: dict[fx.Node, str] = {}
    for node in nodes:
        name = "input" if node.op == "placeholder" else node.name.removeprefix("module_")
        while name in names.values():
            name += "_"
        names[node] = name
    return names


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
