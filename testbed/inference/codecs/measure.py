"""Codecs on a model's own tensors: bytes, error and time at each cut, over calibration samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.inference.catalogue import LoadedModel
from testbed.inference.codecs.base import Codec
from testbed.inference.codecs.learned import Bottleneck
from testbed.inference.codecs.lossless import Lossless
from testbed.inference.codecs.registry import Registry


@dataclass(frozen=True)
class Measured:
    """One codec at one cut: mean bytes on the wire without the message header, how many times smaller than float32 that
    is, largest absolute error of any value, and median times of one sample on this machine."""

    cut: int
    codec: str
    size_bytes: float
    ratio: float
    error: float
    encode_s: float
    decode_s: float


def carries(codec: Codec, model: LoadedModel, cut: int) -> bool:
    """Whether a codec is made for the tensor at this cut of this model."""
    inner = codec.inner if isinstance(codec, Lossless) else codec
    if isinstance(inner, Bottleneck) and (inner.info.model, inner.info.cut) != (model.info.name, cut):
        return False
    # an image codec is for what has the values of an image: the input
    return codec.misfit((1, *model.info.shape_at(cut))) is None and (codec.kind == "tensor" or cut == 0)


def measure(model: LoadedModel, samples: NDArray[np.float32], codecs: Registry, names: Sequence[str], cuts: Sequence[int],
            progress: Callable[[int, int], None] = lambda done, of: None) -> Iterator[Measured | tuple[int, str]]:
    """Measure codecs at cuts on samples (N, C, H, W); yields (cut, name) where a codec is not made for the tensor."""
    done, total = 0, len(cuts) * len(names)
    for cut in cuts:
        with torch.inference_mode():
            tensors = [model.model.run(torch.from_numpy(samples[i:i + 1]), 0, cut).numpy() for i in range(len(samples))]
        for name in names:
            codec = codecs.named(name)
            yield _measured(cut, codec, tensors) if carries(codec, model, cut) else (cut, name)
            done += 1
            progress(done, total)


def _measured(cut: int, codec: Codec, tensors: Sequence[NDArray[np.float32]]) -> Measured:
    first = codec.encode(tensors[0])  # the first call imports libraries and loads weights
    codec.decode(first.arrays, first.params)
    sizes, errors, encode_s, decode_s = [], [], [], []
    for tensor in tensors:
        begin = time.perf_counter()
        encoded = codec.encode(tensor)
        middle = time.perf_counter()
        back = codec.decode(encoded.arrays, encoded.params)
        end = time.perf_counter()
        sizes.append(encoded.size_bytes)
        errors.append(float(np.abs(back - tensor).max()))
        encode_s.append(middle - begin)
        decode_s.append(end - middle)
    size = statistics.mean(sizes)
    return Measured(cut, codec.name, size, tensors[0].nbytes / size, max(errors), statistics.median(encode_s),
                    statistics.median(decode_s))
