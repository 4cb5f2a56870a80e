"""A model's entry in the catalogue: stages, exits, costs, accuracy, calibration, and times on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from testbed.inference.evaluate import ExitScore
from testbed.inference.graph import GraphModel, stage_times_s
from testbed.inference.staged import StagedModel, count_macs, stage_shapes


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
    return {
        "input_shape": list(model.input_shape), "classes": int(x.shape[1]),
        "parameters": sum(p.numel() for p in counted.parameters()),
        "reference": reference(machine),
        "stages": stages, "exits": exits,
    }
