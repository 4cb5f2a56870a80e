"""Regret of policies: against the best plan in hindsight, and against the fixed plans that were run beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from testbed.errors import InputError
from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.comparison import Effect, compare
from testbed.measurement.trial import Trial

if TYPE_CHECKING:
    from testbed.measurement.summary import Group

ORACLE_FILE, PLANS_FILE, REGRET_FILE = "oracle.csv", "oracle_plans.csv", "regret.csv"
PLAN_COLUMNS = ("plan", "accuracy", "requests", "failed", "latency_mean_s", "latency_p50_s", "latency_p95_s", "deadline_hit",
                "oracle_share")
MEASURES = ("latency_mean", "latency_p95", "deadline_hit")  # in which the best fixed plan is looked for
_SHOWN = ("latency_mean", "latency_p95", "deadline_hit", "oracle_latency", "oracle_hit", "regret_mean", "regret_p95",
          "regret_decision", "regret_static")
COLUMNS = ("policy", "point", *_SHOWN, *(f"{name}_{part}" for name in MEASURES
                                         for part in ("static", "static_value", "difference", "low", "high", "verdict")))


@dataclass(frozen=True)
class Against:
    """A policy against the best fixed plan of a measure: `sign` +1 when the policy is better and the interval excludes zero."""

    measure: str
    static: str
    static_value: float | None
    effect: Effect | None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, or `no interval` (too few samples); empty where there is no difference."""
        if self.effect is None or self.effect.difference is None:
            return ""
        if self.effect.low is None:
            return "no interval"
        sign = self.effect.sign * (1 if self.measure == "deadline_hit" else -1)
        return {1: "better", -1: "worse", 0: "no difference shown"}[sign]


def is_static(trial: Trial) -> bool:
    """Whether the trial ran a fixed plan."""
    policies = (trial.manifest.get("config") or {}).get("policies") or [{}]
    return isinstance(policies[0], dict) and "plan" in policies[0]


def has_regret(groups: Sequence[Group]) -> bool:
    """Whether there is anything to say: an oracle was computed for some trial."""
    return any(len(trial.oracle) for group in groups for trial in group.trials)


def best_static(groups: Sequence[Group], measure: str) -> Group | None:
    """The fixed plan with the best value of a measure among groups of one sweep point; None when none has a value.

    Chosen on the very requests on which it is then compared, which favours it a little.
    """
    known = [(value, group) for group in groups if is_static(group.trials[0]) and (value := group.value(measure)) is not None]
    if not known:
        return None
    pick = max if measure == "deadline_hit" else min
    return pick(known, key=lambda item: item[0])[1]


def against_static(group: Group, groups: Sequence[Group]) -> list[Against]:
    """A group against the best fixed plan of each measure at its sweep point, on paired requests.

    `effect` is policy minus fixed plan; None where the two did not meet the same conditions.
    """
    peers = [other for other in groups if other.sweep_point == group.sweep_point]
    found: list[Against] = []
    effects: dict[str, dict[str, Effect]] = {}
    for measure in MEASURES:
        static = best_static(peers, measure)
        if static is None or static is group:
            continue
        if static.policy not in effects:
            try:
                seed = int(group.trials[0].manifest.get("seed") or 0)
                effects[static.policy] = {e.metric: e for e in compare(static, group, seed=seed).effects}
            except InputError:
                effects[static.policy] = {}
        found.append(Against(measure, static.policy, static.value(measure), effects[static.policy].get(measure)))
    return found


def regret_table(groups: Sequence[Group]) -> pd.DataFrame:
    """One row per policy and sweep point, columns COLUMNS; differences are policy minus best fixed plan, with their interval."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {name: None for name in COLUMNS}
        row |= {"policy": group.policy,
                "point": ", ".join(f"{k.rsplit('.', 1)[-1]}={fmt.swept(v)}" for k, v in group.sweep_point.items())}
        row |= {name: group.value(name) for name in _SHOWN}
        if not is_static(group.trials[0]):
            for item in against_static(group, groups):
                effect = item.effect
                row |= {f"{item.measure}_static": item.static, f"{item.measure}_static_value": item.static_value,
                        f"{item.measure}_verdict": item.verdict}
                if effect is not None:
                    row |= {f"{item.measure}_difference": effect.difference, f"{item.measure}_low": effect.low,
                            f"{item.measure}_high": effect.high}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_regret(run_dir: Path, groups: Sequence[Group]) -> None:
    """Write `regret.csv` of a run; nothing where no oracle was computed."""
    if has_regret(groups):
        write_text_atomic(run_dir / REGRET_FILE, regret_table(groups).to_csv(index=False, lineterminator="\n"))
