"""Codecs for tensors that cross a cut: an array to plain arrays and parameters, and back, with a stated error bound."""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True)
class Encoded:
    """What travels: arrays (as binary tensors) and small JSON parameters."""

    arrays: list[Array]
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays, without any message header."""
        return sum(a.nbytes for a in self.arrays)


class Codec(ABC):
    """Maps a float32 array to `Encoded` and back. `decode` raises ValueError for anything that `encode` cannot make."""

    name: str

    @abstractmethod
    def encode(self, array: NDArray[np.float32]) -> Encoded:
        """Encode a float32 array of any shape (the image codecs: (1, C, H, W) with C 1 or 3)."""

    @abstractmethod
    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        """The float32 array, of the shape that was encoded."""

    @abstractmethod
    def error_bound(self, array: NDArray[np.float32]) -> float:
        """Largest absolute error of decode(encode(array)) that this codec promises; inf when it promises none."""


class Raw(Codec):
    """float32 as it is: exact."""

    name = "raw"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        return Encoded([np.ascontiguousarray(array, np.float32)])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        return _one(arrays, np.float32)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return 0.0


class Fp16(Codec):
    """IEEE half precision: half the bytes; values beyond +-65504 are clipped to it."""

    name = "fp16"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        return Encoded([np.clip(array, -65504, 65504).astype(np.float16)])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        return _one(arrays, np.float16).astype(np.float32)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        # half a unit in the last of 11 significant bits, or of the smallest subnormal; plus what is clipped
        peak = float(np.abs(array).max(initial=0.0))
        return max(min(peak, 65504.0) * 2.0**-11, 2.0**-25) + max(0.0, peak - 65504.0)


class Int8(Codec):
    """Symmetric 8-bit quantisation with one scale for the tensor (max |x| / 127): a quarter of the bytes."""

    name = "int8"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        scale = float(np.abs(array).max(initial=0.0)) / 127
        if scale < 1e-30:  # all zero (or below anything that matters): any scale does
            scale = 1e-30
        return Encoded([np.clip(np.rint(array / np.float32(scale)), -127, 127).astype(np.int8)], {"scale": scale})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        scale = params.get("scale")
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < np.inf:
            raise ValueError("int8 needs a positive parameter scale")
        return _one(arrays, np.int8).astype(np.float32) * np.float32(scale)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        # half a step, and the rounding of the float32 division and product
        return float(np.abs(array).max(initial=0.0)) / 127 * (0.5 + 2.0**-15) + 1e-30


class Zlib(Codec):
    """zlib (level 1) over another codec's bytes: lossless over it; sizes depend on the data."""

    def __init__(self, inner: Codec, dtype: type[np.generic]) -> None:
        self.name, self._inner, self._dtype = f"{inner.name}+zlib", inner, np.dtype(dtype)

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        inner = self._inner.encode(array)
        data = zlib.compress(inner.arrays[0].tobytes(), 1)
        return Encoded([np.frombuffer(data, np.uint8)], inner.params | {"shape": list(array.shape)})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        shape = _shape(params)
        want = int(np.prod(shape)) * self._dtype.itemsize
        unpacker = zlib.decompressobj()
        try:  # bounded: a few bytes must not unpack to gigabytes
            data = unpacker.decompress(_one(arrays, np.uint8).tobytes(), want + 1)
        except zlib.error as error:
            raise ValueError(f"not zlib data: {error}") from None
        if len(data) != want:
            raise ValueError(f"zlib data has not the {want} bytes of shape {shape}")
        return self._inner.decode([np.frombuffer(data, self._dtype).reshape(shape)], params)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return self._inner.error_bound(array)


class Image(Codec):
    """JPEG or WebP of one frame (1, C, H, W), C 1 or 3, values 0..1: small, lossy, no promise on the error."""

    def __init__(self, kind: str, quality: int) -> None:
        self.name, self._kind, self._quality = kind.lower(), kind, quality

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        from PIL import Image as Pillow

        if array.ndim != 4 or array.shape[0] != 1 or array.shape[1] not in (1, 3):
            raise ValueError(f"{self.name} encodes frames of shape (1, 1 or 3, H, W), not {tuple(array.shape)}")
        pixels = np.rint(np.clip(array[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)  # (H, W, C)
        buffer = io.BytesIO()
        Pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, self._kind,
                                                                                quality=self._quality)
        return Encoded([np.frombuffer(buffer.getvalue(), np.uint8)], {"shape": list(array.shape)})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        from PIL import Image as Pillow

        shape = _shape(params)
        if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
            raise ValueError(f"{self.name} has frames of shape (1, 1 or 3, H, W), not {shape}")
        try:
            with Pillow.open(io.BytesIO(_one(arrays, np.uint8).tobytes()), formats=[self._kind]) as image:
                if image.size != (shape[3], shape[2]):
                    raise ValueError(f"{self.name} image of {image.size} is not of shape {shape}")
                pixels = np.asarray(image.convert("L" if shape[1] == 1 else "RGB"), np.float32)
        except (OSError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise ValueError(f"not {self.name} data: {error}") from None
        frame = pixels[None] if shape[1] == 1 else pixels.transpose(2, 0, 1)  # (C, H, W)
        return np.ascontiguousarray(frame[None] / np.float32(255))

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return float("inf")


def _one(arrays: Sequence[Array], dtype: type[np.generic]) -> Array:
    if len(arrays) != 1 or arrays[0].dtype != np.dtype(dtype):
        raise ValueError(f"expects one {np.dtype(dtype).name} tensor, got {[a.dtype.name for a in arrays]}")
    return arrays[0]


def _shape(params: Mapping[str, Any]) -> tuple[int, ...]:
    shape = params.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 < n <= 65536 for n in shape):
        raise ValueError("needs a parameter shape: a list of positive sizes")
    if int(np.prod(shape, dtype=object)) > 2**28:
        raise ValueError(f"shape {shape} is too large")
    return tuple(shape)


_ALL: tuple[Codec, ...] = (Raw(), Fp16(), Int8(), Zlib(Raw(), np.float32), Zlib(Fp16(), np.float16),
                           Zlib(Int8(), np.int8), Image("JPEG", 75), Image("WEBP", 75))
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}


def codec(name: str) -> Codec:
    """The codec of this name. Raises InputError naming those that exist."""
    try:
        return CODECS[name]
    except KeyError:
        raise InputError("there is no such codec", key="codec", value=name,
                         remedy=f"use one of {', '.join(CODECS)}") from None
