"""Data sets by name, as plain arrays: needs numpy only, so that a device program need not load torch."""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError, MissingToolError
from testbed.schema.data import data_root

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
_SPLIT_SEED = 20240  # fixes which sample belongs to which split; part of the data set's definition


@dataclass(frozen=True)
class Dataset:
    """Samples of one split: x float32 (N, C, H, W) in [0, 1], y int64 (N,)."""

    name: str
    split: Split
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.y)


def load_dataset(name: str, split: Split = "test") -> Dataset:
    """The named data set's split. Raises InputError for an unknown name or split."""
    if name not in DATASETS:
        raise InputError("there is no such data set", key="dataset", value=name,
                         remedy=f"use one of {', '.join(sorted(DATASETS))}")
    if split not in SPLITS:
        raise InputError("there is no such split", key="split", value=split, remedy=f"use one of {', '.join(SPLITS)}")
    return DATASETS[name](split)


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


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR's batches hold, numpy arrays and plain values, and nothing else: no code is ever called."""

    _ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
                          ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which no CIFAR-10 batch does")
        if module == "numpy.core.multiarray":
            return np.ndarray.__reduce__(np.empty(0))[0]
        return {"ndarray": np.ndarray, "dtype": np.dtype, "encode": codecs.encode}[name]


def _cifar10(split: Split) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 45,000 train and 5,000 calibration images from the training batches, 10,000 test."""
    root = data_root(Path.cwd() / "x")
    folder = (root or Path.home() / ".cache" / "testbed" / "data") / "cifar-10-batches-py"
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    images, labels = [], []
    for name in names:
        try:
            with open(folder / name, "rb") as stream:
                batch = _ArraysOnly(stream, encoding="bytes").load()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=folder / name,
                             remedy="set TESTBED_DATA to the folder that holds cifar-10-batches-py") from None
        images.append(np.asarray(batch[b"data"], np.uint8))
        labels.append(np.asarray(batch[b"labels"], np.int64))
    x, y = np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels)
    if split != "test":
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
        chosen = np.sort(order[:45_000] if split == "train" else order[45_000:])
        x, y = x[chosen], y[chosen]
    return Dataset("cifar10", split, x.astype(np.float32) / np.float32(255), y, 10)


DATASETS: dict[str, Callable[[Split], Dataset]] = {"digits": _digits, "cifar10": _cifar10}
