"""Inference delivery networks to try: the model catalogue, trees of tiers, and the presets I and II.

The presets follow what is remembered of the paper's evaluation (about 36 nodes in five tiers with 24 base stations; about five
nodes in a chain; round trips of about 6, 6, 15 and 40 ms; two classes of accelerators). They are **not confirmed**: no
source with the settings was at hand. Chosen here: how many nodes each tier has, budgets, and the memory of a loaded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from testbed.errors import InputError
from testbed.placement.problem import Problem, Sharing

Accelerator = Literal["lower", "upper"]


@dataclass(frozen=True)
class Variant:
    """One detector: accuracy (mAP@0.5 on COCO, points), weights file, frames per second on the two accelerators."""

    name: str
    accuracy: float
    size_bytes: float
    lower_fps: float  # GeForce RTX 2070
    upper_fps: float  # Tesla V100


# Accuracy, file sizes and frame rates: README of AlexeyAB/darknet, but for the rates that no table there has, which are the
# other accelerator's times or over 1.9 (the mean ratio V100 / RTX 2070 of the four yolov4 rows): yolov4-csp on RTX 2070,
# enet-coco and the tiny models on V100.
CATALOGUE: tuple[Variant, ...] = (
    Variant("yolov4x-mish-640", 67.9, 381e6, 23, 50),
    Variant("yolov4-csp-640", 66.2, 202e6, 70 / 1.9, 70),
    Variant("yolov4-608", 65.7, 245e6, 34, 62),
    Variant("yolov4-512", 64.9, 245e6, 45, 83),
    Variant("yolov4-csp-512", 64.8, 202e6, 93 / 1.9, 93),
    Variant("yolov4-416", 62.8, 245e6, 55, 96),
    Variant("yolov4-320", 60.0, 245e6, 63, 123),
    Variant("enet-coco-416", 45.5, 18.3e6, 55, 55 * 1.9),
    Variant("yolov4-tiny-416", 40.2, 23.1e6, 330, 330 * 1.9),
    Variant("yolov3-tiny-416", 33.1, 33.7e6, 345, 345 * 1.9),
)


RUNTIME_BYTES = 500e6  # memory of a loaded detector beside its weights file: assumed, measure it per container


@dataclass(frozen=True)
class Tier:
    """One tier of a tree, from the access tier to the single root.

    `nodes`, how many; `rtt_ms`, round trip to the tier above (of the root: not used); `budget_bytes` per node; inf = holds
    every model.
    """

    name: str
    nodes: int
    rtt_ms: float
    budget_bytes: float
    accelerator: Accelerator


TOPOLOGIES: dict[str, tuple[Tier, ...]] = {
    "I": (Tier("base-station", 24, 6.0, 4e9, "lower"), Tier("central-office", 6, 6.0, 8e9, "lower"),
          Tier("regional-office", 3, 15.0, 16e9, "upper"), Tier("isp", 2, 40.0, 24e9, "upper"),
          Tier("cloud", 1, 0.0, np.inf, "upper")),
    "II": (Tier("base-station", 1, 6.0, 4e9, "lower"), Tier("central-office", 1, 6.0, 8e9, "lower"),
           Tier("regional-office", 1, 15.0, 16e9, "upper"), Tier("isp", 1, 40.0, 24e9, "upper"),
           Tier("cloud", 1, 0.0, np.inf, "upper")),
}


def tree(tiers: Sequence[Tier], *, tasks: int = 20, copies: int = 3, alpha_ms: float = 1.0, slot_s: float = 60.0,
         catalogue: Sequence[Variant] = CATALOGUE, runtime_bytes: float = RUNTIME_BYTES,
         sharing: Sharing = "proportional") -> Problem:
    """A tree whose last tier is one node, the repository of every task. Raises InputError.

    Every task has the catalogue's variants, each in `copies` copies (so that a node can add capacity); a loaded model takes its
    weights file and `runtime_bytes`. Node k of a tier
    of n hangs below node floor(k * N / n) of the tier above with N nodes. The repository holds the most accurate variant
    of every task for ever, with unlimited capacity; elsewhere a copy serves fps * slot_s requests per slot, in 1 / fps.
    Request types: every task at every node of the first tier, type = node * tasks + task.
    """
    if not tiers or tiers[-1].nodes != 1:
        raise InputError("the last tier is not one node", key="tiers", value=[t.nodes for t in tiers],
                         remedy="end with a tier of one node: the repository")
    if tasks < 1 or copies < 1:
        raise InputError("there is nothing to serve", key="tasks, copies", value=(tasks, copies), remedy="use at least 1 each")
    first = np.cumsum([0, *(t.nodes for t in tiers)])
    tier = np.repeat(np.arange(len(tiers)), [t.nodes for t in tiers])
    count, v = tasks * len(catalogue) * copies, int(first[-1])
    variant = np.tile(np.repeat(np.arange(len(catalogue)), copies), tasks)
    task = np.repeat(np.arange(tasks), len(catalogue) * copies)
    names = tuple(f"t{i}/{catalogue[k].name}#{c}" for i in range(tasks) for k in range(len(catalogue)) for c in range(copies))
    fps = np.array([[getattr(c, f"{t.accelerator}_fps") for c in catalogue] for t in tiers])[tier][:, variant]  # (V, M)
    size = np.broadcast_to(np.array([c.size_bytes + runtime_bytes for c in catalogue])[variant], (v, count)).copy()
    best = int(np.argmax([c.accuracy for c in catalogue]))
    pinned = np.zeros((v, count), dtype=bool)
    pinned[-1, (np.arange(tasks) * len(catalogue) + best) * copies] = True
    budget = np.minimum(np.array([t.budget_bytes for t in tiers])[tier], size.sum(axis=1))
    entry = np.repeat(np.arange(tiers[0].nodes), tasks)
    path = np.zeros((len(entry), len(tiers)), dtype=int)
    path[:, 0] = entry
    for depth in range(1, len(tiers)):
        below = path[:, depth - 1] - first[depth - 1]
        path[:, depth] = first[depth] + below * tiers[depth].nodes // tiers[depth - 1].nodes
    trip = np.broadcast_to(np.cumsum([0.0, *(t.rtt_ms for t in tiers[:-1])]), path.shape).copy()
    nodes = tuple(f"{t.name}{k}" if t.nodes > 1 else t.name for t in tiers for k in range(t.nodes))
    return Problem(nodes, tier, tuple(t.name for t in tiers), names, task, np.array([c.accuracy for c in catalogue])[variant],
                   size, 1000.0 / fps, np.where(pinned, np.inf, fps * slot_s), budget, pinned,
                   np.tile(np.arange(tasks), tiers[0].nodes), path, trip, alpha_ms, sharing)
