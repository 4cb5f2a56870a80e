"""Train a shipped model by its recipe, and write its weights and its entries into a catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testbed.inference.catalogue import LoadedModel, builder, write_entry
from testbed.inference.data import Dataset, as_float, load_dataset
from testbed.inference.describe import WIRE_SAMPLES, describe, measure, reference, wire_bytes
from testbed.inference.evaluate import Logits, exit_curve, exit_logits, leave_at, score_exits
from testbed.inference.quantise import export_state, quantise
from testbed.inference.recipes import RECIPES, Recipe
from testbed.inference.staged import StagedModel
from testbed.inference.train import Progress, train
from testbed.inference.weights import pack, unpack
from testbed.schema.data import cache_folder
from testbed.schema.files import read_document

HEADER = "Models that nodes can load. Written by `testbed models train`; reference times are of the machine named."
_CALIBRATION_SAMPLES = 1024  # that the ranges of a quantised model are observed on


@dataclass(frozen=True)
class Published:
    """What was written: accuracy of each exit by catalogue entry, and how samples leave at a threshold of 0.8."""

    accuracy: Mapping[str, Mapping[str, float]]
    leaving: Mapping[str, Mapping[str, Any]]
    weights: tuple[Path, ...]


def checkpoint_of(name: str, seed: int) -> Path:
    """Where an interrupted training of this model is kept: below the user's cache folder."""
    return cache_folder("training") / f"{name}-{seed}.pt"


def train_to_catalogue(name: str, catalogue: Path, *, machine: str, seed: int = 1, recipe: Recipe | None = None,
                       progress: Progress = lambda done, of, text: None, checkpoint: Path | None = None) -> Published:
    """Train the shipped model `name`; write its weights beside the catalogue, and its entries (and int8 form) into it.

    With `checkpoint` an interrupted training goes on from its last whole epoch. Accuracy, calibration and shares are
    those of the weights as they are stored, on the whole test split. Raises KeyError for a name without a recipe.
    """
    recipe = recipe or RECIPES[name]
    build = builder(recipe.builder, catalogue)
    model = train(build, builder(recipe.training_builder or recipe.builder, catalogue),
                  load_dataset(recipe.dataset, "train"), recipe, seed, progress, checkpoint)
    data = pack(model.state_dict(), recipe.storage)
    stored = unpack(data)
    entries: list[tuple[str, str, str, bytes, str, StagedModel, StagedModel]] = []
    file = recipe.weights or f"{name}.safetensors"
    for entry, place in {name: recipe.builder, **recipe.also}.items():
        shipped = builder(place, catalogue)()
        shipped.load_state_dict({key: stored[key] for key in shipped.state_dict()})
        shipped.eval().requires_grad_(False)
        entries.append((entry, place, file, data, recipe.storage, shipped, shipped))
    if recipe.int8 is not None:
        entry, place = recipe.int8
        exact = entries[0][5]
        seen = torch.from_numpy(load_dataset(recipe.dataset, "train").x[:_CALIBRATION_SAMPLES])
        narrow = quantise(exact, seen)
        entries.append((entry, place, f"{entry}.safetensors", pack(export_state(narrow), "fp32"), "torch-int8", narrow,
                        exact))
    accuracy, leaving, written = {}, {}, []
    catalogue.parent.mkdir(parents=True, exist_ok=True)
    calibration, test = load_dataset(recipe.dataset, "calibration"), load_dataset(recipe.dataset, "test")
    for entry, place, weights, content, storage, shipped, counted in entries:
        logits = exit_logits(shipped, test)
        held_out = exit_logits(shipped, calibration)
        scores = score_exits(held_out, calibration.y, logits, test.y)
        text = {**describe(shipped, scores, machine, counted), **_statistics(shipped, held_out, calibration)}
        _write(catalogue.parent / weights, content)
        write_entry(catalogue, entry, {
            "builder": place, "dataset": recipe.dataset, "weights": weights, "storage": storage,
            "sha256": hashlib.sha256(content).hexdigest(), "seed": seed, "recipe": recipe.identity, **text}, HEADER)
        accuracy[entry] = {exit_name: score.accuracy for exit_name, score in scores.items()}
        leaving[entry] = leave_at(logits, test.y, 0.8)
        written.append(catalogue.parent / weights)
    return Published(accuracy, leaving, tuple(dict.fromkeys(written)))


def write_reference_times(loaded: LoadedModel, catalogue: Path, machine: str) -> float:
    """Measure a model's stages and heads on this machine, write the times into its entry; returns their sum in seconds.

    Every compute profile with a `slowdown` follows these times: do it on an idle machine.
    """
    entry = read_document(catalogue).data["models"][loaded.info.name]
    stages, heads = measure(loaded.model)
    for stage, time_s in zip(entry["stages"], stages, strict=True):
        stage["reference_time_s"] = round(time_s, 7)
    for exit_entry in entry["exits"]:
        exit_entry["reference_time_s"] = round(heads[exit_entry["after"]], 7)
    entry["reference"] = {**entry["reference"], **reference(machine)}
    write_entry(catalogue, loaded.info.name, entry, HEADER)
    return sum(stages)


def write_statistics(loaded: LoadedModel, catalogue: Path,
                     progress: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Any]:
    """Measure a model's exit curve and payload bytes on its calibration split, and write them into its entry; returns them."""
    entry = read_document(catalogue).data["models"][loaded.info.name]
    calibration = load_dataset(loaded.info.dataset, "calibration")
    held_out = exit_logits(loaded.model, calibration) if len(loaded.info.exits) > 1 else {}
    found = _statistics(loaded.model, held_out, calibration, progress)
    write_entry(catalogue, loaded.info.name, {**entry, **found}, HEADER)
    return found


def _statistics(model: StagedModel, held_out: Mapping[str, Logits], calibration: Dataset,
                progress: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Any]:
    """What policies may know of a model apart from its costs: how samples leave, and what its tensors weigh in each codec."""
    some = as_float(calibration.frames[:WIRE_SAMPLES])
    curve = {"exit_curve": exit_curve(held_out, calibration.y)} if len(held_out) > 1 else {}
    return {**curve, "wire_bytes": wire_bytes(model, some, progress=progress)}


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)
