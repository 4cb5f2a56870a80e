"""What a codec is: a float32 tensor to plain arrays and parameters, and back, with a stated rate and error bound."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Layout = list[tuple[np.dtype[Any], tuple[int, ...]]]

MAX_VALUES = 2**28  # a tensor with more is refused by every decoder


@dataclass(frozen=True)
class Encoded:
    """What travels: arrays (as binary tensors) and small JSON parameters (in the message's header)."""

    arrays: list[Array]
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays, without any message header."""
        return sum(a.nbytes for a in self.arrays)


class Codec(ABC):
    """Maps a float32 array to `Encoded` and back.

    Attributes
    ----------
    name: as plans and the tables write it.
    kind: what it is for: any `tensor`, or `image` frames (N, 1 or 3, H, W) with values 0..1.
    description: one line.
    rate: bytes on the wire, in words.
    bound: largest absolute error of one value, in words.
    slow: whether it takes so long that a node computes it in its codec thread whatever the tensor's size.

    `encode` raises ValueError for a tensor that the codec cannot carry; `decode` for anything that `encode` cannot make.
    """

    name: str
    kind: Literal["tensor", "image"] = "tensor"
    description: str
    rate: str
    bound: str
    slow: bool = False

    @abstractmethod
    def encode(self, array: NDArray[np.float32]) -> Encoded:
        """Encode a float32 array of a shape that `fits`."""

    @abstractmethod
    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        """The float32 array, of the shape that was encoded."""

    @abstractmethod
    def error_bound(self, array: NDArray[np.float32]) -> float:
        """Largest absolute error of decode(encode(array)) that this codec promises; inf when it promises none."""

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why tensors of this shape, batch dimension included, cannot be encoded; None when they can."""
        return None

    def layout(self, shape: tuple[int, ...]) -> Layout | None:
        """Type and shape of the encoded arrays of a tensor of this shape; None when their size depends on the content."""
        return None

    def size_bytes(self, shape: Sequence[int]) -> int | None:
        """Bytes on the wire of a tensor of this shape, without the message header; None: they depend on the content."""
        layout = self.layout(tuple(shape))
        return None if layout is None else sum(dtype.itemsize * math.prod(dims) for dtype, dims in layout)


def one(arrays: Sequence[Array], dtype: type[np.generic]) -> Array:
    """The only array, which must be of this type. Raises ValueError."""
    if len(arrays) != 1 or arrays[0].dtype != np.dtype(dtype):
        raise ValueError(f"expects one {np.dtype(dtype).name} tensor, got {[a.dtype.name for a in arrays]}")
    return arrays[0]


def shape_of(params: Mapping[str, Any]) -> tuple[int, ...]:
    """The parameter `shape`. Raises ValueError."""
    shape = params.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 < n <= 65536 for n in shape):
        raise ValueError("needs a parameter shape: a list of positive sizes")
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"shape {shape} is too large")
    return tuple(shape)


def finite(array: NDArray[np.float32], name: str) -> float:
    """Largest |value| of an array. Raises ValueError when a value is NaN or infinite: a quantiser has no code for it."""
    peak = float(np.abs(array).max(initial=0.0))
    if not math.isfinite(peak):
        raise ValueError(f"{name} cannot encode values that are not finite")
    return peak
