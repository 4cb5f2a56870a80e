"""Names of codecs: families are parsed, everything else is refused; what arrives malformed is a ValueError."""

from __future__ import annotations

import contextlib
import resource
import struct
import zlib
from typing import Any

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.inference.codecs import CODECS, codec, standard_names

BOMB = bytes(50_000_000)


@pytest.mark.parametrize("name", ["jpeg-1", "jpeg-95", "jpeg-progressive-30", "webp-100", "int8-channel+lz4", "uint8+zstd"])
def test_names_with_parameters(name: str) -> None:
    assert name in CODECS and CODECS[name].name == name


@pytest.mark.parametrize("name", ["mp3", "", "jpeg-0", "jpeg-96", "jpeg-100", "jpeg-075", "jpeg-", "webp-101", "webp-lossless-5",
                                  "png-9", "jpeg+zlib", "raw+", "+zlib", "raw+gzip", "raw+zlib+zlib", "int8-50", "RAW",
                                  "bottleneck:digits_branchy@1", "bottleneck:", "jpeg-5O"])
def test_names_that_do_not_exist(name: str) -> None:
    assert name not in CODECS
    with pytest.raises(InputError, match=r"use one of raw, fp16, int8, .*\+zstd.*jpeg-50"):
        codec(name)
    with pytest.raises(KeyError):
        CODECS[name]


def test_what_is_not_a_name_is_not_in_the_registry() -> None:
    assert 3 not in CODECS and None not in CODECS and ["raw"] not in CODECS
    assert len(CODECS) == len(list(CODECS)) == len(set(standard_names()))
    assert all(name in CODECS for name in CODECS)


@given(st.sampled_from([*standard_names(), "jpeg-30"]), st.binary(max_size=64), st.sampled_from(["u1", "i1", "f2", "f4", "f8"]),
       st.dictionaries(st.sampled_from(["scale", "shape"]),
                       st.one_of(st.none(), st.floats(), st.text(max_size=3), st.lists(st.integers(-2, 70000), max_size=5))),
       st.integers(0, 2))
@settings(deadline=None)
def test_garbage_is_a_value_error_or_an_array(name: str, data: bytes, dtype: str, params: dict[str, object], n: int) -> None:
    size = np.dtype(dtype).itemsize
    array = np.frombuffer(data[:len(data) // size * size], dtype)
    with contextlib.suppress(ValueError):
        assert CODECS[name].decode([array] * n, params).dtype == np.float32


@given(st.sampled_from(standard_names()), st.data())
@settings(deadline=None)
def test_a_damaged_message_is_a_value_error_or_an_array_of_the_shape(name: str, data: st.DataObject) -> None:
    """One byte of a right message is changed, or its end is missing."""
    frame = np.random.default_rng(0).random((1, 3, 8, 8)).astype(np.float32)
    encoded = CODECS[name].encode(frame)
    which = data.draw(st.integers(0, len(encoded.arrays) - 1))
    raw = bytearray(encoded.arrays[which].tobytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= data.draw(st.integers(1, 255))
        damaged = np.frombuffer(bytes(raw), encoded.arrays[which].dtype).reshape(encoded.arrays[which].shape)
    else:
        itemsize = encoded.arrays[which].dtype.itemsize
        damaged = np.frombuffer(bytes(raw[:at // itemsize * itemsize]), encoded.arrays[which].dtype)
    arrays = [damaged if i == which else a for i, a in enumerate(encoded.arrays)]
    with contextlib.suppress(ValueError):
        back = CODECS[name].decode(arrays, encoded.params)
        assert back.dtype == np.float32 and (back.shape == frame.shape or "shape" not in encoded.params)


@pytest.mark.parametrize(("name", "packed"), [
    ("raw+zlib", zlib.compress(BOMB)),
    ("raw+lz4", lz4.block.compress(BOMB, store_size=False)),
    ("raw+zstd", zstandard.ZstdCompressor().compress(BOMB)),
    ("raw+zstd", zstandard.ZstdCompressor(write_content_size=False).compress(BOMB)),  # does not say how large it is
], ids=["zlib", "lz4", "zstd", "zstd-unsized"])
def test_bombs_are_not_unpacked(name: str, packed: bytes) -> None:
    def attempt() -> None:
        with pytest.raises(ValueError, match="16 bytes"):
            codec(name).decode([np.frombuffer(packed, np.uint8)], {"shape": [4]})

    assert len(packed) < 300_000
    attempt()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attempt()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB: not the 48,828 of the bomb


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(20_000_000), 9)) + chunk(b"IEND", b""))


def _webp(width: int, height: int) -> bytes:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    small = bytes(codec("webp-lossless").encode(np.zeros((1, 3, 8, 8), np.float32)).arrays[0])[12:]
    frame = bytes(6) + b"\7\0\0" + b"\7\0\0" + bytes(4) + small
    body = b"WEBP" + extended + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("name", "data"), [("png", _png(4000, 5000)), ("webp", _webp(16000, 16000))], ids=["png", "webp"])
def test_images_larger_than_announced_are_refused_unread(name: str, data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"is not of shape|not webp data"):
        codec(name).decode([np.frombuffer(data, np.uint8)], {"shape": [1, 1, 8, 8]})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize("params", [{}, {"shape": [2**16] * 4}, {"shape": [-1]}, {"shape": "4"}, {"shape": [True]}])
@pytest.mark.parametrize("name", ["raw+zlib", "int8+zstd", "jpeg", "png"])
def test_shapes_that_cannot_be_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shape"):
        codec(name).decode([np.zeros(8, np.uint8)], params)


@pytest.mark.parametrize("scale", [None, 0, -1.0, float("nan"), float("inf"), True, "1", 1e38])
def test_int8_needs_a_scale(scale: Any) -> None:
    with pytest.raises(ValueError, match="scale"):
        codec("int8").decode([np.zeros(8, np.int8)], {"scale": scale})
    if type(scale) in (int, float):
        with pytest.raises(ValueError, match="scale"):
            codec("int8-channel").decode([np.zeros((1, 2, 4), np.int8), np.array([1, scale], np.float32)], {})
