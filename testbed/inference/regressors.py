"""Predicting the time of a layer from its sizes: one regression per layer type, fitted to a sweep on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from testbed.errors import InputError
from testbed.measurement.atomic import write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from testbed.inference.staged import StagedModel

Form = Literal["linear", "logarithmic"]
Vector = NDArray[np.float64]

KINDS: dict[str, tuple[str, ...]] = {
    "convolution": ("macs", "weights", "inputs", "outputs"),
    "depthwise convolution": ("macs", "weights", "inputs", "outputs"),
    "linear": ("weights", "inputs", "outputs"),
    "pooling": ("inputs", "outputs"),
    "normalisation": ("inputs",),
    "activation": ("inputs",),
}
_HELD_OUT = 0.3  # share of the sweep that a regression is judged by
_FOLDS = 5
_MIN_SAMPLES = 10


@dataclass(frozen=True)
class Layer:
    """A layer in a model: its type and its features (numbers of elements, multiply-accumulates of one sample)."""

    kind: str
    features: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """A layer whose time was measured."""

    layer: Layer
    time_s: float


@dataclass(frozen=True)
class Regressor:
    """Time of layers of one type: `intercept + sum of weight * feature` (linear), or the exponential of
    `intercept + sum of weight * log(1 + feature)` (logarithmic); at least 0.

    `median_error` and `p90_error`: of |predicted - measured| / measured over `held_out` layers that it was not fitted to.
    """

    form: Form
    intercept: float
    weights: Mapping[str, float]
    samples: int = 0
    held_out: int = 0
    median_error: float = math.nan
    p90_error: float = math.nan

    def predict_s(self, features: Mapping[str, float]) -> float:
        """Predicted time of a layer with these features."""
        if self.form == "linear":
            return max(0.0, self.intercept + sum(w * features[name] for name, w in self.weights.items()))
        return math.exp(self.intercept + sum(w * math.log1p(features[name]) for name, w in self.weights.items()))


@dataclass(frozen=True)
class Regressors:
    """One regression per layer type, measured on one machine, and the stage times that they predict by model."""

    machine: str
    source: str
    layers: Mapping[str, Regressor]
    stages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # model -> seconds per stage
    schema_version: Literal[1] = 1

    def predict_s(self, layers: Sequence[Layer]) -> float:
        """Predicted time of layers that run one after the other. A type without a regression (reshaping) takes no time."""
        return sum(self.layers[layer.kind].predict_s(layer.features) for layer in layers if layer.kind in self.layers)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        data = asdict(self)
        data["layers"] = {kind: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in regressor.items()}
                          for kind, regressor in data["layers"].items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, data)


def load_regressors(path: str | Path) -> Regressors:
    """Read a file that `testbed profile --regressors` wrote. Raises InputError naming file, key and remedy."""
    path = Path(path)
    remedy = "make it with `testbed profile MODEL --regressors FILE.json`"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for regressor in data["layers"].values():
            for key in ("median_error", "p90_error"):
                regressor[key] = math.nan if regressor.get(key) is None else regressor[key]
        found = TypeAdapter(Regressors).validate_python(data)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, key="regression", remedy=remedy) from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(problem["msg"], file=path, key=".".join(map(str, problem["loc"])), value=problem.get("input"),
                         remedy=remedy) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError("is not a file of layer regressions", file=path, key="regression", remedy=remedy) from None
    for kind, regressor in found.layers.items():
        if kind not in KINDS or set(regressor.weights) != set(KINDS[kind]):
            raise InputError("is not a layer type with its features", file=path, key=f"layers.{kind}",
                             value=sorted(regressor.weights), remedy=remedy)
    return found


def fit(samples: Sequence[Sample], seed: int = 0) -> Regressor:
    """Fit both forms to layers of one type and keep the better one in a cross-validation of the part that is fitted to.

    The linear form is least squares of the relative error with weights >= 0, so that a prediction never falls as a layer
    grows; the logarithmic one is least squares of the logarithm. Its error is reported on layers held out from all of that.
    Raises ValueError for fewer than 10 samples, samples of several types, or times that are not positive.
    """
    kinds = {s.layer.kind for s in samples}
    if len(samples) < _MIN_SAMPLES or len(kinds) != 1 or not all(s.time_s > 0 for s in samples):
        raise ValueError(f"a regression needs {_MIN_SAMPLES} samples of one layer type with times above 0, got "
                         f"{len(samples)} of {sorted(kinds)}")
    names = KINDS[kinds.pop()]
    x = np.array([[s.layer.features[name] for name in names] for s in samples])  # (samples, features)
    t = np.array([s.time_s for s in samples])  # (samples,)
    order = np.random.default_rng(seed).permutation(len(t))
    held = order[:round(_HELD_OUT * len(t))]
    rest = order[len(held):]
    forms: tuple[Form, ...] = ("linear", "logarithmic")
    errors = {form: _cross_validated(form, names, x[rest], t[rest]) for form in forms}
    form = min(forms, key=lambda f: errors[f])
    judged = relative_errors(_fit(form, names, x[rest], t[rest]), names, x[held], t[held])
    best = _fit(form, names, x, t)
    return Regressor(form, best.intercept, best.weights, len(t), len(held), float(np.median(judged)),
                     float(np.quantile(judged, 0.9)))


def relative_errors(regressor: Regressor, names: Sequence[str], x: Vector, t: Vector) -> Vector:
    """|predicted - measured| / measured of layers with features x (samples, features) and times t (samples,)."""
    predicted = np.array([regressor.predict_s(dict(zip(names, row, strict=True))) for row in x])
    return np.abs(predicted - t) / t


def _cross_validated(form: Form, names: Sequence[str], x: Vector, t: Vector) -> float:
    found = []
    for fold in range(_FOLDS):
        out = np.arange(len(t)) % _FOLDS == fold
        found += list(relative_errors(_fit(form, names, x[~out], t[~out]), names, x[out], t[out]))
    return float(np.median(found))


def _fit(form: Form, names: Sequence[str], x: Vector, t: Vector) -> Regressor:
    from scipy.optimize import nnls

    ones = np.ones((len(t), 1))
    if form == "linear":
        rows = np.hstack([ones, x])
        scale = rows.max(0).clip(min=1.0)  # features differ by orders of magnitude
        solution = nnls(rows / scale / t[:, None], np.ones(len(t)))[0] / scale
    else:
        rows = np.hstack([ones, np.log1p(x)])
        ridge = np.sqrt(1e-3) * np.eye(rows.shape[1])  # features that grow together share their weight
        ridge[0, 0] = 0.0
        solution = np.linalg.lstsq(np.vstack([rows, ridge]), np.append(np.log(t), np.zeros(rows.shape[1])), rcond=None)[0]
    return Regressor(form, float(solution[0]), {n: float(w) for n, w in zip(names, solution[1:], strict=True)})


def layers_of(model: StagedModel) -> list[list[Layer]]:
    """The layers of every stage with their features, for one sample. Layers only: what a stage computes by functions of
    tensors (a residual addition) is not among them. Raises ValueError for a layer whose time is not predicted, such as an
    8-bit one.
    """
    import torch

    found: list[list[Layer]] = []
    hooks = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layer = describe_layer(module, args[0], output)
        if layer is not None:
            found[-1].append(layer)

    for module in model.modules():
        if not any(True for _ in module.children()):
            hooks.append(module.register_forward_hook(note))
    x = torch.zeros(1, *model.input_shape)
    try:
        with torch.inference_mode():
            for index in range(model.num_stages):
                found.append([])
                x = model.run(x, index, index + 1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def describe_layer(module: nn.Module, x: Tensor, y: Tensor) -> Layer | None:
    """A layer's type and features, from its input and output; None for one that only reshapes. Raises ValueError."""
    from torch import nn

    size = {"inputs": float(x[0].numel()), "outputs": float(y[0].numel())}
    if isinstance(module, nn.Conv2d):
        kernel = math.prod(module.kernel_size) * module.in_channels // module.groups
        kind = "convolution" if module.groups == 1 else "depthwise convolution"
        return Layer(kind, {**size, "macs": kernel * size["outputs"], "weights": float(kernel * module.out_channels)})
    if isinstance(module, nn.Linear):
        return Layer("linear", {**size, "weights": float(module.in_features * module.out_features)})
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return Layer("pooling", size)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        return Layer("normalisation", {"inputs": size["inputs"]})
    if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.Sigmoid | nn.Tanh | nn.GELU | nn.SiLU | nn.Hardswish
                  | nn.Softmax):
        return Layer("activation", {"inputs": size["inputs"]})
    if isinstance(module, nn.Flatten | nn.Identity | nn.Dropout | nn.Dropout2d):
        return None
    raise ValueError(f"the time of a layer {type(module).__name__} is not predicted")
