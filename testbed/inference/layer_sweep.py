"""Measuring layers of many sizes on this machine: what the regressions per layer type are fitted to."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from testbed.inference.regressors import KINDS, Layer, Regressor, Sample, describe_layer, fit

MAX_MACS = 40e6  # of one layer in the sweep, and
MAX_WEIGHTS = 3e6  # its weights: what models for small images have; larger layers are extrapolated
LAYERS_PER_KIND = 60
_WARMUP_PASSES = 2
_CHANNELS = (1, 3, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Case:
    """A layer with an input (1, ...) for it."""

    module: nn.Module
    x: Tensor
    layer: Layer


def draw_cases(kind: str, count: int, seed: int) -> list[Case]:
    """Layers of one type with sizes drawn over the whole range, within MAX_MACS and MAX_WEIGHTS."""
    draw = np.random.default_rng([seed, list(KINDS).index(kind)])
    cases: list[Case] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while len(cases) < count:
            channels, side = (int(draw.choice(values)) for values in (_CHANNELS, _SIDES))
            made = _draw_module(kind, channels, side, draw)
            if made is None:
                continue
            module, shape = made
            x = torch.rand(1, *shape)
            with torch.inference_mode():
                layer = describe_layer(module.eval(), x, module(x))
            assert layer is not None and layer.kind == kind
            cases.append(Case(module, x, layer))
    return cases


def _draw_module(kind: str, channels: int, side: int, draw: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]] | None:
    """A layer and the shape of its input; None when it would be too large."""
    image = (channels, side, side)
    if kind in ("convolution", "depthwise convolution"):
        kernel, stride = int(draw.choice((1, 3, 3, 5))), int(draw.choice((1, 1, 2)))
        depthwise = kind != "convolution"
        if depthwise and (kernel == 1 or channels == 1):
            return None  # one channel alone is an ordinary convolution
        filters = channels if depthwise else int(draw.choice(_CHANNELS))
        weights = kernel**2 * channels * (1 if depthwise else filters)
        if weights > MAX_WEIGHTS or weights * math.ceil(side / stride) ** 2 > MAX_MACS:
            return None
        return nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=channels if depthwise else 1), image
    if kind == "linear":
        inputs, outputs = (int(2 ** draw.uniform(3, 14)) for _ in range(2))
        return (nn.Linear(inputs, outputs), (inputs,)) if inputs * outputs <= MAX_WEIGHTS else None
    if kind == "pooling":
        if draw.random() < 0.2:
            return nn.AdaptiveAvgPool2d(1), image
        return (nn.MaxPool2d(2), image) if side > 1 else None
    return (nn.BatchNorm2d(channels) if kind == "normalisation" else nn.ReLU()), image


def measure_cases(cases: list[Case], passes: int, progress: Progress = lambda done, of: None) -> list[Sample]:
    """Median time of every layer over `passes` passes through all of them.

    One layer after the other, not each one in a loop: weights come from memory as they do in a model, while the input was just
    written, as the output of the layer before it.
    """
    times: list[list[float]] = [[] for _ in cases]
    with torch.inference_mode():
        for done in range(-_WARMUP_PASSES, passes):
            for case, found in zip(cases, times, strict=True):
                x = case.x.clone()
                begin = time.perf_counter()
                case.module(x)
                took = time.perf_counter() - begin
                if done >= 0:
                    found.append(took)
            progress(max(0, done + 1), passes)
    return [Sample(case.layer, statistics.median(found)) for case, found in zip(cases, times, strict=True)]


def fit_all(passes: int = 30, count: int = LAYERS_PER_KIND, seed: int = 1, threads: int = 1,
            progress: Progress = lambda done, of: None) -> dict[str, Regressor]:
    """Sweep all layer types on this machine and fit a regression to each. Sets torch's number of threads."""
    torch.set_num_threads(threads)
    cases = [case for kind in KINDS for case in draw_cases(kind, count, seed)]
    samples = measure_cases(cases, passes, progress)
    return {kind: fit([s for s in samples if s.layer.kind == kind], seed) for kind in KINDS}
