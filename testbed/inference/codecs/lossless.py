"""Lossless compression of what another codec makes: zlib, LZ4, Zstandard. Decoders never unpack more than is announced."""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.inference.codecs.base import Array, Codec, Encoded, one, shape_of


class Lossless(Codec):
    """Compresses the bytes of a codec of fixed rate, all its arrays one after the other, into one array of bytes."""

    method: str
    rate = "by content"

    def __init__(self, inner: Codec) -> None:
        self.inner = inner
        self.name, self.kind, self.bound = f"{inner.name}+{self.method}", inner.kind, inner.bound
        self.description = f"{inner.name}, and {self.method} over its bytes"
        self.slow = self.slow or inner.slow

    @abstractmethod
    def pack(self, data: bytes) -> bytes:
        """Compress."""

    @abstractmethod
    def unpack(self, data: bytes, size_bytes: int) -> bytes:
        """The data, which must have this size; memory for more is never taken. Raises ValueError."""

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        inner = self.inner.encode(array)
        packed = self.pack(b"".join(a.tobytes() for a in inner.arrays))
        return Encoded([np.frombuffer(packed, np.uint8)], inner.params | {"shape": list(array.shape)})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        shape = shape_of(params)
        if reason := self.inner.misfit(shape):
            raise ValueError(reason)
        layout = self.inner.layout(shape)
        assert layout is not None, "the registry wraps codecs of fixed rate only"
        sizes = [dtype.itemsize * math.prod(dims) for dtype, dims in layout]
        data = self.unpack(one(arrays, np.uint8).tobytes(), sum(sizes))
        if len(data) != sum(sizes):
            raise ValueError(f"{self.method} data has not the {sum(sizes)} bytes of shape {list(shape)}")
        parts, position = [], 0
        for (dtype, dims), size in zip(layout, sizes, strict=True):
            parts.append(np.frombuffer(data, dtype, math.prod(dims), position).reshape(dims))
            position += size
        return self.inner.decode(parts, params)

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return self.inner.error_bound(array)

    def misfit(self, shape: Sequence[int]) -> str | None:
        return self.inner.misfit(shape)


class Zlib(Lossless):
    """zlib (DEFLATE) at level 1."""

    method = "zlib"
    slow = True

    def pack(self, data: bytes) -> bytes:
        return zlib.compress(data, 1)

    def unpack(self, data: bytes, size_bytes: int) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(data, size_bytes + 1)
        except zlib.error as error:
            raise ValueError(f"not zlib data: {error}") from None
        if len(found) == size_bytes and not unpacker.eof:
            raise ValueError("zlib data is cut off")
        return found


class Lz4(Lossless):
    """LZ4, one block, at its default speed."""

    method = "lz4"

    def pack(self, data: bytes) -> bytes:
        import lz4.block

        packed: bytes = lz4.block.compress(data, store_size=False)
        return packed

    def unpack(self, data: bytes, size_bytes: int) -> bytes:
        import lz4.block

        try:  # the size is that of the buffer which is filled: what does not fit is an error
            found: bytes = lz4.block.decompress(data, uncompressed_size=size_bytes)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(f"not lz4 data of {size_bytes} bytes: {error}") from None
        return found


class Zstd(Lossless):
    """Zstandard at level 3, one frame that names its size."""

    method = "zstd"
    slow = True

    def pack(self, data: bytes) -> bytes:
        import zstandard

        return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(data)

    def unpack(self, data: bytes, size_bytes: int) -> bytes:
        import zstandard

        try:
            # the library takes memory for the size that the frame names, so that size is read first
            if zstandard.frame_content_size(data) != size_bytes:
                raise ValueError(f"zstd data does not name the {size_bytes} bytes of its shape")
            return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"not zstd data: {error}") from None


METHODS: Mapping[str, type[Lossless]] = {kind.method: kind for kind in (Zlib, Lz4, Zstd)}
