"""Runs the trials of an experiment, each in a sandbox of its own, one or several at a time; skips what is complete."""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.emulation.container import choose_engine
from testbed.emulation.reaper import Reaper
from testbed.emulation.sandbox import Sandbox, SandboxProcess
from testbed.errors import EmulationError
from testbed.experiment.store import COMPLETE, TrialFolder, refuse_changed_content, run_folder
from testbed.experiment.trials import Experiment, Trial
from testbed.measurement.atomic import write_json_atomic

Progress = Callable[[Trial, dict[str, Any]], None]
PROGRAM = (sys.executable, "-m", "testbed.experiment.trial")
SILENCE_S = 600
END_S = 30  # from the end of a trial's events to the end of its process


@dataclass(frozen=True)
class Result:
    """What became of a trial in this call."""

    trial: Trial
    folder: TrialFolder
    skipped: bool
    verdict: str | None
    error: str | None


def run_experiment(experiment: Experiment, root: Path, *, resume: bool = True, engine: str = "auto", jobs: int = 1,
                   live: bool = False, on_progress: Progress = lambda trial, event: None,
                   program: Sequence[str] = PROGRAM) -> list[Result]:
    """Run every trial that is not complete, `jobs` at a time, in the order of the experiment.

    Raises EmulationError when a folder is held by another run, MissingToolError when no container engine answers,
    InputError when a finished trial was made with other content under the same names.

    A trial that fails is recorded and the next one runs; `KeyboardInterrupt` ends the running trials (marked
    `interrupted`, to be redone) and goes on to the caller. Complete trials are never touched: with `resume` off, all
    trials run into a new folder (`store.run_folder`). Must be called in a thread that outlives it (see Sandbox).
    `live` adds events `live` with the newest rows of links and nodes, twice a second while the load runs.
    `program` is what runs in the sandbox, with the trial's folder as its last argument.
    """
    run = run_folder(root, experiment.name, fresh=not resume)
    done, todo = split_complete(experiment, run, on_progress)
    if any(tier.runtime == "container" for t in todo for tier in t.scenario.topology.tiers):
        engine = choose_engine(engine).name  # answers before anything is touched, and is the same for all trials
    waiting = list(reversed(todo))
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        running: set[_Running] = set()
        stack.push(lambda kind, error, trace: _end_all(running, error))
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop()
                started = _Running(trial, TrialFolder.of(run, trial), engine, live, on_progress, program)
                running.add(started)
                started.start()
                selector.register(started.reader, selectors.EVENT_READ, started)
            for key, _ in selector.select(timeout=1.0):
                current: _Running = key.data
                if not current.read():
                    selector.unregister(current.reader)
                    done[current.trial.run_id] = current.finish()
                    running.discard(current)
            for current in running:
                current.check_silence()
    return [done[t.run_id] for t in experiment.trials]


def split_complete(experiment: Experiment, run: Path, on_progress: Progress) -> tuple[dict[str, Result], list[Trial]]:
    """Results of the trials that are complete in the folder `run`, and the trials to be run. Raises InputError."""
    refuse_changed_content(run, experiment.trials)
    done: dict[str, Result] = {}
    todo = []
    for trial in experiment.trials:
        folder = TrialFolder.of(run, trial)
        if folder.is_complete:
            on_progress(trial, {"event": "skipped"})
            done[trial.run_id] = Result(trial, folder, True, folder.verdict, None)
        else:
            todo.append(trial)
    return done, todo


class _Running:
    """A trial in its sandbox, from the lock of its folder to its last status."""

    def __init__(self, trial: Trial, folder: TrialFolder, engine: str, live: bool, on_progress: Progress,
                 program: Sequence[str]) -> None:
        self.trial = trial
        self._folder, self._engine, self._live = folder, engine, live
        self._on_progress, self._program = on_progress, program
        self._lock, self._stack = ExitStack(), ExitStack()
        self._process: SandboxProcess | None = None
        self._pending = b""
        self._failure: str | None = None
        self._began = self._last = time.monotonic()
        self._locked = False

    def start(self) -> None:
        """Take the folder, empty it, and start the trial's process."""
        stack, folder, trial = self._stack, self._folder, self.trial
        self._lock.enter_context(folder.lock())
        self._locked = True
        folder.begin(trial)
        # unique among all trials that run now: their groups of control and containers carry it
        container_run_id = f"{trial.scenario.name[:20]}-{trial.config_hash}-{trial.repeat}-{os.getpid()}"
        write_json_atomic(folder.path / "trial.json", {
            "container_run_id": container_run_id,
            "run_id": trial.run_id, "scenario": trial.scenario.name, "config_hash": trial.config_hash,
            "repeat": trial.repeat, "policy": trial.policy.name, "sweep_point": dict(trial.point),
            "config": trial.config(), "files": dict(trial.content_sha256), "engine": self._engine, "live": self._live,
            "own_model": None if trial.own_model is None else trial.own_model.model_dump(mode="json"),
            "source": str(trial.source.resolve()), "command": sys.argv,
        })
        stack.enter_context(Reaper(container_run_id, self._engine))
        self.reader, writer = os.pipe()
        stack.callback(os.close, self.reader)
        try:
            with open(self._log, "wb", buffering=0) as stderr:
                self._process = Sandbox.spawn([*self._program, str(folder.path)], stdout=writer, stderr=stderr,
                                              env=dict(os.environ), cwd=None)
        finally:
            os.close(writer)
        stack.callback(self._process.kill)

    @property
    def _log(self) -> Path:
        return self._folder.path / "logs" / "trial.log"

    def read(self) -> bool:
        """Hand on the events that are there; False when there will be no more."""
        chunk = os.read(self.reader, 65536)
        self._last = time.monotonic()
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # something else printed; it is no event
            if event.get("event") == "error":
                self._failure = str(event.get("error"))
            self._on_progress(self.trial, event)
        return bool(chunk)

    def check_silence(self) -> None:
        """Raises EmulationError when the trial has said nothing for too long."""
        if time.monotonic() - self._last > SILENCE_S:
            raise EmulationError(f"{self.trial.run_id} has said nothing for {SILENCE_S} s; it was ended")

    def finish(self) -> Result:
        """Wait for the process, clean up, and record the end."""
        assert self._process is not None
        folder, trial = self._folder, self.trial
        code = self._process.wait(END_S)
        self._stack.close()
        error = None
        if self._failure is None and code == 0:
            verdict = json.loads((folder.path / "manifest.json").read_text())["validity"]["verdict"]
            duration_s = time.monotonic() - self._began
            folder.end(trial, COMPLETE, verdict=verdict, duration_s=duration_s)
            self._on_progress(trial, {"event": "complete", "verdict": verdict, "duration_s": duration_s})
        else:
            error = self._failure or f"the trial's process ended with code {code}; see {self._log}"
            folder.end(trial, "failed", error=error)
            self._on_progress(trial, {"event": "failed", "error": error})
        self._lock.close()
        return Result(trial, folder, False, folder.verdict, error)

    def stop(self, error: BaseException) -> None:
        """End the trial's sandbox now, and record why."""
        self._stack.close()
        if self._locked:
            self._folder.end(self.trial, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                             error=f"{type(error).__name__}: {error}")
        self._lock.close()


def _end_all(running: set[_Running], error: BaseException | None) -> bool:
    """At the end of the loop nothing runs; after an exception or an interrupt, what still runs is ended."""
    for trial in list(running):
        trial.stop(error or EmulationError("the run ended"))
    return False
