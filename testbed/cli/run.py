"""`testbed run`: run a scenario, trial by trial, and end with a table, a verdict and the path of the report."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import typer

from testbed.cli.options import parse_settings

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def run(
    file: Path = typer.Argument(..., help="scenario file"),
    settings: list[str] = typer.Option([], "--set", help="key=value, or key=a,b,c as a sweep (dotted keys)"),
    runs: Path = typer.Option(Path("runs"), help="folder that receives the results"),
    engine: str = typer.Option("auto", help="container engine: auto, podman or docker"),
    resume: bool = typer.Option(True, help="skip trials that are complete"),
    dry_run: bool = typer.Option(False, "--dry-run", help="print the trials and stop"),
) -> None:
    """Run the trials of FILE; exit code 0 when all ran (VALID or not), 4 when one failed, 2 for bad input."""
    from testbed.errors import InputError
    from testbed.experiment.trials import plan_experiment

    if engine not in ("auto", "podman", "docker"):
        raise InputError("is no container engine", key="--engine", value=engine, remedy="use auto, podman or docker")
    overrides, sweep = parse_settings(settings)
    experiment = plan_experiment(file, overrides, sweep)
    if dry_run:
        for trial in experiment.trials:
            print(f"{trial.run_id}  {trial.label}")
        print(f"{len(experiment.trials)} trials, about {_duration(sum(map(expected_s, experiment.trials)))}")
        return
    raise typer.Exit(_run(experiment, runs, resume, engine))


def expected_s(trial: Any) -> float:
    """Rough duration of a trial in seconds: start-up, calibration and the load."""
    load = trial.scenario.load
    return float(12 + trial.scenario.calibration.iperf_time * 2
                 + (load.requests_per_device + load.warmup_requests) / load.rate_per_s)


def _run(experiment: Any, runs: Path, resume: bool, engine: str) -> int:
    from rich.console import Console

    from testbed.cli.progress import RunProgress
    from testbed.experiment.runner import run_experiment
    from testbed.measurement.report import render_report
    from testbed.measurement.summary import summarise_run
    from testbed.measurement.terminal import terminal_table

    console = Console() if sys.stdout.isatty() else Console(width=max(110, shutil.get_terminal_size((110, 24)).columns))
    signal.signal(signal.SIGTERM, _as_interrupt)
    began = time.monotonic()
    try:
        with RunProgress(console, experiment, expected_s) as progress:
            results = run_experiment(experiment, runs, resume=resume, engine=engine, on_progress=progress.event)
    except KeyboardInterrupt:
        print("interrupted; finished trials stay finished, the same command goes on from here", file=sys.stderr)
        return 130
    folder = runs / experiment.name
    done = [r for r in results if r.error is None]
    skipped = sum(r.skipped for r in results)
    if done:
        folders = [r.folder.path for r in done]
        summarise_run(folder, trials=folders)
        report = render_report(folder, trials=folders)
        for part in terminal_table(folder, trials=folders, report=report):
            console.print(part)
    for result in results:
        if result.error is not None:
            console.print(f"[red]failed[/red] {result.trial.label}: {result.error}", soft_wrap=True, highlight=False)
    console.print(f"{len(results)} trials: {len(done) - skipped} run, {skipped} already complete, "
                  f"{len(results) - len(done)} failed; {_duration(time.monotonic() - began)}", highlight=False)
    return 4 if len(done) < len(results) else 0


def _as_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
