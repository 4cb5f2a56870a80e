"""The verdict of a trial: did the emulation do what the file says, so that its numbers may be believed?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from testbed.measurement import checks
from testbed.measurement import format as fmt
from testbed.measurement.checks import Finding, Inputs
from testbed.measurement.limits import LIMITS, Limit, Limits, OnFail
from testbed.measurement.trial import Trial, load_trial

State = Literal["passed", "failed", "warned", "not measured", "off"]
STATES: tuple[State, ...] = ("failed", "warned", "not measured", "off", "passed")  # worst first
VALID: Literal["VALID"] = "VALID"
INVALID: Literal["INVALID"] = "INVALID"

_CHECKS: dict[str, Callable[[Inputs, float], Finding]] = {
    "issue_delay_p99_s": checks.issue_delay,
    "apply_lag_p99_steps": checks.apply_lag,
    "missed_steps_share": checks.missed_steps,
    "delivered_error": checks.delivered,
    "delay_late_p99_s": checks.delay_line,
    "rate_error": checks.calibrated_rate,
    "rtt_error_s": checks.calibrated_rtt,
    "cpu_busy_share": checks.cpu_busy,
    "cpu_steal_share": checks.cpu_steal,
    "throttled_share": checks.throttled,
    "compute_overrun_share": checks.compute_overrun,
    "memo_miss_share": checks.memo_misses,
    "samples": checks.samples,
    "unaccounted_p99_s": checks.unaccounted,
    "order_violations": checks.violations,
    "link_bytes_error": checks.link_bytes,
}


@dataclass(frozen=True)
class Check:
    """One check: what was measured, what was allowed, and in words why it matters when it did not hold.

    `passed` is None when nothing could be measured: that is neither a pass nor a failure, and is shown as such.
    """

    name: str
    value: float | None
    limit: float
    unit: str
    passed: bool | None
    reason: str = ""
    state: State = "passed"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"name": self.name, "value": self.value, "limit": self.limit, "unit": self.unit, "passed": self.passed,
                "state": self.state, "reason": self.reason}


@dataclass(frozen=True)
class Validity:
    """VALID when no check failed; warnings and checks that could not be measured are listed, not hidden."""

    verdict: Literal["VALID", "INVALID"]
    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def reasons(self) -> list[str]:
        """Cause and remedy of every check that failed."""
        return [check.reason for check in self.checks if check.state == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"verdict": self.verdict, "checks": [check.to_dict() for check in self.checks]}

    def get(self, name: str) -> Check:
        """The check of that name; KeyError when there is none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


def judge(inputs: Inputs, limits: Limits | None = None) -> Validity:
    """Run every check. Limits come from the manifest's `config.validity` and `config.calibration` unless given."""
    if limits is None:
        config = inputs.manifest.get("config") or {}
        limits = Limits.of(config.get("validity"), calibration=config.get("calibration"))
    results = [_run(limit, limits.values[limit.name], limits.on_fail[limit.name], inputs) for limit in LIMITS]
    failed = any(check.state == "failed" for check in results)
    return Validity(INVALID if failed else VALID, tuple(results))


def judge_trial(trial: Trial | str | Path) -> Validity:
    """Judge a trial from what it left on disk."""
    loaded = trial if isinstance(trial, Trial) else load_trial(trial)
    return judge(inputs_of(loaded))


def validity_of(trial: Trial) -> Validity:
    """The verdict in the trial's manifest; judged now when the manifest holds none."""
    stored = trial.manifest.get("validity") or {}
    if stored.get("verdict") not in (VALID, INVALID):
        return judge_trial(trial)
    found = []
    for entry in stored.get("checks") or []:
        passed = entry.get("passed")
        state: State = entry.get("state") or (
            "not measured" if passed is None else "passed" if passed else "failed")
        found.append(Check(str(entry.get("name")), entry.get("value"), entry.get("limit") or 0.0,
                           entry.get("unit") or "", passed, entry.get("reason") or "", state))
    return Validity(stored["verdict"], tuple(found))


def worst_checks(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One entry per check: the trial in which it was worst, failures first."""
    about = {limit.name: limit for limit in LIMITS}
    found: dict[str, list[tuple[Check, Trial]]] = {}
    for trial in trials:
        for check in validity_of(trial).checks:
            found.setdefault(check.name, []).append((check, trial))
    rows = []
    for name, entries in found.items():
        limit = about.get(name)
        sign = -1.0 if limit is not None and limit.at_least else 1.0
        check, trial = min(entries, key=lambda entry: (
            STATES.index(entry[0].state), -sign * (entry[0].value if entry[0].value is not None else -1e300)))
        measured = sum(entry.value is not None for entry, _ in entries)
        state = check.state
        if state in ("not measured", "off") and measured:  # the best evidence there is, not the lack of it
            check, trial = min((entry for entry in entries if entry[0].value is not None),
                               key=lambda entry: -sign * (entry[0].value or 0.0))
            state = check.state
        ratio = None
        if check.value is not None:
            top, bottom = (check.limit, check.value) if sign < 0 else (check.value, check.limit)
            ratio = top / bottom if bottom else (0.0 if top == 0 else 2.0)
        rows.append({
            "name": name, "state": state, "what": limit.what if limit else name, "why": limit.why if limit else "",
            "value": fmt.quantity(check.value, check.unit), "limit": fmt.quantity(check.limit, check.unit),
            "sign": "≥" if sign < 0 else "≤", "ratio": ratio, "trial": trial.label, "reason": check.reason,
            "measured": measured, "of": len(entries),
            "failures": [{"trial": t.label, "reason": c.reason} for c, t in entries if c.state in
                         ("failed", "warned")],
        })
    return sorted(rows, key=lambda row: STATES.index(row["state"]))


def inputs_of(trial: Trial) -> Inputs:
    """The evidence of a loaded trial."""
    return Inputs(manifest=trial.manifest, requests=trial.requests, hops=trial.hops, links=trial.links,
                  nodes=trial.nodes, fabric=trial.fabric)


def inputs_from(manifest: Mapping[str, Any], tables: Mapping[str, pd.DataFrame],
                fabric: Mapping[str, Any] | None = None) -> Inputs:
    """The evidence from parts held in memory: the manifest, tables by name, and the fabric summary."""
    return Inputs(manifest=manifest, fabric=fabric or {},
                  **{name: tables[name] for name in ("requests", "hops", "links", "nodes") if name in tables})


def _run(limit: Limit, allowed: float, action: OnFail, inputs: Inputs) -> Check:
    if action == "off":
        return Check(limit.name, None, allowed, limit.unit, None, "switched off by the scenario", "off")
    finding = _CHECKS[limit.name](inputs, allowed)
    if finding.value is None:
        return Check(limit.name, None, allowed, limit.unit, None, f"not measured: {finding.text}", "not measured")
    passed = finding.value >= allowed if limit.at_least else finding.value <= allowed
    if passed:
        return Check(limit.name, finding.value, allowed, limit.unit, True, "", "passed")
    return Check(limit.name, finding.value, allowed, limit.unit, False, finding.text,
                 "failed" if action == "fail" else "warned")
