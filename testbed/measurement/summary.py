"""Summaries of trials and runs: long-form `summary.csv`, and `table.csv` with one row per policy and sweep point."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_json_atomic, write_text_atomic
from testbed.measurement.attainment import write_attainment
from testbed.measurement.metrics import Estimate, evaluate_all
from testbed.measurement.prediction import write_prediction
from testbed.measurement.regret import write_regret
from testbed.measurement.trial import MANIFEST, RUN, Trial, load_run, load_trial
from testbed.measurement.validity import INVALID, VALID, validity_of

SUMMARY, TABLE = "summary.csv", "table.csv"
SWEEP_PREFIX = "sweep."  # a swept key `load.rate_per_s` is the column `sweep.load.rate_per_s`


@dataclass(frozen=True)
class Group:
    """Trials that differ only in their repeat: one policy at one sweep point."""

    policy: str
    sweep_point: dict[str, Any]
    trials: tuple[Trial, ...]
    estimates: tuple[Estimate, ...]

    @property
    def label(self) -> str:
        """Policy and sweep point on one line."""
        point = ", ".join(f"{key.rsplit('.', 1)[-1]}={fmt.swept(value)}" for key, value in self.sweep_point.items())
        return f"{self.policy} ({point})" if point else self.policy

    def get(self, metric: str) -> Estimate | None:
        """The estimate of a metric, or None when it does not apply to this group."""
        return next((estimate for estimate in self.estimates if estimate.metric == metric), None)

    def value(self, metric: str) -> float | None:
        """The value of a metric, or None."""
        found = self.get(metric)
        return None if found is None else found.value

    def family(self, name: str) -> dict[str, float]:
        """Values of a family: `family("exit_share")` -> {"exit1": 0.4, "final": 0.6}."""
        return {estimate.metric[len(name) + 1:-1]: estimate.value for estimate in self.estimates
                if estimate.metric.startswith(f"{name}[") and estimate.value is not None}


def group_trials(trials: Sequence[Trial], *, intervals: bool = True) -> list[Group]:
    """Pool repeats and evaluate all metrics, in the order in which policies and points first appear."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps([trial.policy, trial.sweep_point], sort_keys=True, default=str)
        groups.setdefault(key, []).append(trial)
    return [
        Group(members[0].policy, members[0].sweep_point, tuple(members),
              tuple(evaluate_all(members, intervals=intervals, seed=int(members[0].manifest.get("seed") or 0))))
        for members in groups.values()
    ]


def long_form(groups: Sequence[Group]) -> pd.DataFrame:
    """Rows: run_id, policy, swept keys, metric, unit, value, ci_low, ci_high, n, note."""
    rows = [
        {
            "run_id": "+".join(trial.run_id for trial in group.trials), "policy": group.policy,
            **{SWEEP_PREFIX + key: value for key, value in group.sweep_point.items()},
            "metric": e.metric, "unit": e.unit, "value": e.value, "ci_low": e.ci_low, "ci_high": e.ci_high,
            "n": e.n, "note": e.note,
        }
        for group in groups for e in group.estimates
    ]
    tail = ["metric", "unit", "value", "ci_low", "ci_high", "n", "note"]
    frame = pd.DataFrame(rows, columns=None if rows else ["run_id", "policy", *tail])
    middle = [name for name in frame.columns if name.startswith(SWEEP_PREFIX)]
    return frame[["run_id", "policy", *middle, *tail]]


def wide_form(groups: Sequence[Group]) -> pd.DataFrame:
    """One row per policy and sweep point, one column per metric (`metric_unit`, as units belong in names)."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {"policy": group.policy}
        row |= {SWEEP_PREFIX + key: value for key, value in group.sweep_point.items()}
        row |= {"repeats": len(group.trials), "verdict": verdict(group.trials)}
        row |= {column_name(e): e.value for e in group.estimates}
        rows.append(row)
    return pd.DataFrame(rows)


def column_name(estimate: Estimate) -> str:
    """`latency_p50` in s is the column `latency_p50_s`; family members keep their bracket: `time_s[edge queue]`."""
    head, bracket, rest = estimate.metric.partition("[")
    unit = estimate.unit if estimate.unit and not head.endswith(estimate.unit) else ""
    if unit == "bytes" and head.startswith("bytes"):
        unit = ""
    return f"{head}_{unit}{bracket}{rest}" if unit else estimate.metric


def verdict(trials: Sequence[Trial]) -> str:
    """INVALID when one of the trials is, else VALID (trials whose manifest holds no verdict are judged now)."""
    return INVALID if any(validity_of(trial).verdict == INVALID for trial in trials) else VALID


def summarise_trial(trial_dir: str | Path) -> pd.DataFrame:
    """Evaluate one trial, write its `summary.csv` atomically, and return the same rows."""
    frame = long_form(group_trials([load_trial(trial_dir)]))
    write_text_atomic(Path(trial_dir) / SUMMARY, frame.to_csv(index=False, lineterminator="\n"))
    return frame


def summarise_run(run_dir: str | Path, *, trials: Sequence[str | Path] | None = None) -> pd.DataFrame:
    """Evaluate the trials of a run (all by default; repeats pooled), write its tables, return the wide one."""
    return write_run_tables(run_dir, group_trials(load_run(run_dir, trials)))


def write_run_tables(run_dir: str | Path, groups: Sequence[Group]) -> pd.DataFrame:
    """Write `summary.csv` (long), `table.csv` (wide), `prediction.csv`, `regret.csv`, `attainment.csv`, `run.json` (its trials).

    A run that is a single trial directory is left as it is: resume compares the sizes of a trial's files.
    """
    table, root = wide_form(groups), Path(run_dir)
    if (root / MANIFEST).exists():
        return table
    write_text_atomic(root / SUMMARY, long_form(groups).to_csv(index=False, lineterminator="\n"))
    write_text_atomic(root / TABLE, table.to_csv(index=False, lineterminator="\n"))
    by_policy = [(group.policy, group.sweep_point, group.trials) for group in groups]
    write_prediction(root, by_policy)
    write_attainment(root, by_policy)
    write_regret(root, groups)
    paths = [trial.path.resolve() for group in groups for trial in group.trials]
    write_json_atomic(root / RUN, {"trials": [os.path.relpath(path, root.resolve()) for path in paths]})
    return table
