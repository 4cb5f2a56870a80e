"""How long trials will take: their load is known, the rest is learnt from the finished trials of the same run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

from testbed.experiment.store import TrialFolder
from testbed.experiment.trials import Experiment, Trial

START_UP_S = 12.0  # of a trial with containers on a small machine, used until one has been measured


def load_s(trial: Trial) -> float:
    """Seconds from the first to the last scheduled request; for a closed loop, at one request per 1/rate."""
    load = trial.scenario.load
    return float((load.requests_per_device + load.warmup_requests) / load.rate_per_s)


class Estimate:
    """Expected durations in seconds: the median of the same configuration, else load plus the median of all the rest.

    The rest of a trial is start-up, calibration, judging and cleaning up.
    """

    def __init__(self) -> None:
        self._same: dict[str, list[float]] = defaultdict(list)
        self._rest: list[float] = []

    @classmethod
    def of(cls, experiment: Experiment, run: Path) -> Estimate:
        """Learn from the trials that are complete in the folder of the run."""
        estimate = cls()
        for trial in experiment.trials:
            folder = TrialFolder.of(run, trial)
            duration_s = folder.status().get("duration_s") if folder.is_complete else None
            if isinstance(duration_s, int | float):
                estimate.learn(trial, float(duration_s))
        return estimate

    def learn(self, trial: Trial, duration_s: float) -> None:
        """Take in the duration of a finished trial."""
        self._same[trial.config_hash].append(duration_s)
        self._rest.append(max(0.0, duration_s - load_s(trial)))

    def duration_s(self, trial: Trial) -> float:
        """Expected duration of a trial."""
        if self._same.get(trial.config_hash):
            return statistics.median(self._same[trial.config_hash])
        if self._rest:
            return load_s(trial) + statistics.median(self._rest)
        calibration = trial.scenario.calibration
        return START_UP_S + (calibration.iperf_time * 2 if calibration.mode != "off" else 0.0) + load_s(trial)
