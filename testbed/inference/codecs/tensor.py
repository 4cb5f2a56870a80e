"""Codecs of a fixed rate: float32, half precision, 8-bit quantisation of tensors, and the 8-bit frame of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.inference.codecs.base import Array, Codec, Encoded, Layout, finite, one

_HALF_MAX = 65504.0
_TINY = 1e-30  # scale of a tensor (or channel) in which nothing is larger than 127e-30


class Raw(Codec):
    """float32 as it is: exact, NaN and infinities included."""

    name = "raw"
    description = "float32 as it is"
    rate = "4 per value"
    bound = "0"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        return Encoded([np.ascontiguousarray(array, np.float32)])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        return one(arrays, np.float32)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return 0.0

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return [(np.dtype(np.float32), shape)]


class Fp16(Codec):
    """IEEE half precision. Finite values beyond +-65504 are clipped to it; NaN and infinities stay what they are."""

    name = "fp16"
    description = "IEEE half precision"
    rate = "2 per value"
    bound = "max|x| / 2048 or 3e-8, plus what is clipped at 65504"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        clipped = np.clip(array, -_HALF_MAX, _HALF_MAX)
        if not np.isfinite(array).all():
            clipped = np.where(np.isinf(array), array, clipped)
        return Encoded([clipped.astype(np.float16)])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        return one(arrays, np.float16).astype(np.float32)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        # half a unit in the last of 11 significant bits, or of the smallest subnormal; plus what is clipped
        peak = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
        return max(min(peak, _HALF_MAX) * 2.0**-11, 2.0**-25) + max(0.0, peak - _HALF_MAX)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return [(np.dtype(np.float16), shape)]


class Int8(Codec):
    """Symmetric 8-bit quantisation with one scale for the tensor, max|x| / 127, which travels in the header."""

    name = "int8"
    description = "8-bit integers with one scale for the tensor"
    rate = "1 per value"
    bound = "max|x| / 254"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        scale = _scales(np.array([finite(array, self.name)]))[0]
        return Encoded([_quantised(array, scale)], {"scale": float(scale)})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        scale = params.get("scale")
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < 1e37:
            raise ValueError("int8 needs a positive parameter scale")
        return one(arrays, np.int8).astype(np.float32) * np.float32(scale)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        # half a step, and the rounding of the float32 division and product
        return float(np.abs(array).max(initial=0.0)) / 127 * (0.5 + 2.0**-15) + _TINY

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return [(np.dtype(np.int8), shape)]


class Int8Channel(Codec):
    """Symmetric 8-bit quantisation with one scale per channel of (N, C, ...); `int8` where there is no channel axis."""

    name = "int8-channel"
    description = "8-bit integers with one float32 scale per channel of (N, C, ...); as int8 for other tensors"
    rate = "1 per value + 4 per channel"
    bound = "max|x| / 254 within each channel"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        if array.ndim < 3:
            return Int8().encode(array)
        finite(array, self.name)
        others = tuple(i for i in range(array.ndim) if i != 1)
        scales = _scales(np.abs(array).max(axis=others, initial=0.0))  # (C,)
        return Encoded([_quantised(array, _along_channels(scales, array.ndim)), scales])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        if len(arrays) == 1:
            if arrays[0].ndim >= 3:
                raise ValueError("int8-channel needs the scales of the channels as a second tensor")
            return Int8().decode(arrays, params)
        values, scales = one(arrays[:1], np.int8), one(arrays[1:], np.float32)
        if values.ndim < 3 or scales.shape != values.shape[1:2]:
            raise ValueError(f"int8-channel needs a scale for each channel, got {scales.shape} for {values.shape}")
        if not ((scales > 0) & (scales < 1e37)).all():
            raise ValueError("int8-channel needs positive scales")
        return values.astype(np.float32) * _along_channels(scales, values.ndim)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return Int8().error_bound(array)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        values = (np.dtype(np.int8), shape)
        return [values] if len(shape) < 3 else [values, (np.dtype(np.float32), shape[1:2])]


class Uint8(Codec):
    """The 8-bit frame of an image, as a camera gives it: round(255 x). Values beyond 0..1 are clipped."""

    name = "uint8"
    kind = "image"
    description = "the frame in 8 bits, as a camera gives it: 3,072 bytes for 3x32x32"
    rate = "1 per value"
    bound = "1/510, plus what is clipped at 0 and 1"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        if reason := self.misfit(array.shape):
            raise ValueError(reason)
        return Encoded([pixels_of(array, self.name)])

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        pixels = one(arrays, np.uint8)
        if reason := self.misfit(pixels.shape):
            raise ValueError(reason)
        return pixels.astype(np.float32) / np.float32(255)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return pixel_bound(array)

    def misfit(self, shape: Sequence[int]) -> str | None:
        fits = len(shape) == 4 and shape[1] in (1, 3)
        return None if fits else f"{self.name} encodes frames of shape (N, 1 or 3, H, W), not {tuple(shape)}"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return [(np.dtype(np.uint8), shape)]


def pixels_of(frames: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """round(255 x) of frames of values 0..1; what lies beyond is clipped. Raises ValueError for NaN and infinities."""
    finite(frames, name)
    pixels: NDArray[np.uint8] = np.rint(np.clip(frames, 0, 1) * np.float32(255)).astype(np.uint8)
    return pixels


def pixel_bound(frames: NDArray[np.float32]) -> float:
    """Largest error of `pixels_of`: half a step (and float32 rounding), and what is clipped."""
    beyond = max(0.0, float(frames.max(initial=0.0)) - 1, -float(frames.min(initial=0.0)))
    return 0.5 / 255 * (1 + 2.0**-14) + beyond


def _scales(peaks: NDArray[Any]) -> NDArray[np.float32]:
    """max|x| / 127, such that 127 scale is a float32 again."""
    scales = np.maximum(np.float64(peaks) / 127, _TINY).astype(np.float32)
    with np.errstate(over="ignore"):
        lower: NDArray[np.float32] = np.nextafter(scales, np.float32(0))
        return np.where(np.isinf(scales * np.float32(127)), lower, scales)


def _quantised(array: NDArray[np.float32], scale: Any) -> NDArray[np.int8]:
    values: NDArray[np.int8] = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
    return values


def _along_channels(scales: NDArray[np.float32], ndim: int) -> NDArray[np.float32]:
    return scales.reshape(1, -1, *[1] * (ndim - 2))
