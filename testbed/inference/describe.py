"""A model's entry in the catalogue: stages, exits, costs, accuracy, calibration, and times on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.inference.codecs import CODECS
from testbed.inference.evaluate import ExitScore
from testbed.inference.graph import GraphModel, stage_times_s
from testbed.inference.staged import StagedModel, count_macs, stage_shapes

WIRE_SAMPLES = 200  # calibration samples whose payloads are averaged for the catalogue
WIRE_CODECS = ("raw", "raw+zstd", "fp16", "fp16+lz4", "fp16+zstd", "int8", "int8+lz4", "int8+zstd", "int8+zlib", "uint8",
               "uint8+lz4", "uint8+zstd", "jpeg", "webp", "png")


def measure(model: StagedModel, repeats: int = 60, warmup: int = 10) -> tuple[list[float], dict[int, float]]:
    """Median time of each stage, and of each exit head by stage index, for one sample on one thread, in seconds.

    The times are taken within runs of the whole model, so that each stage finds the caches as it would in use.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(model, GraphModel):
            return stage_times_s(model, repeats), {model.num_stages - 1: 0.0}
        stages: list[list[float]] = [[] for _ in model.stages]
        heads: dict[int, list[float]] = {int(index): [] for index in model.heads}
        sample = torch.rand(1, *model.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            for repeat in range(warmup + repeats):
                x = sample
                for index, stage in enumerate(model.stages):
                    begin = time.perf_counter()
                    x = stage(x)
                    middle = time.perf_counter()
                    if index in heads:
                        model.exit_logits(index, x)
                    if repeat >= warmup:
                        stages[index].append(middle - begin)
                        if index in heads:
                            heads[index].append(time.perf_counter() - middle)
    finally:
        torch.set_num_threads(threads)
    last = {model.num_stages - 1: 0.0}
    return [statistics.median(t) for t in stages], {i: statistics.median(t) for i, t in heads.items()} | last


def reference(machine: str) -> dict[str, Any]:
    """How reference times are taken, for the catalogue."""
    return {"machine": machine, "threads": 1, "torch": torch.__version__, "batch": 1, "statistic": "median"}


def describe(model: StagedModel, scores: Mapping[str, ExitScore], machine: str,
             counted: StagedModel | None = None) -> dict[str, Any]:
    """The catalogue's account of a model, timed now on one thread.

    `counted`: the model whose layers give MACs and parameters, where they differ from the timed one's (the float32 form of
    a quantised model: the same multiplications, on narrower numbers).
    """
    counted = counted or model
    stage_times, head_times = measure(model)
    shapes = stage_shapes(model)
    stages, exits = [], []
    x = torch.zeros(1, *model.input_shape)
    with torch.inference_mode():
        for index, (name, stage) in enumerate(zip(counted.stage_names, counted.stages, strict=True)):
            macs = count_macs(stage, x)
            x = stage(x)
            stages.append({"name": name, "shape": list(shapes[index]), "size_bytes": x.numel() * 4, "macs": macs,
                           "reference_time_s": round(stage_times[index], 7)})
            if index in model.exits:
                head = None if index == model.num_stages - 1 else model.heads[str(index)]
                score = scores[model.exits[index]]
                exits.append({"name": model.exits[index], "after": index,
                              "accuracy": round(score.accuracy, 4),
                              "accuracy_2000": round(score.accuracy_2000, 4), "temperature": round(score.temperature, 4),
                              "ece": round(score.ece, 4), "ece_calibrated": round(score.ece_calibrated, 4),
                              "parameters": sum(p.numel() for p in head.parameters()) if head else 0,
                              "macs": count_macs(head, x) if head else 0,
                              "reference_time_s": round(head_times[index], 7)})
    graph: dict[str, Any] = {}
    if isinstance(model, GraphModel):
        edges, vertex_bytes = model.dependencies()
        graph = {"edges": [list(edge) for edge in edges], "vertex_bytes": vertex_bytes}
    return {
        "input_shape": list(model.input_shape), "classes": int(x.shape[1]),
        "parameters": sum(p.numel() for p in counted.parameters()),
        "reference": reference(machine),
        "stages": stages, "exits": exits, **graph,
    }


def wire_bytes(model: StagedModel, samples: NDArray[np.float32], codecs: Sequence[str] = WIRE_CODECS,
               progress: Callable[[int, int], None] = lambda done, of: None) -> dict[str, list[int | None]]:
    """Mean payload of the tensor at each cut 0..num_stages in each codec, in bytes without the message's header.

    samples: (N, *input_shape), each sent by itself, as in a run. None where a codec is not made for the tensor; codecs for
    images are for cut 0 only, because what crosses a later cut has not the values of an image.
    """
    found: dict[str, list[int | None]] = {name: [] for name in codecs}
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(samples))  # (N, C, H, W)
        for cut in range(model.num_stages + 1):
            tensors = x.numpy()
            for name in codecs:
                codec = CODECS.named(name)
                fits = codec.misfit((1, *tensors.shape[1:])) is None and (codec.kind == "tensor" or cut == 0)
                sizes = [codec.encode(tensors[i:i + 1]).size_bytes for i in range(len(tensors))] if fits else []
                found[name].append(round(statistics.fmean(sizes)) if sizes else None)
            if cut < model.num_stages:
                x = model.run(x, cut, cut + 1)
            progress(cut + 1, model.num_stages + 1)
    return found


def fixed_wire_bytes(shapes: Sequence[tuple[int, ...]]) -> dict[str, list[int | None]]:
    """Payload at each cut in the codecs whose size does not depend on the content, for tensors of these shapes of one sample
    (cut 0: the input). None where a codec is not made for the tensor."""
    found: dict[str, list[int | None]] = {}
    for name in WIRE_CODECS:
        codec = CODECS.named(name)
        fits = [codec.misfit((1, *shape)) is None and (codec.kind == "tensor" or cut == 0) for cut, shape in enumerate(shapes)]
        sizes = [codec.size_bytes((1, *shape)) if fit else None for shape, fit in zip(shapes, fits, strict=True)]
        if any(size is not None for size in sizes):
            found[name] = sizes
    return found
