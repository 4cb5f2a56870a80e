"""Tensors of the Open Inference Protocol: datatypes, and their JSON and binary forms."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**31


class ProtocolError(Exception):
    """A message that breaks the protocol, or asks for what is not served. `status` is the HTTP answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


NUMPY_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAME_OF = {dtype: name for name, dtype in NUMPY_OF.items()}


@dataclass(frozen=True)
class Tensor:
    """A named tensor; BYTES tensors hold an object array of `bytes`."""

    name: str
    data: NDArray[Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def datatype(self) -> str:
        """The protocol's name of the array's type."""
        dtype = self.data.dtype.newbyteorder("<") if self.data.dtype.kind != "O" else self.data.dtype
        if dtype not in _NAME_OF:
            raise ProtocolError(f"arrays of {self.data.dtype} have no datatype in the protocol", 500)
        return _NAME_OF[dtype]


def check_shape(shape: object, name: str) -> tuple[int, ...]:
    """A shape from JSON. Raises ProtocolError."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"tensor {name!r}: shape must be a list of at most {MAX_DIMENSIONS} integers")
    if not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape):
        raise ProtocolError(f"tensor {name!r}: shape must hold integers from 0 to {MAX_ELEMENTS}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ProtocolError(f"tensor {name!r}: shape has too many elements")
    return tuple(shape)


def check_datatype(datatype: object, name: str) -> str:
    """A datatype from JSON. Raises ProtocolError."""
    if not isinstance(datatype, str) or datatype not in NUMPY_OF:
        raise ProtocolError(f"tensor {name!r}: datatype must be one of {', '.join(NUMPY_OF)}, got {datatype!r:.60}")
    return datatype


def from_json(data: object, datatype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Array of a tensor's `data`: flat or nested lists, row-major. Raises ProtocolError."""
    if not isinstance(data, list):
        raise ProtocolError(f"tensor {name!r}: data must be a list")
    flat: list[Any] = []
    depth = len(shape)
    if depth > 1 and data and isinstance(data[0], list):
        _flatten(data, shape, flat, name)
    else:
        flat = data
    if len(flat) != math.prod(shape):
        raise ProtocolError(f"tensor {name!r}: shape {list(shape)} needs {math.prod(shape)} elements, "
                            f"data has {len(flat)}")
    if datatype == "BYTES":
        if not all(isinstance(v, str) for v in flat):
            raise ProtocolError(f"tensor {name!r}: BYTES elements in JSON are strings")
        try:
            encoded = [v.encode("utf-8") for v in flat]
        except UnicodeEncodeError:
            raise ProtocolError(f"tensor {name!r}: BYTES elements in JSON are valid Unicode strings") from None
        return _objects(encoded, shape)
    dtype = NUMPY_OF[datatype]
    if datatype == "BOOL":
        wrong = not all(isinstance(v, bool) for v in flat)
    elif dtype.kind in "ui":
        limits = np.iinfo(dtype)
        wrong = not all(type(v) is int and limits.min <= v <= limits.max for v in flat)
    else:
        top = float(np.finfo(dtype).max)
        wrong = not all(type(v) in (int, float) and -top <= v <= top for v in flat)
    if wrong:
        raise ProtocolError(f"tensor {name!r}: data has an element that is not a {datatype}")
    return np.array(flat, dtype).reshape(shape)


def _flatten(data: list[Any], shape: tuple[int, ...], out: list[Any], name: str) -> None:
    if len(data) != shape[0]:
        raise ProtocolError(f"tensor {name!r}: nested data does not have its shape")
    if len(shape) == 1:
        out.extend(data)
        return
    for item in data:
        if not isinstance(item, list):
            raise ProtocolError(f"tensor {name!r}: nested data does not have its shape")
        _flatten(item, shape[1:], out, name)


def to_json(data: NDArray[Any]) -> list[Any]:
    """Flat list for a tensor's `data`. Raises ProtocolError for BYTES that are not UTF-8 and for NaN or infinity."""
    if data.dtype.kind == "O":
        try:
            return [bytes(v).decode("utf-8") for v in data.reshape(-1)]
        except UnicodeDecodeError:
            raise ProtocolError("BYTES that are not UTF-8 need binary output") from None
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise ProtocolError("NaN and infinity need binary output")
    values: list[Any] = data.reshape(-1).tolist()
    return values


def from_binary(data: memoryview, datatype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Array over the bytes of a binary tensor (no copy, read-only; BYTES are copied). Raises ProtocolError."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(_split_bytes(data, count, name), shape)
    dtype = NUMPY_OF[datatype]
    if len(data) != count * dtype.itemsize:
        raise ProtocolError(f"tensor {name!r}: {datatype} of shape {list(shape)} is {count * dtype.itemsize} bytes, "
                            f"binary_data_size says {len(data)}")
    if datatype == "BOOL":
        raw = np.frombuffer(data, np.uint8)
        if raw.size and raw.max() > 1:
            raise ProtocolError(f"tensor {name!r}: BOOL bytes are 0 or 1")
    return np.frombuffer(data, dtype).reshape(shape)


def to_binary(data: NDArray[Any]) -> bytes:
    """Bytes of a tensor: little-endian, row-major; each BYTES element behind its length in four bytes."""
    if data.dtype.kind == "O":
        return b"".join(struct.pack("<I", len(v)) + bytes(v) for v in data.reshape(-1))
    return np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()


def _split_bytes(data: memoryview, count: int, name: str) -> list[bytes]:
    elements, position = [], 0
    while position < len(data):
        if position + 4 > len(data):
            raise ProtocolError(f"tensor {name!r}: BYTES element is cut off")
        size = struct.unpack_from("<I", data, position)[0]
        position += 4
        if position + size > len(data):
            raise ProtocolError(f"tensor {name!r}: BYTES element is cut off")
        elements.append(bytes(data[position:position + size]))
        position += size
        if len(elements) > count:
            break
    if len(elements) != count:
        raise ProtocolError(f"tensor {name!r}: shape needs {count} BYTES elements, binary data has "
                            f"{len(elements)}{' or more' if len(elements) > count else ''}")
    return elements


def _objects(elements: list[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(len(elements), object)
    for i, element in enumerate(elements):
        array[i] = element
    return array.reshape(shape)
