"""Learned bottleneck of a cut: encoder and decoder networks, and their training with the model's weights frozen.

BottleNet++ (Shao and Zhang, "BottleNet++: An End-to-End Approach for Feature Compression in Device-Edge Co-Inference
Systems", ICC Workshops 2020): one convolution with batch normalisation and a sigmoid, the code quantised; one transposed
convolution with batch normalisation and a ReLU; trained end to end with the cross-entropy behind the rest of the model.
Here there is no channel model between the two: the transport delivers what was sent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.errors import InputError
from testbed.inference.catalogue import Catalogue, LoadedModel, ModelInfo, load_model
from testbed.inference.codecs.base import Codec
from testbed.inference.codecs.learned import Bottleneck, BottleneckInfo, code_shape, packed_bytes, write_bottleneck
from testbed.inference.data import Dataset, load_dataset
from testbed.inference.staged import StagedModel
from testbed.schema.data import cache_folder

Progress = Callable[[float, str], None]
"""Called with the epochs done (with fractions) and a text."""


class BottleneckNet(nn.Module):
    """Encoder and decoder for tensors of one shape.

    Parameters
    ----------
    shape: (C, H, W) of one sample's tensor.
    channels, stride: the code is channels x ceil(H / stride) x ceil(W / stride). Kernels have side 3, or 2 stride - 1
        for larger strides, so that every position is seen and restored.
    bits: of each value of the code.
    relu: whether the decoder ends in a ReLU (or in nothing).
    """

    def __init__(self, shape: Sequence[int], channels: int, stride: int, bits: int, relu: bool) -> None:
        super().__init__()
        kernel = max(3, 2 * stride - 1)
        left = ((shape[1] - 1) % stride, (shape[2] - 1) % stride)
        self.levels = 2**bits - 1
        self.encoder = nn.Sequential(nn.Conv2d(shape[0], channels, kernel, stride, kernel // 2, bias=False),
                                     nn.BatchNorm2d(channels), nn.Sigmoid())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(channels, shape[0], kernel, stride, kernel // 2, output_padding=left, bias=False),
            nn.BatchNorm2d(shape[0]), nn.ReLU() if relu else nn.Identity())

    def codes(self, x: Tensor) -> Tensor:
        """Tensor x (N, C, H, W) to integers 0 .. 2**bits - 1, as float32 (N, channels, h, w)."""
        return torch.round(self.encoder(x) * self.levels)

    def restore(self, codes: Tensor) -> Tensor:
        """The inverse of `codes`, nearly: (N, channels, h, w) to (N, C, H, W)."""
        restored: Tensor = self.decoder(codes / self.levels)
        return restored

    def forward(self, x: Tensor) -> Tensor:
        """restore(codes(x)), with the gradient of the rounding taken as 1 (straight-through estimator)."""
        soft = self.encoder(x)
        hard: Tensor = soft + (torch.round(soft * self.levels) / self.levels - soft).detach()
        restored: Tensor = self.decoder(hard)
        return restored


@dataclass(frozen=True)
class BottleneckRecipe:
    """How a bottleneck is shaped and trained: AdamW, learning rate falling as a cosine to nothing.

    Attributes
    ----------
    channels, stride, bits: of the code; see `BottleneckNet`.
    samples: training samples of an epoch, drawn anew for each; 0: all.
    reconstruction_epochs: epochs at the beginning in which the loss is the relative squared error of the tensor, which
        needs no pass through the rest of the model; the loss of the others is the cross-entropy.
    early_exit_weight: weight of the cross-entropy of exits behind the cut; the final exit's is 1.
    shift_pixels, flip: each batch is moved by up to so many pixels, and mirrored or not.
    bfloat16: the frozen model computes in bfloat16; the bottleneck in float32.
    """

    channels: int = 8
    stride: int = 2
    bits: int = 8
    epochs: int = 10
    samples: int = 0
    batch_size: int = 32
    learning_rate: float = 2e-2
    weight_decay: float = 1e-4
    reconstruction_epochs: int = 2
    early_exit_weight: float = 0.5
    shift_pixels: int = 2
    flip: bool = False
    bfloat16: bool = False


def check_cut(info: ModelInfo, cut: int, recipe: BottleneckRecipe) -> tuple[int, int, int]:
    """Shape (C, H, W) of the tensor at a cut. Raises InputError where a bottleneck cannot be."""
    if not 0 <= cut < info.num_stages:
        raise InputError(f"model {info.name} has no such cut before its last stage", key="--cut", value=cut,
                         remedy=f"use 0 to {info.num_stages - 1}")
    shape = info.shape_at(cut)
    if len(shape) != 3:
        raise InputError("the tensor there is not (C, H, W), which a bottleneck of convolutions needs", key="--cut",
                         value=cut, remedy=f"`testbed models cuts {info.name}` shows the tensors")
    if recipe.stride > min(shape[1:]):
        raise InputError(f"is larger than the tensor's side ({min(shape[1:])})", key="--stride", value=recipe.stride,
                         remedy="use a smaller stride")
    return shape[0], shape[1], shape[2]


def train(loaded: LoadedModel, cut: int, data: Dataset, recipe: BottleneckRecipe, seed: int,
          progress: Progress = lambda done, text: None, checkpoint: Path | None = None) -> tuple[BottleneckNet, bool]:
    """Train a bottleneck at a cut with the model frozen; returns it in evaluation mode, and whether it ends in a ReLU.

    `data` is the training split. With `checkpoint`, the state is written there after each epoch, and read first where it
    is there and belongs to this model, recipe and seed: an interrupted training ends as it would have without the break.
    Raises InputError.
    """
    shape = check_cut(loaded.info, cut, recipe)
    model = loaded.model.eval().requires_grad_(False)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    with torch.inference_mode():
        relu = bool(model.run(x[:256], 0, cut).min() >= 0)
    torch.manual_seed(seed)
    net = BottleneckNet(shape, recipe.channels, recipe.stride, recipe.bits, relu)
    optimiser = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    identity = hashlib.sha256(json.dumps([asdict(recipe), seed, cut, loaded.info.sha256, data.name, len(data)],
                                         sort_keys=True).encode()).hexdigest()
    begin = _resume(checkpoint, identity, net, optimiser)
    used = min(recipe.samples or len(x), len(x))
    steps = max(1, used // recipe.batch_size)
    for epoch in range(begin, recipe.epochs):
        net.train()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * recipe.batch_size:(step + 1) * recipe.batch_size]
            share = (epoch * steps + step) / (recipe.epochs * steps)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            frames = _augmented(x[index], recipe, generator)
            loss = _loss(model, net, cut, frames, y[index], recipe, epoch < recipe.reconstruction_epochs)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach())
            if step % 10 == 9:
                progress(epoch + (step + 1) / steps, f"loss {total / (step + 1):.3f}")
        progress(epoch + 1, f"loss {total / steps:.3f}")
        if checkpoint is not None:
            _save(checkpoint, {"identity": identity, "epoch": epoch + 1, "net": net.state_dict(),
                               "optimiser": optimiser.state_dict()})
    return net.eval().requires_grad_(False), relu


def _loss(model: StagedModel, net: BottleneckNet, cut: int, frames: Tensor, labels: Tensor, recipe: BottleneckRecipe,
          reconstruct: bool) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        features = model.run(frames, 0, cut)
    features = features.float()  # (N, C, H, W)
    restored: Tensor = net(features)
    if reconstruct:
        return F.mse_loss(restored, features) / features.var().clamp_min(1e-8)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        logits = exits_behind(model, cut, restored)
    losses = [F.cross_entropy(out.float(), labels) * (1.0 if i == len(logits) - 1 else recipe.early_exit_weight)
              for i, out in enumerate(logits.values())]
    return torch.stack(losses).sum()


def exits_behind(model: StagedModel, cut: int, x: Tensor) -> dict[str, Tensor]:
    """Logits of the exits behind a cut, by name, from the tensor x (N, C, H, W) at the cut."""
    found = {}
    for index in range(cut, model.num_stages):
        x = model.run(x, index, index + 1)
        if index in model.exits:
            found[model.exits[index]] = model.exit_logits(index, x)
    return found


def accuracy(loaded: LoadedModel, cut: int, data: Dataset, codec: Codec | None = None, batch: int = 100) -> dict[str, float]:
    """Accuracy of the exits behind a cut when the tensor there travels in `codec` (None: as it is)."""
    right: dict[str, int] = {}
    for begin in range(0, len(data), batch):
        with torch.inference_mode():
            features = loaded.model.run(torch.from_numpy(data.x[begin:begin + batch]), 0, cut)
            if codec is not None:
                encoded = codec.encode(features.numpy())
                features = torch.from_numpy(codec.decode(encoded.arrays, encoded.params))
            logits = exits_behind(loaded.model, cut, features)
        labels = torch.from_numpy(data.y[begin:begin + batch])
        for name, out in logits.items():
            right[name] = right.get(name, 0) + int((out.argmax(1) == labels).sum())
    return {name: round(count / len(data), 4) for name, count in right.items()}


def train_to_catalogue(catalogue: Catalogue, model: str, cut: int, *, variant: str | None = None, seed: int = 1,
                       recipe: BottleneckRecipe | None = None, threads: int = 1,
                       progress: Progress = lambda done, text: None) -> BottleneckInfo:
    """Train a bottleneck for a model of the catalogue; write its weights beside the catalogue and its entry into it.

    The entry's accuracies are on the test split, of the bytes that would travel. Raises InputError.
    """
    recipe = recipe or BottleneckRecipe()
    info = catalogue[model]
    shape = check_cut(info, cut, recipe)
    torch.set_num_threads(threads)
    loaded = load_model(catalogue, model)
    key = f"{model}@{cut}" + (f".{variant}" if variant else "")
    folder = catalogue.path.parent
    checkpoint = cache_folder("training") / f"bottleneck_{key}-{seed}.pt"
    net, relu = train(loaded, cut, load_dataset(info.dataset, "train"), recipe, seed, progress, checkpoint)
    from safetensors.torch import save

    data = save({k: v.contiguous() for k, v in net.state_dict().items()})
    size_bytes = packed_bytes(math.prod(code_shape(shape, recipe.channels, recipe.stride)), recipe.bits)
    test = load_dataset(info.dataset, "test")
    known: dict[str, Any] = {
        "key": key, "model": model, "cut": cut, "shape": shape, "channels": recipe.channels, "stride": recipe.stride,
        "bits": recipe.bits, "relu": relu, "weights": f"bottleneck_{key}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(), "model_sha256": info.sha256, "seed": seed, "recipe": asdict(recipe),
        "parameters": {name: sum(p.numel() for p in part.parameters())
                       for name, part in (("encoder", net.encoder), ("decoder", net.decoder))},
        "macs": _macs(shape, recipe), "size_bytes": size_bytes, "ratio": round(4 * math.prod(shape) / size_bytes, 2),
        "accuracy_without": accuracy(loaded, cut, test)}
    codec = Bottleneck(BottleneckInfo.model_validate({**known, "accuracy": known["accuracy_without"]}), catalogue.path, net)
    entry = BottleneckInfo.model_validate({**known, "accuracy": accuracy(loaded, cut, test, codec)})
    _write(folder / entry.weights, data)
    write_bottleneck(catalogue.path, entry)
    checkpoint.unlink(missing_ok=True)
    return entry


def _macs(shape: Sequence[int], recipe: BottleneckRecipe) -> dict[str, int]:
    """Multiply-accumulates of one sample: a transposed convolution has those of the convolution that it transposes."""
    _, h, w = code_shape(shape, recipe.channels, recipe.stride)
    side = max(3, 2 * recipe.stride - 1)
    macs = recipe.channels * h * w * shape[0] * side * side
    return {"encoder": macs, "decoder": macs}


def _augmented(frames: Tensor, recipe: BottleneckRecipe, generator: torch.Generator) -> Tensor:
    reach = recipe.shift_pixels
    dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    mirror = bool(torch.randint(0, 2, (1,), generator=generator)) and recipe.flip
    return torch.roll(frames.flip(3) if mirror else frames, (dy, dx), (2, 3))


def _resume(checkpoint: Path | None, identity: str, net: BottleneckNet, optimiser: torch.optim.Optimizer) -> int:
    """Epochs that a checkpoint of this very training has done, with its state loaded; 0 without one."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    try:
        saved: Mapping[str, Any] = torch.load(checkpoint, weights_only=True)
        if saved["identity"] != identity:
            return 0
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        return int(saved["epoch"])
    except Exception as error:  # torch raises many types for a file that is not its own
        raise InputError(f"is not a state of this training ({type(error).__name__})", file=checkpoint,
                         remedy="remove the file to begin anew") from None


def _save(checkpoint: Path, state: Mapping[str, Any]) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_name(checkpoint.name + ".new")
    torch.save(dict(state), temporary)
    temporary.replace(checkpoint)


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(file.name + ".new")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
