"""Real runs that several tests look at."""

from pathlib import Path

import pytest

from tests.running import run_short


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All five plans of the quickstart, 25 requests per device: (runs folder, what the terminal showed)."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, run_short(runs).stdout
