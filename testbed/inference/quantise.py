"""Post-training static quantisation of a staged model by torch: int8 weights per channel, uint8 activations, per stage.

Each stage takes and gives float32: it quantises its input, computes in integers, and dequantises its output, so that a
model can be cut between stages as before. Method: Jacob et al., 2018 (arXiv:1712.05877), as torch implements it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from testbed.inference.staged import StagedModel


def quantise(model: StagedModel, samples: Tensor) -> StagedModel:
    """The int8 form of a trained model without early exits, its ranges observed on samples (N, *input_shape).

    Raises ValueError when the model has early exits, or layers that torch cannot quantise.
    """
    if len(model.heads):
        raise ValueError("only models without early exits are quantised")
    from torch.ao import quantization

    torch.backends.quantized.engine = _engine()
    stages = []
    for name, stage in zip(model.stage_names, model.stages, strict=True):
        body = copy.deepcopy(stage).eval()
        _fuse(body)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation: torch's successor is a package of its own
            wrapped: nn.Module = quantization.QuantWrapper(body)
            wrapped.qconfig = quantization.get_default_qconfig(_engine())  # type: ignore[no-untyped-call]
            quantization.prepare(wrapped, inplace=True)  # type: ignore[no-untyped-call]
        stages.append((name, wrapped))
    observed = StagedModel(stages, {}, model.input_shape).eval()
    with torch.inference_mode():
        for batch in torch.split(samples, 64):
            observed(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stage in observed.stages:
            quantization.convert(stage, inplace=True)  # type: ignore[no-untyped-call]
    return observed


def export_state(model: StagedModel) -> dict[str, Tensor]:
    """Plain tensors of a quantised model, as `import_state` reads them."""
    state: dict[str, Tensor] = {}
    for name, module in _quantised(model):
        state[f"{name}.scale"] = torch.as_tensor(module.scale, dtype=torch.float64).reshape(1)
        state[f"{name}.zero_point"] = torch.as_tensor(module.zero_point, dtype=torch.int64).reshape(1)
        if hasattr(module, "set_weight_bias"):
            weight = module.weight()
            state[f"{name}.weight"] = weight.int_repr()
            state[f"{name}.weight_scale"] = weight.q_per_channel_scales()
            state[f"{name}.weight_zero_point"] = weight.q_per_channel_zero_points()
            state[f"{name}.bias"] = module.bias().detach()
    return state


def import_state(model: StagedModel, state: Mapping[str, Tensor]) -> None:
    """Give a quantised model of the same structure the tensors that `export_state` wrote. Raises KeyError, RuntimeError."""
    names = set()
    for name, module in _quantised(model):
        scale, zero_point = state[f"{name}.scale"], state[f"{name}.zero_point"]
        names |= {f"{name}.scale", f"{name}.zero_point"}
        if hasattr(module, "set_weight_bias"):
            parts = [f"{name}.{p}" for p in ("weight", "weight_scale", "weight_zero_point", "bias")]
            names |= set(parts)
            weight, weight_scale, weight_zero_point, bias = (state[p] for p in parts)
            if weight.shape != module.weight().shape:
                raise RuntimeError(f"{name}.weight has shape {tuple(weight.shape)}, not {tuple(module.weight().shape)}")
            module.set_weight_bias(torch._make_per_channel_quantized_tensor(
                weight, weight_scale, weight_zero_point, 0), bias)
            module.scale, module.zero_point = float(scale), int(zero_point)
        else:
            module.scale = scale.to(torch.float32)
            module.zero_point = zero_point
    if names != set(state):
        raise RuntimeError(f"unexpected tensors {sorted(set(state) - names)[:3]}")


def _quantised(model: StagedModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "scale") and hasattr(module, "zero_point"):
            yield name, module


def _engine() -> str:
    supported = torch.backends.quantized.supported_engines
    for engine in ("x86", "fbgemm", "qnnpack"):
        if engine in supported:
            return engine
    raise ValueError(f"torch has no engine for quantised models here: {supported}")


def _fuse(module: nn.Module) -> None:
    """Join convolution, batch normalisation and ReLU that follow each other in a Sequential."""
    from torch.ao.quantization import fuse_modules

    for child in module.modules():
        if isinstance(child, nn.Sequential):
            kinds = [type(m) for m in child]
            if kinds[:3] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
                fuse_modules(child, ["0", "1", "2"], inplace=True)  # type: ignore[no-untyped-call]
