"""Weights as safetensors: in float32, with matrices in float16, or with matrices in int8 and a scale per output channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["fp32", "fp16", "int8"]
_SCALE = ".int8_scale"


def pack(state: Mapping[str, Tensor], storage: Storage) -> bytes:
    """A safetensors file of a state dictionary. Vectors and integers stay as they are; so does everything with `fp32`."""
    from safetensors.torch import save

    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        is_matrix = tensor.is_floating_point() and tensor.dim() >= 2
        if not is_matrix or storage == "fp32":
            packed[name] = tensor.contiguous()
        elif storage == "fp16":
            packed[name] = tensor.to(torch.float16).contiguous()
        else:
            scale = tensor.flatten(1).abs().amax(1).clamp(min=1e-30) / 127  # (output channels,)
            shape = (-1, *[1] * (tensor.dim() - 1))
            packed[name] = (tensor / scale.view(shape)).round().clamp(-127, 127).to(torch.int8).contiguous()
            packed[name + _SCALE] = scale.contiguous()
    return save(packed)


def unpack(data: bytes) -> dict[str, Tensor]:
    """The state dictionary of such a file, floating-point tensors as float32. Raises SafetensorError."""
    from safetensors.torch import load

    packed = load(data)
    state = {}
    for name, tensor in packed.items():
        if name.endswith(_SCALE):
            continue
        scale = packed.get(name + _SCALE)
        if scale is not None:
            tensor = tensor.to(torch.float32) * scale.view(-1, *[1] * (tensor.dim() - 1))
        state[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return state
