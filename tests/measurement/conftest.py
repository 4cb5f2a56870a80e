"""Synthetic runs, made once per session and copied where a test changes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .fake_run import make_run


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic run of five policies, not to be changed."""
    return make_run(tmp_path_factory.mktemp("synthetic"), requests_per_device=70)


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> Path:
    """The same run, free to be changed."""
    return Path(shutil.copytree(pristine_run, tmp_path / "run"))


@pytest.fixture
def trial(run: Path) -> Path:
    """Its trial of the edge-only policy."""
    return run / "cfg10" / "0"
