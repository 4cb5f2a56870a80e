"""Learned bottlenecks as codecs: their entries in a model catalogue, and the codec; loads torch on first use only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from testbed.errors import InputError
from testbed.inference.catalogue import verified_bytes
from testbed.inference.codecs.base import Array, Codec, Encoded, Layout, finite, one
from testbed.schema.files import read_document
from testbed.schema.topology import Strict

if TYPE_CHECKING:
    from testbed.inference.bottleneck import BottleneckNet

PREFIX = "bottleneck:"
_LARGEST_BATCH_VALUES = 2**24  # 64 MiB of float32: a short message must not unpack to gigabytes
KEY = re.compile(r"^([A-Za-z0-9_.-]+)@(\d{1,4})(?:\.([a-z0-9][a-z0-9_-]{0,39}))?$")


class BottleneckInfo(Strict):
    """A learned bottleneck of one model at one cut.

    Attributes
    ----------
    key: ``model@cut``, or ``model@cut.variant``.
    shape: (C, H, W) of the tensor at the cut, for one sample.
    channels, stride, bits: of the code: `channels` x ceil(H / stride) x ceil(W / stride) values of `bits` bits.
    relu: whether the decoder ends in a ReLU: where the tensor has no negative values.
    model_sha256: the trunk's weights that it was trained for.
    size_bytes, ratio: bytes of one sample on the wire, and how many times smaller than float32 that is.
    accuracy, accuracy_without: on the test split by exit behind the cut, with the bottleneck and with float32.
    parameters, macs: of encoder and decoder.
    """

    key: str = Field(pattern=KEY.pattern)
    model: str
    cut: int = Field(ge=0)
    shape: tuple[int, int, int]
    channels: int = Field(ge=1)
    stride: int = Field(ge=1)
    bits: int = Field(ge=1, le=8)
    relu: bool
    weights: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    seed: int
    recipe: dict[str, Any]
    parameters: dict[str, int]
    macs: dict[str, int]
    size_bytes: int = Field(ge=1)
    ratio: float = Field(gt=0)
    accuracy: dict[str, float]
    accuracy_without: dict[str, float]

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of the code of one sample."""
        return code_shape(self.shape, self.channels, self.stride)


def code_shape(shape: Sequence[int], channels: int, stride: int) -> tuple[int, int, int]:
    """(channels, h, w) of the code of a tensor (C, H, W)."""
    return channels, (shape[1] - 1) // stride + 1, (shape[2] - 1) // stride + 1


def packed_bytes(values: int, bits: int) -> int:
    """Bytes of the code of one sample."""
    return (values * bits + 7) // 8


class Bottleneck(Codec):
    """A small convolutional encoder and decoder, trained with the model frozen (BottleNet++, Shao and Zhang 2020).

    The code is quantised to `bits` bits per value; with fewer than 8, the bits of a sample are packed without gaps.
    """

    slow = True
    bound = "none promised; see the accuracy"

    def __init__(self, info: BottleneckInfo, catalogue: Path, net: BottleneckNet | None = None) -> None:
        self.info, self._catalogue, self._net = info, catalogue, net
        self.name = PREFIX + info.key
        final, without = list(info.accuracy.values())[-1], list(info.accuracy_without.values())[-1]
        self.description = (f"learned for cut {info.cut} of {info.model}: {info.size_bytes:,} bytes in place of "
                            f"{4 * math.prod(info.shape):,}; accuracy {final:.1%} in place of {without:.1%}")
        self.rate = f"{info.size_bytes / math.prod(info.shape):.3g} per value"

    def misfit(self, shape: Sequence[int]) -> str | None:
        fits = len(shape) == 4 and tuple(shape[1:]) == self.info.shape
        return None if fits else f"{self.name} is for tensors of shape (N, {', '.join(map(str, self.info.shape))})"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return [(np.dtype(np.uint8), (shape[0], self.info.size_bytes))]

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return float("inf")

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        import torch

        if reason := self.misfit(array.shape):
            raise ValueError(reason)
        finite(array, self.name)
        with torch.inference_mode():
            codes = self.net.codes(torch.tensor(array)).numpy()  # (N, channels, h, w), 0 .. 2**bits - 1
        flat = codes.astype(np.uint8).reshape(len(array), -1)
        if self.info.bits < 8:
            ones = np.unpackbits(flat[:, :, None], axis=2)[:, :, 8 - self.info.bits:]
            flat = np.packbits(ones.reshape(len(array), -1), axis=1)
        return Encoded([flat])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        import torch

        packed, info = one(arrays, np.uint8), self.info
        if packed.ndim != 2 or packed.shape[1] != info.size_bytes or not len(packed):
            raise ValueError(f"{self.name} has {info.size_bytes} bytes for a sample, got shape {packed.shape}")
        if len(packed) * math.prod(info.shape) > _LARGEST_BATCH_VALUES:
            raise ValueError(f"a batch of {len(packed)} is too large for {self.name}")
        values = math.prod(info.code_shape)
        if info.bits < 8:
            ones = np.unpackbits(packed, axis=1, count=values * info.bits).reshape(len(packed), values, info.bits)
            packed = np.packbits(ones, axis=2)[:, :, 0] >> (8 - info.bits)
        with torch.inference_mode():
            codes = torch.from_numpy(packed.reshape(-1, *info.code_shape).astype(np.float32))
            restored: NDArray[np.float32] = self.net.restore(codes).numpy()
        return restored

    @cached_property
    def net(self) -> BottleneckNet:
        """Encoder and decoder with their weights. Raises InputError when the file is not the catalogue's."""
        if self._net is not None:
            return self._net
        from safetensors import SafetensorError
        from safetensors.torch import load

        from testbed.inference.bottleneck import BottleneckNet

        info, file = self.info, self._catalogue.parent / self.info.weights
        net = BottleneckNet(info.shape, info.channels, info.stride, info.bits, info.relu)
        try:
            net.load_state_dict(load(self.verified()), strict=True)
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise InputError(f"weights do not fit the entry: {str(error).splitlines()[0]}", file=file,
                             key=f"bottlenecks.{info.key}.weights", remedy=_train_again(info)) from None
        return net.eval().requires_grad_(False)

    def sha256(self) -> str:
        """Hash of the weights, which are read and checked. Raises InputError."""
        self.verified()
        return self.info.sha256

    def verified(self) -> bytes:
        """The weights' file: of the catalogue's hash, and trained for the model's present weights. Raises InputError."""
        key = f"bottlenecks.{self.info.key}"
        model = (read_document(self._catalogue).data.get("models") or {}).get(self.info.model)
        if not isinstance(model, dict) or model.get("sha256") != self.info.model_sha256:
            raise InputError(f"was trained for other weights of {self.info.model}", file=self._catalogue, key=key,
                             value=self.info.model_sha256[:12], remedy=_train_again(self.info))
        return verified_bytes(self._catalogue.parent / self.info.weights, self.info.sha256, self._catalogue, key)


def read_bottlenecks(catalogue: Path) -> dict[str, BottleneckInfo]:
    """The catalogue's bottlenecks by key. Raises InputError naming file, key and remedy."""
    data = read_document(catalogue).data
    entries = data.get("bottlenecks") or {}
    if not isinstance(entries, dict):
        raise InputError("is not a mapping", file=catalogue, key="bottlenecks", value=entries,
                         remedy="run `testbed models train-bottleneck` to write an entry")
    found = {}
    for key, entry in entries.items():
        try:
            info = BottleneckInfo.model_validate({"key": key, **(entry if isinstance(entry, dict) else {})})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise InputError(problem["msg"], file=catalogue, value=problem.get("input"),
                             key=".".join(str(p) for p in ("bottlenecks", key, *problem["loc"])),
                             remedy="run `testbed models train-bottleneck` to write the entry anew") from None
        if packed_bytes(math.prod(info.code_shape), info.bits) != info.size_bytes:
            raise InputError("are not the bytes of this shape, stride and number of bits", file=catalogue,
                             key=f"bottlenecks.{key}.size_bytes", value=info.size_bytes, remedy=_train_again(info))
        found[str(key)] = info
    return found


def write_bottleneck(catalogue: Path, info: BottleneckInfo) -> None:
    """Write one entry below `bottlenecks:`; models, other entries and the comment at the top stay."""
    import yaml

    text = catalogue.read_text(encoding="utf-8")
    comment = "".join(line for line in text.splitlines(keepends=True)[:20] if line.startswith("#"))
    data = dict(read_document(catalogue).data)
    entry = json.loads(info.model_dump_json(exclude={"key"}))
    data["bottlenecks"] = {**(data.get("bottlenecks") or {}), info.key: entry}
    temporary = catalogue.with_suffix(".new")
    temporary.write_text(comment + yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None), encoding="utf-8")
    temporary.replace(catalogue)


def _train_again(info: BottleneckInfo) -> str:
    return f"run `testbed models train-bottleneck {info.model} --cut {info.cut}`"
