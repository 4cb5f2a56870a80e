"""Removes what a run leaves outside its sandbox (control groups, Docker containers), however it ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

from testbed.emulation import cgroup
from testbed.errors import TestbedError


class Reaper:
    """A small process outside the sandbox that waits for the end of a pipe that only we hold, then cleans up.

    It sees our end even when that is a kill -9. What it removes carries the run's id: nothing else is
    touched. Use as a context manager around the sandbox; leaving it waits until all is clean.
    """

    def __init__(self, run_id: str, engine: str) -> None:
        """engine: ``podman``, ``docker`` or ``process``."""
        self.run_id = run_id
        self.engine = engine
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "testbed.emulation.reaper", self.run_id, self.engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C does not reach it
            cwd="/",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30.0)


def clean(run_id: str, engine: str) -> None:
    """Remove all that carries this run's id; harmless when nothing is there."""
    if engine == "docker":
        from testbed.emulation.container_docker import remove_run

        with contextlib.suppress(TestbedError, subprocess.TimeoutExpired):
            remove_run(run_id)
    cgroup.remove_run(run_id)


def main() -> None:
    run_id, engine = sys.argv[1:3]
    # blocks until every holder of the other end has gone; nothing is ever written to it
    while os.read(0, 4096):
        pass
    clean(run_id, engine)


if __name__ == "__main__":
    main()
