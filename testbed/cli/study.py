"""Runs an analytic study for `testbed run`: progress, then the main table, the findings and the path of the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from testbed.cli.progress import duration
from testbed.errors import InputError
from testbed.experiment.studies import plan_study, run_study
from testbed.measurement.study_view import findings_table, study_table


class StudyProgress:
    """Context manager that draws the share done; without a terminal it prints a line when the activity changes."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""
        self._progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
                                  TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def event(self, share: float, text: str) -> None:
        """`share` of the work is done, `text` is being done."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=share, description=text)
        elif text != self._last:
            self._console.print(f"{share:4.0%} {text}", highlight=False)
        self._last = text


def show_study(file: Path, overrides: Mapping[str, Any], runs: Path, fresh: bool) -> None:
    """What would run, and where its results would go."""
    planned = plan_study(file, overrides)
    folder = planned.folder(runs, fresh)
    print(f"{planned.spec.name}/{planned.config_hash}  study {planned.spec.study}{'  (complete)' if folder.is_complete else ''}")
    for key, value in planned.spec.model_dump(mode="json").items():
        if key not in ("name", "description", "study"):
            print(f"  {key}: {value}")
    print(f"results go to {folder.path}")


def run_study_here(file: Path, overrides: Mapping[str, Any], runs: Path, fresh: bool) -> int:
    """Run the study and print what it found; returns the exit code."""
    console = Console() if sys.stdout.isatty() else Console(width=max(110, shutil.get_terminal_size((110, 24)).columns))
    try:
        with StudyProgress(console) as progress:
            result = run_study(file, overrides, runs, fresh, progress.event)
    except KeyboardInterrupt:
        print("interrupted; nothing was kept of this study", file=sys.stderr)
        return 130
    for name, table in list(result.tables.items())[:1]:
        console.print(study_table(name, table))
    if result.findings:
        console.print(findings_table(result.findings))
    console.print(f"report: {result.report}", soft_wrap=True, highlight=False)
    console.print(f"study {'was complete already, made' if result.skipped else 'run'} in {duration(result.duration_s)}",
                  highlight=False)
    return 0


def refuse_trial_options(file: Path, sweep: Mapping[str, Any], engine: str, jobs: int) -> None:
    """A study has no trials: raises InputError for options that are about them."""
    if sweep:
        key, values = next(iter(sweep.items()))
        raise InputError("is a sweep, and a study has none", file=file, key=f"--set {key}",
                         remedy=f'give a list as it is, such as --set "{key}={values}", or one value')
    if engine != "auto" or jobs != 1:
        raise InputError("is about trials, and a study has none", file=file, key="--engine" if engine != "auto" else "--jobs",
                         value=engine if engine != "auto" else jobs, remedy="leave it out")
