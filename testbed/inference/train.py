"""Training of staged models by a recipe, phase by phase, with progress, and resume after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from testbed.inference.data import Dataset
from testbed.inference.recipes import Phase, Recipe
from testbed.inference.staged import FINAL_EXIT, StagedModel

Progress = Callable[[float, float, str], None]
"""Called with the epochs done (with fractions), the epochs in all, and a text."""

_BORDER = 4


def bfloat16_is_native() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def train(build: Callable[[], StagedModel], build_training: Callable[[], StagedModel], data: Dataset, recipe: Recipe,
          seed: int, progress: Progress, checkpoint: Path | None = None) -> StagedModel:
    """Train a model by a recipe; returns it in evaluation mode, in the form that `build` makes.

    With `checkpoint`, the state is saved there after each epoch and the file is read first when it is there and belongs
    to this recipe, seed and data; an interrupted training goes on from its last whole epoch and ends as it would have.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)
    identity = hashlib.sha256(json.dumps([recipe.identity, seed, data.name, len(data)], sort_keys=True).encode()).hexdigest()
    saved = _read(checkpoint, identity)
    epochs = sum(phase.epochs for phase in recipe.phases)
    model, before = build_training(), 0
    for number, phase in enumerate(recipe.phases):
        if number == 1 and recipe.fold:
            model = fold_batch_norms(model, build())
        if saved is None or saved["phase"] <= number:
            fit(model, data, recipe, phase, seed + number, _shifted(progress, before, epochs),
                saved if saved is not None and saved["phase"] == number else None,
                _writer(checkpoint, {"identity": identity, "phase": number}))
        before += phase.epochs
    return model.eval()


def fit(model: StagedModel, data: Dataset, recipe: Recipe, phase: Phase, seed: int,
        progress: Callable[[float, str], None], saved: Mapping[str, Any] | None = None,
        save: Callable[[dict[str, Any]], None] = lambda state: None) -> None:
    """Run one phase in place. The optimiser's state is part of what `save` gets after each epoch and `saved` brings back."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    choices: dict[str, list[nn.Module]] = {"all": [model], "stages": [model.stages], "exits": [model.heads]}
    parts = choices[phase.trains]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parameters = [p.requires_grad_(True) for part in parts for p in part.parameters()]
    optimiser: torch.optim.Optimizer
    if phase.optimiser == "sgd":
        optimiser = torch.optim.SGD(parameters, phase.learning_rate, momentum=0.9, nesterov=True,
                                    weight_decay=phase.weight_decay)
    else:
        optimiser = torch.optim.AdamW(parameters, phase.learning_rate, weight_decay=phase.weight_decay)
    steps = len(x) // phase.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, phase.learning_rate, total_steps=phase.epochs * steps)
    begin = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        begin = int(saved["epoch"])
    narrow = recipe.bfloat16 and bfloat16_is_native()
    sizes = [pixels for pixels, epochs in phase.sizes for _ in range(epochs)]
    for epoch in range(begin, phase.epochs):
        model.eval()
        for part in parts:
            part.train()
        order = torch.randperm(len(x), generator=generator)[: steps * phase.batch_size].view(steps, -1)
        total = 0.0
        for step, index in enumerate(order):
            frames = _augmented(x[index], recipe.augment, sizes[epoch], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                loss = _loss(model, frames, y[index], phase)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
            if step % 20 == 19:
                progress(epoch + (step + 1) / steps, f"loss {total / (step + 1):.3f}")
        progress(epoch + 1, f"loss {total / steps:.3f}")
        save({"epoch": epoch + 1, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
              "schedule": schedule.state_dict(), "generator": generator.get_state()})
    model.eval()


def _loss(model: StagedModel, frames: Tensor, labels: Tensor, phase: Phase) -> Tensor:
    if phase.trains == "exits":
        logits = _exits_of_frozen_stages(model, frames)
    elif set(phase.loss_weights) == {FINAL_EXIT}:
        logits = {FINAL_EXIT: model(frames)}
    else:
        logits = model.all_exits(frames)
    return torch.stack([weight * F.cross_entropy(logits[name], labels)
                        for name, weight in phase.loss_weights.items()]).sum()


def _exits_of_frozen_stages(model: StagedModel, frames: Tensor) -> dict[str, Tensor]:
    """Logits of the early exits; the stages are computed without gradients, and only as far as the last early exit."""
    inputs, x = {}, frames
    with torch.no_grad():
        for index in range(max(int(key) for key in model.heads) + 1):
            x = model.stages[index](x)
            if str(index) in model.heads:
                inputs[index] = x
    return {model.exits[index]: model.exit_logits(index, x) for index, x in inputs.items()}


def _augmented(frames: Tensor, kind: str, pixels: int, generator: torch.Generator) -> Tensor:
    """Moved, mirrored and resized frames (N, C, H, W), in channels-last order."""
    if kind == "shift":
        dy, dx = torch.randint(-_BORDER, _BORDER + 1, (2,), generator=generator).tolist()
        return torch.roll(frames, (dy, dx), (2, 3))
    n, _, height, width = frames.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    frames = torch.where(mirrored[:, None, None, None], frames.flip(3), frames)
    padded = F.pad(frames, (_BORDER,) * 4)
    top, left = torch.randint(0, 2 * _BORDER + 1, (2, n), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    cut = padded[torch.arange(n)[:, None, None, None], torch.arange(frames.shape[1])[None, :, None, None], rows, columns]
    if pixels not in (0, height):
        cut = F.interpolate(cut, (pixels, pixels), mode="bilinear", antialias=True)
    return cut.contiguous(memory_format=torch.channels_last)


def fold_batch_norms(trained: StagedModel, plain: StagedModel) -> StagedModel:
    """`plain` with the weights of `trained`, whose batch normalisations are folded into the layers before them.

    Both have the same stages and exits, but for the batch normalisations. In evaluation mode the result computes the
    same function. Raises ValueError when they do not match.
    """
    trained.eval()
    folded = _folded(trained)
    target = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if len(folded) != len(target):
        raise ValueError(f"{len(folded)} layers do not fit into {len(target)}")
    with torch.no_grad():
        for layer, into in zip(folded, target, strict=True):
            into.load_state_dict(layer.state_dict())
    return plain.eval()


def _folded(model: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], module)  # type: ignore[type-var]
        elif isinstance(module, nn.BatchNorm1d):
            layers[-1] = fuse_linear_bn_eval(layers[-1], module)  # type: ignore[type-var]
        elif isinstance(module, nn.Conv2d | nn.Linear):
            layers.append(module)
    return layers


def _read(checkpoint: Path | None, identity: str) -> dict[str, Any] | None:
    if checkpoint is None or not checkpoint.is_file():
        return None
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return state if state.get("identity") == identity else None


def _writer(checkpoint: Path | None, about: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    def write(state: dict[str, Any]) -> None:
        if checkpoint is None:
            return
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = checkpoint.with_suffix(".new")
        torch.save({**about, **state}, temporary)
        os.replace(temporary, checkpoint)
    return write


def _shifted(progress: Progress, before: int, epochs: int) -> Callable[[float, str], None]:
    def report(done: float, text: str) -> None:
        progress(before + done, epochs, text)
    return report
