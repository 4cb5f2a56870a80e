"""The folder of a trial: its status, its lock, and what resume may skip."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import EmulationError
from testbed.experiment.trials import Trial
from testbed.measurement.atomic import write_json_atomic

COMPLETE = "complete"


@dataclass(frozen=True)
class TrialFolder:
    """`runs/<scenario>/<config-hash>/<repeat>/`."""

    path: Path

    @classmethod
    def of(cls, root: Path, trial: Trial) -> TrialFolder:
        """The folder of `trial` below `root` (usually `runs/`)."""
        return cls(root / trial.scenario.name / trial.folder)

    def status(self) -> dict[str, Any]:
        """Content of status.json; {} when there is none or it is not readable."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    @property
    def is_complete(self) -> bool:
        """True when the trial ended, its manifest is there and the tables still have the size that was recorded."""
        status = self.status()
        if status.get("state") != COMPLETE:
            return False
        sizes = status.get("sizes", {})
        return bool(sizes) and all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == size for name, size in sizes.items())

    @property
    def verdict(self) -> str | None:
        """VALID or INVALID of a complete trial."""
        return self.status().get("verdict")

    def begin(self, trial: Trial) -> None:
        """Empty the folder (an unfinished trial leaves nothing worth keeping) and mark it running."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.name == "lock":
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        self._write({"state": "running", "started_unix_s": time.time()}, trial)

    def end(self, trial: Trial, state: str, *, verdict: str | None = None, error: str | None = None) -> None:
        """Record how the trial ended; `complete` also records the sizes of its files."""
        status: dict[str, Any] = {"state": state, "verdict": verdict, "error": error, "finished_unix_s": time.time()}
        if state == COMPLETE:
            names = [p for p in sorted(self.path.iterdir()) if p.is_file() and p.name not in ("status.json", "lock")]
            status["sizes"] = {p.name: p.stat().st_size for p in names}
        self._write(status, trial)

    def _write(self, status: dict[str, Any], trial: Trial) -> None:
        write_json_atomic(self.path / "status.json", {
            "run_id": trial.run_id, "config_hash": trial.config_hash, "repeat": trial.repeat,
            "policy": trial.policy.name, "sweep_point": dict(trial.point), **status})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; the kernel lets go of it however the holder dies. Raises EmulationError when it is held."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EmulationError(f"{self.path}: another `testbed run` is running this trial; wait for it, "
                                     "or give this one another folder with --runs") from None
            yield
        finally:
            os.close(handle)
