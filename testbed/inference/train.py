"""Training, evaluation and timing of staged models: what `testbed models train` and `cuts` do."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.inference.catalogue import builder, write_entry
from testbed.inference.data import Dataset, load_dataset
from testbed.inference.staged import StagedModel, count_macs, stage_shapes

Progress = Callable[[int, int, str], None]  # (epochs done, epochs, text)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW with a one-cycle schedule; the loss is the weighted sum over the exits."""

    epochs: int = 16
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    early_exit_weight: float = 0.75
    shift_pixels: int = 4  # random translation of the training frames, so that they are not learnt by heart


TRAINABLE: Mapping[str, tuple[str, str, Recipe]] = {
    "digits_branchy": ("testbed.inference.zoo.digits:build", "digits", Recipe()),
}


def train(model: StagedModel, data: Dataset, recipe: Recipe, seed: int, progress: Progress) -> None:
    """Train in place, single-threaded, so that the same seed gives the same weights on the same machine and torch."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = len(x) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate,
                                                   total_steps=recipe.epochs * steps)
    for epoch in range(recipe.epochs):
        model.train()
        order = torch.randperm(len(x), generator=generator)[: steps * recipe.batch_size].view(steps, -1)
        total = 0.0
        for index in order:
            dy, dx = torch.randint(-recipe.shift_pixels, recipe.shift_pixels + 1, (2,), generator=generator).tolist()
            frames = torch.roll(x[index], (dy, dx), (2, 3))
            logits = model.all_exits(frames)
            losses = [F.cross_entropy(out, y[index]) * (1.0 if name == "final" else recipe.early_exit_weight)
                      for name, out in logits.items()]
            loss = torch.stack(losses).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        progress(epoch + 1, recipe.epochs, f"loss {total / steps:.3f}")
    model.eval()


def evaluate(model: StagedModel, data: Dataset, threshold: float = 0.8) -> dict[str, Any]:
    """Accuracy of every exit, and share and accuracy when the first exit answers at `threshold` (max probability)."""
    model.eval()
    with torch.inference_mode():
        outputs = model.all_exits(torch.from_numpy(data.x))
    y = torch.from_numpy(data.y)
    result: dict[str, Any] = {name: float((out.argmax(1) == y).float().mean()) for name, out in outputs.items()}
    answer, left = torch.full_like(y, -1), torch.ones_like(y, dtype=torch.bool)
    shares = {}
    for name, out in outputs.items():
        probability, label = out.softmax(1).max(1)
        leaves = left & ((probability >= threshold) | torch.tensor(name == "final"))
        answer[leaves], shares[name] = label[leaves], float(leaves.float().mean())
        left &= ~leaves
    return {"accuracy": result, "threshold": threshold, "share": shares,
            "combined_accuracy": float((answer == y).float().mean())}


def median_time_s(call: Callable[[], object], repeats: int = 60, warmup: int = 10) -> float:
    """Median wall time of a call."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(model: StagedModel, repeats: int = 60) -> tuple[list[float], dict[int, float]]:
    """Median single-thread time of each stage, and of each exit head by stage index, for one sample, in seconds."""
    stages, heads = [], {}
    x = torch.rand(1, *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for index, stage in enumerate(model.stages):
            stages.append(median_time_s(_bound(stage, x), repeats))
            x = stage(x)
            if index in model.exits:
                heads[index] = 0.0 if str(index) not in model.heads \
                    else median_time_s(_bound(model.heads[str(index)], x), repeats)
    return stages, heads


def _bound(module: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        y: Tensor = module(x)
        return y
    return call


def describe(model: StagedModel, test: Dataset, machine: str) -> dict[str, Any]:
    """The catalogue's account of a model: stages, exits, costs, accuracies, and times on this machine."""
    stage_times, head_times = measure(model)
    scores = evaluate(model, test)
    shapes = stage_shapes(model)
    stages, exits = [], []
    x = torch.zeros(1, *model.input_shape)
    with torch.inference_mode():
        for index, (name, stage) in enumerate(zip(model.stage_names, model.stages, strict=True)):
            macs = count_macs(stage, x)
            x = stage(x)
            stages.append({"name": name, "shape": list(shapes[index]), "size_bytes": x.numel() * 4, "macs": macs,
                           "reference_time_s": round(stage_times[index], 7)})
            if index in model.exits:
                head = None if index == model.num_stages - 1 else model.heads[str(index)]
                exits.append({"name": model.exits[index], "after": index,
                              "accuracy": round(scores["accuracy"][model.exits[index]], 4),
                              "parameters": sum(p.numel() for p in head.parameters()) if head else 0,
                              "macs": count_macs(head, x) if head else 0,
                              "reference_time_s": round(head_times[index], 7)})
    return {
        "input_shape": list(model.input_shape), "classes": int(x.shape[1]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "reference": {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__,
                      "batch": 1, "statistic": "median"},
        "stages": stages, "exits": exits,
    }


def train_to_catalogue(name: str, catalogue: Path, *, machine: str, seed: int = 1, recipe: Recipe | None = None,
                       progress: Progress = lambda done, of, text: None) -> dict[str, Any]:
    """Train a shipped model, write its weights beside the catalogue and its entry into it; return the evaluation."""
    reference, dataset, standard = TRAINABLE[name]
    recipe = recipe or standard
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = builder(reference, catalogue)()
    train(model, load_dataset(dataset, "train"), recipe, seed, progress)
    from safetensors.torch import save

    data = save({k: v.contiguous() for k, v in model.state_dict().items()})
    test = load_dataset(dataset, "test")
    entry = {"builder": reference, "dataset": dataset, "weights": f"{name}.safetensors",
             "sha256": hashlib.sha256(data).hexdigest(), "seed": seed, "recipe": asdict(recipe),
             **describe(model, test, machine)}
    catalogue.parent.mkdir(parents=True, exist_ok=True)
    (catalogue.parent / f"{name}.safetensors").write_bytes(data)
    write_entry(catalogue, name, entry, "Models that nodes can load. Written by `testbed models train`; "
                "reference times are of the machine named.")
    return evaluate(model, test)
