"""Measuring a compute profile: service times of every stage and exit head of a model on this machine, one sample each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from testbed.inference.catalogue import ModelInfo
from testbed.inference.staged import StagedModel

WARMUP_RUNS = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Spread:
    """Distribution of a service time, in seconds; `cv` is standard deviation over mean."""

    median_s: float
    p5_s: float
    p95_s: float
    cv: float

    @classmethod
    def of(cls, times_s: list[float]) -> Spread:
        """From single measurements."""
        p5, p95 = (float(p) for p in np.quantile(times_s, (0.05, 0.95)))
        mean = statistics.fmean(times_s)
        return cls(statistics.median(times_s), p5, p95, statistics.pstdev(times_s) / mean if mean else 0.0)

    def to_yaml(self) -> dict[str, Any]:
        """As a table of a profile has it."""
        return {"median": f"{self.median_s * 1e6:.1f}us", "p5": f"{self.p5_s * 1e6:.1f}us",
                "p95": f"{self.p95_s * 1e6:.1f}us", "cv": round(self.cv, 4)}


@dataclass(frozen=True)
class ModelProfile:
    """Spread of each stage, of each exit head by its exit's name, and of all stages in one go."""

    stages: tuple[Spread, ...]
    heads: dict[str, Spread]
    whole: Spread


def measure_profile(model: StagedModel, info: ModelInfo, *, threads: int = 1, repeats: int = 200, pause_s: float = 0.0,
                    progress: Progress = lambda done, of: None) -> ModelProfile:
    """Run one sample through all stages `repeats` times, each stage and head timed in its place in the chain.

    `pause_s` lies before each pass, as between sparse requests: caches and clock frequency are not those of a busy loop.
    Sets torch's number of threads.
    """
    torch.set_num_threads(threads)
    sample = torch.rand(1, *info.input_shape, generator=torch.Generator().manual_seed(0))
    stages: list[list[float]] = [[] for _ in info.stages]
    heads: dict[int, list[float]] = {e.after: [] for e in info.exits if e.after < info.num_stages - 1}
    whole: list[float] = []
    with torch.inference_mode():
        for done in range(-WARMUP_RUNS, repeats):
            time.sleep(pause_s)
            x, total = sample, 0.0
            for index in range(info.num_stages):
                begin = time.perf_counter()
                x = model.run(x, index, index + 1)
                took = time.perf_counter() - begin
                total += took
                if done >= 0:
                    stages[index].append(took)
                if index in heads:
                    begin = time.perf_counter()
                    model.exit_logits(index, x)
                    if done >= 0:
                        heads[index].append(time.perf_counter() - begin)
            if done >= 0:
                whole.append(total)
                progress(done + 1, repeats)
    return ModelProfile(tuple(map(Spread.of, stages)), {info.exit_after[i].name: Spread.of(t) for i, t in heads.items()},
                        Spread.of(whole))


def write_profile(path: Path, name: str, description: str, source: str, model: str, measured: ModelProfile) -> None:
    """Write a profile file that `compute: {profile: FILE}` takes."""
    data: dict[str, Any] = {
        "name": name, "description": description, "source": source,
        "table": {model: {f"{i}:{i + 1}": spread.to_yaml() for i, spread in enumerate(measured.stages)}}}
    if measured.heads:
        data["heads"] = {model: {exit_name: spread.to_yaml() for exit_name, spread in measured.heads.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {description}. Measured by `testbed profile`.\n"
                    + yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None), encoding="utf-8")
