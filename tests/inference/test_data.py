"""The digits: fixed splits without overlap, deterministic, and without loading torch or scikit-learn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.inference.data import SPLITS, enlarge, load_dataset


def test_splits_are_disjoint_and_make_up_all_1797_digits() -> None:
    splits = [load_dataset("digits", s) for s in SPLITS]
    assert [len(s) for s in splits] == [997, 300, 500]
    frames = {s.x[i].tobytes() for s in splits for i in range(len(s))}
    assert len(frames) == 1797  # no two digits are the same, so none is in two splits


def test_frames_are_camera_like() -> None:
    data = load_dataset("digits")
    assert data.x.shape == (500, 1, 64, 64) and data.x.dtype == np.float32
    assert data.x.min() >= 0 and data.x.max() <= 1 and set(data.y) == set(range(10))
    assert np.array_equal(data.x, load_dataset("digits").x)


def test_enlargement_is_bilinear() -> None:
    ramp = np.add.outer(np.arange(8), 10 * np.arange(8)).astype(np.float32)  # bilinear keeps a plane a plane
    grid = np.linspace(0, 7, 64)
    assert np.allclose(enlarge(ramp[None], 64)[0], np.add.outer(grid, 10 * grid), atol=1e-4)


def test_a_device_that_only_needs_data_loads_neither_torch_nor_sklearn() -> None:
    code = ("import sys; from testbed.inference.data import load_dataset; load_dataset('digits'); "
            "import testbed.serving.client, testbed.serving.execute, testbed.serving.worker, testbed.inference.compute; "
            "print([m for m in ('torch', 'sklearn', 'pandas') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "split", "key"), [("digitz", "test", "dataset"), ("digits", "tset", "split")])
def test_unknown_names_are_refused(name: str, split: str, key: str) -> None:
    with pytest.raises(InputError, match=f"{key}: there is no such"):
        load_dataset(name, split)  # type: ignore[arg-type]
