"""Progress of a run in the terminal: one bar over all trials with the time left, and what the running trials do."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from testbed.cli.live import LiveView
from testbed.cli.live_state import TrialState
from testbed.experiment.estimate import Estimate
from testbed.experiment.trials import Experiment, Trial

# rough share of a trial's own time at which each phase begins
PHASES = {"outputs": 0.0, "network": 0.02, "nodes": 0.08, "calibrate": 0.25, "load": 0.35, "drain": 0.95, "judge": 0.97}


class RunProgress:
    """Context manager that draws trial events; without a terminal it prints a line per trial instead.

    `live_run`: the run's folder, when its running trials are to be shown above the bar (`testbed run --live`).
    """

    def __init__(self, console: Console, experiment: Experiment, estimate: Estimate, jobs: int = 1,
                 live_run: Path | None = None) -> None:
        self._console = console
        self._estimate = estimate
        self._jobs = max(1, jobs)
        self._trials = {t.run_id: t for t in experiment.trials}
        self._position = {t.run_id: i + 1 for i, t in enumerate(experiment.trials)}
        self._share = dict.fromkeys(self._trials, 0.0)  # of each trial, how much is done
        self._doing: dict[str, str] = {}
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console, transient=True,
            disable=not console.is_terminal, refresh_per_second=4)
        self._task = self._progress.add_task(experiment.name, total=1.0, left="")
        self._name, self._live_run = experiment.name, live_run
        self._live = LiveView(console, self._progress, self._position) if live_run is not None else None

    def __enter__(self) -> RunProgress:
        self._shown.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._shown.stop()

    @property
    def _shown(self) -> LiveView | Progress:
        return self._live or self._progress

    @property
    def left_s(self) -> float:
        """Expected time until the last trial ends: what is left, spread over the jobs, but at least the longest trial."""
        left = [(1.0 - self._share[name]) * self._estimate.duration_s(trial) for name, trial in self._trials.items()]
        return max(sum(left) / self._jobs, max(left, default=0.0))

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Draw one event of a trial."""
        kind, name = event.get("event"), trial.run_id
        head = f"[{self._position[name]}/{len(self._trials)}] {trial.label}"
        if self._live is not None and self._live_run is not None:
            if not self._live.shows(name) and kind == "phase":
                self._live.add(name, TrialState.of(head, self._live_run / trial.folder, trial.scenario))
            self._live.event(name, event)
        if kind == "skipped":
            self._end(trial)
            self._console.print(f"{head}: already complete", highlight=False, soft_wrap=True)
        elif kind == "phase":
            phase = str(event.get("phase"))
            self._share[name] = PHASES.get(phase, self._share[name])
            self._doing[name] = f"{head}: {phase}"
        elif kind == "progress":
            begin, end = PHASES["load"], PHASES["drain"]
            self._share[name] = begin + (end - begin) * event["done"] / max(1, event["total"])
            self._doing[name] = f"{head}: {event['done']}/{event['total']} requests"
        elif kind == "outputs":
            self._doing[name] = f"{head}: computing outputs: {event['done']} of {event['total']} samples"
        elif kind == "outputs_ready" and event["computed"]:
            size = sum(store["size_bytes"] for store in event["stores"])
            self._console.print(f"{head}: outputs of {event['samples']} samples computed in {event['duration_s']:.0f} s and "
                                f"stored ({size / 1e6:.0f} MB)", highlight=False, soft_wrap=True)
        elif kind == "sent":
            self._doing[name] = f"{head}: on {event['worker']}"
        elif kind == "complete":
            self._estimate.learn(trial, event["duration_s"])
            self._end(trial)
            self._say(f"{head}: {event.get('verdict')} in {event['duration_s']:.0f} s")
        elif kind == "failed":
            self._end(trial)
            self._say(f"{head}: failed")
        self._draw()

    def _end(self, trial: Trial) -> None:
        self._share[trial.run_id] = 1.0
        self._doing.pop(trial.run_id, None)
        if self._live is not None:
            self._live.remove(trial.run_id)

    def _draw(self) -> None:
        expected = {name: self._estimate.duration_s(trial) for name, trial in self._trials.items()}
        done = sum(self._share[name] * s for name, s in expected.items()) / (sum(expected.values()) or 1.0)
        doing = self._name if self._live is not None else "; ".join(self._doing.values()) or "..."
        self._progress.update(self._task, completed=done, description=doing,
                              left=f"{duration(self.left_s)} left")

    def _say(self, line: str) -> None:
        left = f"; about {duration(self.left_s)} left" if self.left_s else ""
        self._console.print(f"{line}{left}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`95 s`, `12.3 min`, `4.1 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
