"""The software-defined network on the kernel's Open vSwitch datapath, inside user-mode Linux."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kernel.uml import run_in_uml

PROJECT = Path(__file__).parents[2]


@pytest.mark.kernel
@pytest.mark.timeout(300)
def test_it_passes_its_own_tests_where_the_kernel_has_open_vswitch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "tests/emulation/test_sdn.py"]
    done = run_in_uml(command, folder=tmp_path, cwd=PROJECT, timeout_s=270, env={"TESTBED_DATAPATH": "system"})
    print(done.output)  # shown by pytest when this fails, and with -s
    assert done.returncode == 0, done.output[-6000:]
    assert "11 passed" in done.output and "skipped" not in done.output
