"""The samples of a trial: written once by the experiment, memory-mapped by every device program.

Devices need neither the data set nor what decodes it, and share the memory of the samples that they send.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testbed.inference.data import Dataset, as_float

_FRAMES, _LABELS, _INDICES = "inputs.frames.npy", "inputs.labels.npy", "inputs.indices.npy"


def write_inputs(folder: Path, data: Dataset, indices: Iterable[int]) -> None:
    """Write the samples of `data` that are used, each once, into three files in `folder`."""
    used = np.unique(np.fromiter(indices, np.int64))
    np.save(folder / _FRAMES, data.frames[used])
    np.save(folder / _LABELS, data.y[used])
    np.save(folder / _INDICES, used)


class Inputs:
    """The samples in `folder`, by their index in the data set."""

    def __init__(self, folder: str | Path) -> None:
        self._frames = np.load(Path(folder) / _FRAMES, mmap_mode="r", allow_pickle=False)
        self._labels: NDArray[np.int64] = np.load(Path(folder) / _LABELS, allow_pickle=False)
        indices = np.load(Path(folder) / _INDICES, allow_pickle=False)
        self._row = {int(index): row for row, index in enumerate(indices)}

    def sample(self, index: int) -> NDArray[np.float32]:
        """One sample, float32 (1, C, H, W) in [0, 1]. Raises KeyError for a sample that was not written."""
        row = self._row[index]
        return np.ascontiguousarray(as_float(self._frames[row:row + 1]))

    def label(self, index: int) -> int:
        """Its class. Raises KeyError."""
        return int(self._labels[self._row[index]])
