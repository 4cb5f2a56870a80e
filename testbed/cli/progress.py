"""Progress of a run in the terminal: one bar over all trials with the time left, and what the current trial does."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from testbed.experiment.trials import Experiment, Trial

# rough share of a trial's own time at which each phase begins
PHASES = {"network": 0.02, "nodes": 0.08, "calibrate": 0.25, "load": 0.35, "drain": 0.95, "judge": 0.97}


class RunProgress:
    """Context manager that draws trial events; without a terminal it prints a line per trial instead."""

    def __init__(self, console: Console, experiment: Experiment, expected_s: Callable[[Trial], float]) -> None:
        self._console = console
        self._expected = {t.run_id: expected_s(t) for t in experiment.trials}
        self._position = {t.run_id: i + 1 for i, t in enumerate(experiment.trials)}
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal)
        self._task = self._progress.add_task(experiment.name, total=sum(self._expected.values()))
        self._done = 0.0

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Draw one event of a trial."""
        kind, expected = event.get("event"), self._expected[trial.run_id]
        head = f"[{self._position[trial.run_id]}/{len(self._expected)}] {trial.label}"
        if kind == "skipped":
            self._finish(expected)
            self._say(f"{head}: already complete")
        elif kind == "phase":
            phase = str(event.get("phase"))
            self._progress.update(self._task, description=f"{head}: {phase}",
                                  completed=self._done + expected * PHASES.get(phase, 0.0))
        elif kind == "progress":
            share = event["done"] / max(1, event["total"])
            begin, end = PHASES["load"], PHASES["drain"]
            self._progress.update(self._task, completed=self._done + expected * (begin + (end - begin) * share),
                                  description=f"{head}: {event['done']}/{event['total']} requests")
        elif kind == "finished":
            self._finish(expected)
            self._say(f"{head}: {event.get('verdict')} in {event.get('seconds', 0):.0f} s")
        elif kind == "failed":
            self._finish(expected)
            self._say(f"{head}: failed")

    def _finish(self, expected: float) -> None:
        self._done += expected
        self._progress.update(self._task, completed=self._done)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
