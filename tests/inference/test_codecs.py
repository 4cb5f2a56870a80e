"""Codecs keep their promise: decode(encode(x)) differs from x by at most the stated bound, at the stated rate."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from testbed.inference.codecs import CODECS, Codec, codec, standard_names
from testbed.inference.codecs.table import refreshed
from testbed.inference.data import load_dataset

TENSOR = [n for n in standard_names() if CODECS[n].kind == "tensor"]
IMAGE = [n for n in standard_names() if CODECS[n].kind == "image"]
FIXED_RATE = [n for n in standard_names() if CODECS[n].layout((1, 1, 8, 8)) is not None]
LARGEST = float(np.finfo(np.float32).max)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=6),
                    elements=st.floats(-LARGEST, LARGEST, width=32, allow_nan=False))
FRAMES = hnp.arrays(np.float32, st.tuples(st.just(1), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
                    elements=st.floats(-0.5, 1.5, width=32))


def there_and_back(one: Codec, array: np.ndarray) -> np.ndarray:
    encoded = one.encode(array)
    return one.decode(encoded.arrays, encoded.params)


@given(ARRAYS, st.sampled_from(TENSOR))
@example(np.full((1, 2, 1, 1), LARGEST, np.float32), "int8")
@example(np.full((2, 2, 1), -LARGEST, np.float32), "int8-channel")
@example(np.zeros((1, 3, 2, 2), np.float32), "int8-channel+zstd")
@example(np.array([1e-45, -1e-38, 0], np.float32), "int8")
def test_tensors_come_back_within_the_bound(array: np.ndarray, name: str) -> None:
    back = there_and_back(codec(name), array)
    assert back.shape == array.shape and back.dtype == np.float32
    assert np.abs(back.astype(np.float64) - array).max() <= codec(name).error_bound(array)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=4, max_side=5),
                  elements=st.floats(-1e6, 1e6, width=32, allow_nan=False)))
def test_a_scale_per_channel_bounds_the_error_of_each_channel(array: np.ndarray) -> None:
    """A channel of small values next to one of large values keeps its own precision."""
    array[:, 0] *= 1e-3
    back = there_and_back(codec("int8-channel"), array)
    for channel in range(array.shape[1]):
        x, y = array[:, channel].astype(np.float64), back[:, channel].astype(np.float64)
        assert np.abs(y - x).max() <= np.abs(x).max() / 254 * 1.001 + 1e-30


@given(FRAMES, st.sampled_from(IMAGE))
@settings(deadline=None)
def test_frames_come_back_within_the_bound(frame: np.ndarray, name: str) -> None:
    back = there_and_back(codec(name), frame)
    assert back.shape == frame.shape and back.dtype == np.float32 and 0 <= back.min() <= back.max() <= 1
    assert np.abs(back.astype(np.float64) - frame).max() <= codec(name).error_bound(frame)


@pytest.mark.parametrize("name", ["uint8", "uint8+lz4", "png", "webp-lossless"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_frame_comes_back_exactly(name: str, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, channels, 20, 30)).astype(np.uint8)
    frame = pixels.astype(np.float32) / np.float32(255)
    assert np.array_equal(there_and_back(codec(name), frame), frame)
    assert codec(name).error_bound(frame) == pytest.approx(1 / 510, rel=1e-3)


@given(st.sampled_from(FIXED_RATE), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7))
def test_a_fixed_rate_is_what_is_sent(name: str, n: int, c: int, h: int, w: int) -> None:
    array = np.linspace(0, 1, n * c * h * w, dtype=np.float32).reshape(n, c, h, w)
    per_value, per_channel = {"raw": (4, 0), "fp16": (2, 0), "int8": (1, 0), "int8-channel": (1, 4), "uint8": (1, 0)}[name]
    assert codec(name).encode(array).size_bytes == per_value * array.size + per_channel * c == codec(name).size_bytes(array.shape)


def test_the_raw_frame_of_cifar_10() -> None:
    assert codec("uint8").size_bytes((1, 3, 32, 32)) == 3072
    assert codec("raw").size_bytes((1, 3, 32, 32)) == 12_288
    assert codec("jpeg").size_bytes((1, 3, 32, 32)) is None


@pytest.mark.parametrize("name", [n for n in standard_names() if "+" in n])
def test_what_compresses_well_becomes_small(name: str) -> None:
    """A frame with few different values shrinks, and unpacks to what the codec below gives, bit for bit."""
    frame = np.zeros((1, 3, 64, 64), np.float32)
    frame[:, :, 20:30, 20:30] = 0.5
    below = codec(name.partition("+")[0])
    encoded, inner = codec(name).encode(frame), below.encode(frame)
    assert encoded.size_bytes < inner.size_bytes / 20
    assert np.array_equal(there_and_back(codec(name), frame), below.decode(inner.arrays, inner.params))


@pytest.mark.parametrize("family", ["jpeg", "jpeg-progressive", "webp"])
def test_a_higher_quality_costs_bytes_and_brings_precision(family: str) -> None:
    frame = load_dataset("digits").x[7:8]
    qualities = [1, 10, 25, 50, 75, 90, 95]
    names = [f"{family}-{q}" for q in qualities]
    sizes = [codec(n).encode(frame).size_bytes for n in names]
    errors = [float(np.abs(there_and_back(codec(n), frame) - frame).mean()) for n in names]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2
    assert errors[-1] < errors[0] / 4 and errors[-1] < 0.02
    assert codec(family).encode(frame).size_bytes == sizes[qualities.index(75)] < frame.nbytes / 8


def test_progressive_jpeg_is_progressive() -> None:
    from PIL import Image

    frame = np.random.default_rng(0).random((1, 3, 32, 32)).astype(np.float32)
    for name, progressive in (("jpeg-50", False), ("jpeg-progressive-50", True)):
        with Image.open(io.BytesIO(codec(name).encode(frame).arrays[0].tobytes())) as image:
            assert image.format == "JPEG" and bool(image.info.get("progressive")) is progressive


@pytest.mark.parametrize("name", [n for n in standard_names() if n.startswith(("raw", "fp16"))])
def test_float_codecs_carry_what_is_not_finite(name: str) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    assert np.array_equal(there_and_back(codec(name), array), array, equal_nan=True)


@pytest.mark.parametrize("name", [n for n in standard_names() if not n.startswith(("raw", "fp16"))])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantisers_refuse_what_is_not_finite(name: str, bad: float) -> None:
    array = np.zeros((1, 3, 4, 4), np.float32)
    array[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        codec(name).encode(array)


@pytest.mark.parametrize("name", IMAGE)
def test_image_codecs_refuse_other_tensors_and_say_so_beforehand(name: str) -> None:
    for shape in ((1, 32, 8, 8), (64,), (1, 3, 8)):
        assert codec(name).misfit(shape)
        with pytest.raises(ValueError, match="encodes frames of shape"):
            codec(name).encode(np.zeros(shape, np.float32))
    assert codec(name).misfit((1, 3, 8, 8)) is None


def test_every_codec_states_what_it_is() -> None:
    for name, one in CODECS.items():
        assert one.name == name and one.description and one.bound and one.kind in ("tensor", "image")
        assert "\n" not in one.description
        if one.layout((1, 1, 8, 8)) is None:
            assert one.rate == "by content"
        else:
            first = one.rate.split()[0]
            assert one.size_bytes((1, 1, 1, 1000)) - 1000 * int(first) in (0, 4), one.rate  # 4: the channel's scale
        assert math.isinf(one.error_bound(np.zeros((1, 1, 8, 8), np.float32))) == (one.bound == "none promised")


def test_the_table_in_the_documentation_is_that_of_the_registry() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "codecs.md").read_text(encoding="utf-8")
    assert refreshed(page) == page, "run python -m testbed.inference.codecs.table docs/codecs.md"
    assert all(f"`{name}`" in page for name in standard_names() if "+" not in name)
