"""The folders of a run and of its trials: status, lock, what resume may skip, and what it must refuse."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import EmulationError, InputError
from testbed.experiment.trials import Trial
from testbed.measurement.atomic import write_json_atomic

COMPLETE = "complete"


def run_folder(root: Path, name: str, *, fresh: bool = False) -> Path:
    """The folder of a scenario's run below `root`: `quickstart`, or the newest of `quickstart.2`, `quickstart.3`, ...

    `fresh`: the next one that does not exist. Nothing is made. A dot cannot stand in a scenario's name, so
    folders of two scenarios are never the same.
    """
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)")
    found = [int(match[1]) for match in (pattern.fullmatch(p.name) for p in root.glob(f"{name}.*")) if match]
    last = max(found, default=1 if (root / name).exists() else 0)
    number = max(1, last + 1 if fresh else last)
    return root / (name if number == 1 else f"{name}.{number}")


@dataclass(frozen=True)
class TrialFolder:
    """`runs/<scenario>/<config-hash>/<repeat>/`."""

    path: Path

    @classmethod
    def of(cls, run: Path, trial: Trial) -> TrialFolder:
        """The folder of `trial` in the folder of its run."""
        return cls(run / trial.folder)

    def status(self) -> dict[str, Any]:
        """Content of status.json; {} when there is none or it is not readable."""
        return _object(self.path / "status.json")

    @property
    def is_complete(self) -> bool:
        """True when the trial ended, its manifest is there and the tables still have the size that was recorded."""
        status = self.status()
        if status.get("state") != COMPLETE:
            return False
        sizes = status.get("sizes", {})
        return "manifest.json" in sizes and all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == size for name, size in sizes.items())

    @property
    def verdict(self) -> str | None:
        """VALID or INVALID of a complete trial."""
        return self.status().get("verdict")

    def begin(self, trial: Trial) -> None:
        """Mark the trial running, then empty the folder: an unfinished trial leaves nothing worth keeping."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write({"state": "running", "started_unix_s": time.time()}, trial)  # first: what is half emptied is no result
        for entry in self.path.iterdir():
            if entry.name in ("lock", "status.json"):
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.path / "logs").mkdir()

    def end(self, trial: Trial, state: str, *, verdict: str | None = None, error: str | None = None,
            duration_s: float | None = None) -> None:
        """Record how the trial ended; `complete` also records the sizes of its files."""
        status: dict[str, Any] = {"state": state, "verdict": verdict, "error": error, "finished_unix_s": time.time(),
                                  "duration_s": duration_s}
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


def complete_trials(run: Path) -> list[TrialFolder]:
    """Folders of all complete trials of a run, whatever the scenario says now."""
    return [f for f in (TrialFolder(p.parent) for p in sorted(run.glob("*/*/status.json"))) if f.is_complete]


def refuse_changed_content(run: Path, trials: Sequence[Trial]) -> None:
    """Finished trials of the same configuration, whose files had other content, are not mixed with new ones.

    Compared are the configuration and the hashes that stand in the finished trial's trial.json. Raises InputError that
    names the file.
    """
    planned = {_settings(t.config(), t.repeat): t for t in trials}
    for folder in complete_trials(run):
        spec = _object(folder.path / "trial.json")
        trial = planned.get(_settings(spec.get("config") or {}, spec.get("repeat")))
        if trial is None:
            continue
        then = spec.get("files") or {}
        changed = sorted(name for name in {*then, *trial.content_sha256} if then.get(name) != trial.content_sha256.get(name))
        if changed:
            was, now = then.get(changed[0]), trial.content_sha256.get(changed[0])
            fresh = run_folder(run.parent, trial.scenario.name, fresh=True)
            raise InputError(
                f"has changed since {folder.path} was made (sha256 {_short(was)} then, {_short(now)} now), and its results "
                "are not mixed with new ones", file=changed[0],
                remedy=f"put the file back, or give --fresh: all trials then run into {fresh}, and the finished ones stay")


def _settings(config: dict[str, Any], repeat: Any) -> str:
    """What must be equal for two trials to be the same question: all but words and the number of repeats."""
    kept = {k: v for k, v in config.items() if k not in ("description", "repeats", "oracle")}
    return json.dumps([kept, repeat], sort_keys=True)


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
