"""Logits of every exit over a whole split, computed once and kept in the cache."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError
from testbed.inference.catalogue import Catalogue
from testbed.inference.data import Split, dataset_sha256, load_dataset
from testbed.inference.memo import model_key
from testbed.measurement.atomic import write_bytes_atomic
from testbed.schema.data import cache_folder


@dataclass(frozen=True)
class SplitLogits:
    """Logits (N, classes) of every exit by name, in the order of the exits, and the labels (N,)."""

    exits: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]


def split_logits(catalogue: Catalogue, name: str, split: Split, folder: Path | None = None,
                 progress: Callable[[int, int], None] = lambda done, of: None) -> SplitLogits:
    """Logits of model `name` over a split of its own data set; `progress` gets samples done and in all.

    Kept below `folder` (`$XDG_CACHE_HOME/testbed/logits` by default), under what decides them: weights, code, data, torch.
    Raises InputError for an unknown model or one without exits, MissingToolError when the data are not there.
    """
    info = catalogue[name]
    data = load_dataset(info.dataset, split)
    about = f"{model_key(info, catalogue.path)} {info.dataset} {dataset_sha256(info.dataset)} {split}"
    kept = (folder or cache_folder("logits")) / f"{name}-{split}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.npz"
    found = _read(kept)
    if found is None:
        found = _computed(catalogue, name, split, progress)
        buffer = io.BytesIO()
        np.savez(buffer, **found)  # type: ignore[arg-type]  # arrays by name
        write_bytes_atomic(kept, buffer.getvalue())
    return SplitLogits(found, data.y)


def _computed(catalogue: Catalogue, name: str, split: Split,
              progress: Callable[[int, int], None]) -> dict[str, NDArray[np.float32]]:
    from testbed.inference.catalogue import load_model  # torch, only when there is something to compute
    from testbed.inference.evaluate import exit_logits
    from testbed.inference.staged import StagedModel

    model = load_model(catalogue, name).model
    if not isinstance(model, StagedModel):
        raise InputError("is a graph without exits", file=catalogue.path, key="model", value=name, remedy="choose a staged model")
    return exit_logits(model, load_dataset(catalogue[name].dataset, split), progress=progress)


def _read(path: Path) -> dict[str, NDArray[np.float32]] | None:
    try:
        with np.load(path) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError):
        return None
