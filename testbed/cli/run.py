"""`testbed run`: run a scenario trial by trial, or an analytic study; ends with tables and the path of the report."""

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
    file: Path = typer.Argument(..., help="scenario or study file"),
    settings: list[str] = typer.Option([], "--set", help="key=value, or key=a,b,c as a sweep (dotted keys)"),
    runs: Path = typer.Option(Path("runs"), help="folder that receives the results"),
    engine: str = typer.Option("auto", help="container engine: auto, podman or docker; ray: spread trials over a Ray cluster"),
    jobs: int = typer.Option(1, help="trials side by side on this machine"),
    resume: bool = typer.Option(True, "--resume/--fresh", " /--no-resume",
                                help="skip trials that are complete, or run all into a new folder"),
    dry_run: bool = typer.Option(False, "--dry-run", help="print the trials and the estimated time, run nothing"),
    live: bool = typer.Option(False, "--live", help="show links, nodes, plans and latency of the running trials"),
) -> None:
    """Run the trials of FILE; exit code 0 when all ran (VALID or not), 4 when one failed, 2 for bad input."""
    from testbed.errors import InputError
    from testbed.experiment.trials import plan_experiment
    from testbed.schema.study import study_kind

    if engine not in ("auto", "podman", "docker", "ray"):
        raise InputError("is no engine", key="--engine", value=engine, remedy="use auto, podman or docker, or ray")
    if jobs < 1:
        raise InputError("is less than one", key="--jobs", value=jobs, remedy="use 1 or more")
    if engine == "ray" and jobs > 1:
        raise InputError("does not go with --engine ray", key="--jobs", value=jobs,
                         remedy="leave it out: Ray runs one trial per worker at a time")
    if engine == "ray" and live:
        raise InputError("does not go with --engine ray", key="--live", value="on",
                         remedy="leave it out: the trials run on other machines, whose files cannot be watched from here")
    overrides, sweep = parse_settings(settings)
    if study_kind(file) is not None:
        if live:
            raise InputError("is about trials, and a study has none", file=file, key="--live", remedy="leave it out")
        raise typer.Exit(_study(file, overrides, sweep, runs, engine, jobs, not resume, dry_run))
    experiment = plan_experiment(file, overrides, sweep)
    if dry_run:
        _show_plan(experiment, runs, resume, jobs)
        return
    raise typer.Exit(_run(experiment, runs, resume, engine, jobs, live))


def _study(file: Path, overrides: dict[str, Any], sweep: dict[str, list[Any]], runs: Path, engine: str, jobs: int,
           fresh: bool, dry_run: bool) -> int:
    from testbed.cli.study import refuse_trial_options, run_study_here, show_study

    refuse_trial_options(file, sweep, engine, jobs)
    if dry_run:
        show_study(file, overrides, runs, fresh)
        return 0
    signal.signal(signal.SIGTERM, _as_interrupt)
    return run_study_here(file, overrides, runs, fresh)


def _show_plan(experiment: Any, runs: Path, resume: bool, jobs: int) -> None:
    from testbed.cli.progress import duration
    from testbed.experiment.estimate import Estimate
    from testbed.experiment.store import TrialFolder, refuse_changed_content, run_folder

    estimate = Estimate.of(experiment, run_folder(runs, experiment.name))
    run = run_folder(runs, experiment.name, fresh=not resume)
    refuse_changed_content(run, experiment.trials)
    complete = {t.run_id for t in experiment.trials if TrialFolder.of(run, t).is_complete}
    for trial in experiment.trials:
        print(f"{trial.run_id}  {trial.label}{'  (complete)' if trial.run_id in complete else ''}")
    left = [estimate.duration_s(t) for t in experiment.trials if t.run_id not in complete]
    print(f"{len(experiment.trials)} trials, {len(complete)} already complete, "
          f"about {duration(max(sum(left) / jobs, max(left, default=0.0)))}; results go to {run}")


def _run(experiment: Any, runs: Path, resume: bool, engine: str, jobs: int, live: bool) -> int:
    from rich.console import Console

    from testbed.cli.progress import RunProgress, duration
    from testbed.experiment.estimate import Estimate
    from testbed.experiment.oracle import write_oracles
    from testbed.experiment.ray_engine import run_on_ray
    from testbed.experiment.runner import run_experiment
    from testbed.experiment.store import run_folder
    from testbed.measurement.report import render_report
    from testbed.measurement.summary import summarise_run
    from testbed.measurement.terminal import terminal_table

    console = Console() if sys.stdout.isatty() else Console(width=max(110, shutil.get_terminal_size((110, 24)).columns))
    if live and (not sys.stdout.isatty() or console.is_dumb_terminal):
        print("--live needs a terminal that can redraw, and standard output is none: a line per trial follows instead",
              file=sys.stderr)
        live = False
    signal.signal(signal.SIGTERM, _as_interrupt)
    began = time.monotonic()
    estimate = Estimate.of(experiment, run_folder(runs, experiment.name))
    try:
        live_run = run_folder(runs, experiment.name, fresh=not resume) if live else None
        with RunProgress(console, experiment, estimate, jobs, live_run) as progress:
            if engine == "ray":
                results = run_on_ray(experiment, runs, resume=resume, on_progress=progress.event)
            else:
                results = run_experiment(experiment, runs, resume=resume, engine=engine, jobs=jobs, live=live,
                                         on_progress=progress.event)
    except KeyboardInterrupt:
        print("interrupted; finished trials stay finished, the same command goes on from here"
              f"{'' if resume else ' (without --fresh)'}", file=sys.stderr)
        return 130
    done = [r for r in results if r.error is None]
    skipped = sum(r.skipped for r in results)
    if done:
        folders = [r.folder.path for r in done]
        folder = folders[0].parents[1]
        for reason in write_oracles(folders, experiment.trials[0].scenario.oracle):
            console.print(reason, soft_wrap=True, highlight=False)
        summarise_run(folder, trials=folders)
        report = render_report(folder, trials=folders)
        for part in terminal_table(folder, trials=folders, report=report):
            console.print(part)
    for result in results:
        if result.error is not None:
            console.print(f"[red]failed[/red] {result.trial.label}: {result.error}", soft_wrap=True, highlight=False)
    console.print(f"{len(results)} trials: {len(done) - skipped} run, {skipped} already complete, "
                  f"{len(results) - len(done)} failed; {duration(time.monotonic() - began)}", highlight=False)
    return 4 if len(done) < len(results) else 0


def _as_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
