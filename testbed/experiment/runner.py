"""Runs the trials of an experiment one after another, each in a sandbox of its own; skips what is complete."""

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
from testbed.experiment.store import COMPLETE, TrialFolder
from testbed.experiment.trials import Experiment, Trial
from testbed.measurement.atomic import write_json_atomic

Progress = Callable[[Trial, dict[str, Any]], None]
PROGRAM = (sys.executable, "-m", "testbed.experiment.trial")
SILENCE_S = 600


@dataclass(frozen=True)
class Result:
    """What became of a trial in this call."""

    trial: Trial
    folder: TrialFolder
    skipped: bool
    verdict: str | None
    error: str | None


def run_experiment(experiment: Experiment, root: Path, *, resume: bool = True, engine: str = "auto",
                   on_progress: Progress = lambda trial, event: None,
                   program: Sequence[str] = PROGRAM) -> list[Result]:
    """Run every trial that is not complete.

    Raises EmulationError when a folder is held by another run, MissingToolError when no container engine answers.

    A trial that fails is recorded and the next one runs; `KeyboardInterrupt` ends the running trial (marked
    `interrupted`, to be redone) and goes on to the caller. Complete trials are never touched, unless `resume` is off.
    `program` is what runs in the sandbox, with the trial's folder as its last argument.
    """
    results = []
    todo = [t for t in experiment.trials if not (resume and TrialFolder.of(root, t).is_complete)]
    if any(tier.runtime == "container" for t in todo for tier in t.scenario.topology.tiers):
        engine = choose_engine(engine).name  # answers before anything is touched, and is the same for all trials
    for trial in experiment.trials:
        folder = TrialFolder.of(root, trial)
        if resume and folder.is_complete:
            on_progress(trial, {"event": "skipped"})
            results.append(Result(trial, folder, True, folder.verdict, None))
            continue
        with folder.lock():
            folder.begin(trial)
            error = _run(trial, folder, engine, on_progress, program)
        results.append(Result(trial, folder, False, folder.verdict, error))
    return results


def _run(trial: Trial, folder: TrialFolder, engine: str, on_progress: Progress, program: Sequence[str]) -> str | None:
    container_run_id = f"{trial.scenario.name[:20]}-{trial.config_hash}-{trial.repeat}-{os.getpid()}"
    write_json_atomic(folder.path / "trial.json", {
        "container_run_id": container_run_id,
        "run_id": trial.run_id, "scenario": trial.scenario.name, "config_hash": trial.config_hash,
        "repeat": trial.repeat, "policy": trial.policy.name, "sweep_point": dict(trial.point),
        "config": trial.config(), "files": dict(trial.content_sha256), "engine": engine,
        "source": str(trial.source.resolve()), "command": sys.argv,
    })
    log = folder.path / "logs" / "trial.log"
    with ExitStack() as stack:
        stderr = stack.enter_context(open(log, "wb", buffering=0))
        stack.enter_context(Reaper(container_run_id, engine))
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        try:
            process = Sandbox.spawn([*program, str(folder.path)], stdout=writer, stderr=stderr, env=dict(os.environ), cwd=None)
        finally:
            os.close(writer)
        try:
            failure = _follow(process, reader, trial, on_progress)
            code = process.wait(30)
        except BaseException as stop:
            process.kill()
            folder.end(trial, "interrupted" if isinstance(stop, KeyboardInterrupt) else "failed",
                       error=f"{type(stop).__name__}: {stop}")
            raise
    if failure is None and code == 0:
        verdict = json.loads((folder.path / "manifest.json").read_text())["validity"]["verdict"]
        folder.end(trial, COMPLETE, verdict=verdict)
        return None
    error = failure or f"the trial's process ended with code {code}; see {log}"
    folder.end(trial, "failed", error=error)
    on_progress(trial, {"event": "failed", "error": error})
    return error


def _follow(process: SandboxProcess, reader: int, trial: Trial, on_progress: Progress) -> str | None:
    """Hand the trial's events on until its pipe closes; returns the error that it reported, if any."""
    pending, failure, last = b"", None, time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=1.0):
                if time.monotonic() - last > SILENCE_S:
                    raise EmulationError(f"the trial has said nothing for {SILENCE_S} s; it was ended")
                continue
            chunk = os.read(reader, 65536)
            if not chunk:
                return failure
            last = time.monotonic()
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # something else printed; it is no event
                if event.get("event") == "error":
                    failure = str(event.get("error"))
                on_progress(trial, event)
