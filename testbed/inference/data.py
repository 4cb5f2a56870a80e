"""Data sets by name or path, as plain arrays: needs numpy only (and Pillow for a folder of images)."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError, MissingToolError
from testbed.inference.cifar10 import TRAINING, check_batch, file_digest, find_cifar10, read_batch

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
ImageSize = tuple[int, int]  # (height, width) in pixels
_SPLIT_SEED = 20240  # fixes which sample belongs to which split; part of the data set's definition


@dataclass(frozen=True)
class Dataset:
    """Samples of one split.

    `frames` (N, C, H, W) as they are stored: uint8, 0 to 255, possibly memory-mapped, or float32 in [0, 1].
    `y` int64 (N,). `classes` is how many there are; `class_names` names them where the data set does.
    """

    name: str
    split: Split
    frames: NDArray[Any]
    y: NDArray[np.int64]
    classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W)."""
        return tuple(self.frames.shape[1:])

    @cached_property
    def x(self) -> NDArray[np.float32]:
        """All samples, float32 (N, C, H, W) in [0, 1]: four times the memory of uint8 frames. For training."""
        return as_float(self.frames)

    def sample(self, index: int) -> NDArray[np.float32]:
        """One sample, float32 (1, C, H, W) in [0, 1]."""
        return as_float(self.frames[index:index + 1])


def as_float(frames: NDArray[Any]) -> NDArray[np.float32]:
    """Frames as the models take them: float32 in [0, 1]; uint8 is divided by 255."""
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / np.float32(255)
    return np.asarray(frames, np.float32)


def load_dataset(name: str, split: Split = "test", image_size: ImageSize | None = None) -> Dataset:
    """A split of the data set `name`: one of DATASETS, or the path of a user's `.npz` file or folder of images.

    `image_size` goes with a folder of images: they are resized to it. Raises InputError, or MissingToolError when the
    data are not on this machine.
    """
    if split not in SPLITS:
        raise InputError("there is no such split", key="split", value=split, remedy=f"use one of {', '.join(SPLITS)}")
    if is_path(name):
        from testbed.inference.own_data import load_own

        return load_own(Path(name), split, image_size)
    if name not in DATASETS:
        raise InputError("there is no such data set", key="dataset", value=name,
                         remedy=f"use one of {', '.join(sorted(DATASETS))}, or the path of your own: a file.npz, or a "
                                "folder of images written with a slash, such as ./photos")
    if image_size is not None:
        raise InputError("belongs to a folder of images", key="image_size", value=list(image_size),
                         remedy=f"{name} has frames of one size; remove it")
    return DATASETS[name](split)


def is_path(name: str) -> bool:
    """Whether a scenario's `dataset:` is a path (it has a slash or ends in .npz) and not a name."""
    return "/" in name or name.endswith(".npz")


def dataset_sha256(name: str) -> str:
    """Digest of the content of a data set (test split of the named ones). Raises as `load_dataset` does."""
    if is_path(name):
        from testbed.inference.own_data import own_sha256

        return own_sha256(Path(name))
    if name == "cifar10":
        file = find_cifar10() / "test_batch"
        check_batch(file)
    else:
        file = _digits_file()
    return file_digest(file, "sha256", file.stat().st_mtime_ns)


@cache
def _digits_file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # finds the folder without importing the package
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return file
    raise MissingToolError("scikit-learn's bundled digits are not there", remedy="pip install scikit-learn")


def enlarge(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bilinear enlargement of square images (N, h, h) to (N, size, size), corners aligned."""
    h = images.shape[-1]
    position = np.linspace(0, h - 1, size)
    low = np.minimum(position.astype(int), h - 2)
    weight = np.zeros((size, h), np.float32)
    weight[np.arange(size), low] = 1 - (position - low)
    weight[np.arange(size), low + 1] = position - low
    return np.asarray(weight @ images @ weight.T, np.float32)


def _digits(split: Split) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, ENLARGED to camera-like frames of 1x64x64.

    The enlargement adds no information; it gives frames (16,384 bytes as float32) and layers of a size worth sending.
    Split, fixed: 997 train, 300 calibration, 500 test.
    """
    with gzip.open(_digits_file(), "rt", encoding="ascii") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)  # (1797, 65): 64 pixels 0..16, then the class
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(table))
    bounds = {"train": (0, 997), "calibration": (997, 1297), "test": (1297, 1797)}[split]
    chosen = table[order[slice(*bounds)]]
    frames = enlarge(chosen[:, :64].reshape(-1, 8, 8) / np.float32(16), 64)
    return Dataset("digits", split, np.ascontiguousarray(frames[:, None]), chosen[:, 64].astype(np.int64), 10)


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _cifar10(split: Split) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 45,000 train and 5,000 calibration images from the training batches, 10,000 test.

    The test images stay in the file (memory-mapped): processes that use them share their memory.
    """
    folder = find_cifar10()
    if split == "test":
        frames, y = read_batch(folder / "test_batch")
        return Dataset("cifar10", split, frames, y, 10, _CIFAR10_CLASSES)
    batches = [read_batch(folder / name) for name in TRAINING]
    y = np.concatenate([labels for _, labels in batches])
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    chosen = np.sort(order[:45_000] if split == "train" else order[45_000:])
    frames = np.concatenate([pixels for pixels, _ in batches])[chosen]
    return Dataset("cifar10", split, frames, y[chosen], 10, _CIFAR10_CLASSES)


DATASETS: dict[str, Callable[[Split], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
