"""Codecs keep their promise: decode(encode(x)) differs from x by at most the stated bound, and garbage is refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from testbed.errors import InputError
from testbed.inference.codecs import CODECS, codec
from testbed.inference.data import load_dataset

TENSOR_CODECS = [name for name in CODECS if name not in ("jpeg", "webp")]
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=6),
                    elements=st.floats(-1e6, 1e6, width=32, allow_nan=False))


@given(ARRAYS, st.sampled_from(TENSOR_CODECS))
def test_error_is_within_the_bound(array: np.ndarray, name: str) -> None:
    one = codec(name)
    encoded = one.encode(array)
    back = one.decode(encoded.arrays, encoded.params)
    assert back.shape == array.shape and back.dtype == np.float32
    assert np.abs(back.astype(np.float64) - array).max() <= one.error_bound(array)


@pytest.mark.parametrize(("name", "factor"), [("raw", 1), ("fp16", 2), ("int8", 4)])
def test_sizes(name: str, factor: int) -> None:
    frame = load_dataset("digits").x[:1]
    assert codec(name).encode(frame).size_bytes * factor == frame.nbytes


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_image_codecs_are_small_and_close(name: str) -> None:
    frame = load_dataset("digits").x[:1]
    encoded = codec(name).encode(frame)
    back = codec(name).decode(encoded.arrays, encoded.params)
    assert back.shape == frame.shape and encoded.size_bytes < frame.nbytes / 8
    assert np.abs(back - frame).mean() < 0.03
    assert codec(name).error_bound(frame) == float("inf")
    with pytest.raises(ValueError, match="encodes frames of shape"):
        codec(name).encode(np.zeros((1, 32, 8, 8), np.float32))


@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=64), st.sampled_from(["u1", "i1", "f2", "f4", "f8"]),
       st.dictionaries(st.sampled_from(["scale", "shape"]),
                       st.one_of(st.none(), st.floats(), st.text(max_size=3), st.lists(st.integers(-2, 70000), max_size=5))))
def test_garbage_is_a_value_error_or_an_array(name: str, data: bytes, dtype: str, params: dict[str, object]) -> None:
    size = np.dtype(dtype).itemsize
    array = np.frombuffer(data[:len(data) // size * size], dtype)
    with contextlib.suppress(ValueError):
        assert CODECS[name].decode([array], params).dtype == np.float32


def test_a_zlib_bomb_is_not_unpacked() -> None:
    import zlib

    bomb = np.frombuffer(zlib.compress(bytes(50_000_000)), np.uint8)
    with pytest.raises(ValueError, match="has not the 16 bytes"):
        codec("raw+zlib").decode([bomb], {"shape": [4]})


def test_unknown_codec_names_those_that_exist() -> None:
    with pytest.raises(InputError, match="use one of raw, fp16, int8"):
        codec("mp3")
