"""`check_policy`: the conformance test of a policy, run on made-up requests; for users' own policies and for ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from testbed.inference.codecs import is_codec_name
from testbed.inference.exits import ExitRule
from testbed.policies.base import Policy
from testbed.policies.knowledge import Context
from testbed.policies.plan import Plan, Step
from testbed.policies.rehearsal import Rehearsal, made_up_context

MAX_STEPS = 16  # that a node takes in one message
CHECKS = ("calls", "deterministic", "time", "missing observations", "plans", "backups")


@dataclass(frozen=True)
class Finding:
    """What one check found; `text` says what was seen, or what is wrong."""

    check: str
    passed: bool
    text: str


@dataclass(frozen=True)
class PolicyReport:
    """All findings about a policy. `median_decision_s`: processor time of a decision; None when none came to an end."""

    policy: str
    findings: tuple[Finding, ...]
    median_decision_s: float | None

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(finding.passed for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{self.policy}: {'conforms' if self.ok else 'does not conform'}"]
        return "\n".join(lines + [f"  {'ok    ' if f.passed else 'FAILED'} {f.check}: {f.text}" for f in self.findings])


def check_policy(cls: Callable[..., Policy], options: Mapping[str, Any] | None = None, context: Context | None = None, *,
                 seed: int = 1, decisions: int = 200) -> PolicyReport:
    """Ask a policy `decisions` times about made-up requests, in trouble too, twice with the same seed, and judge it.

    Parameters
    ----------
    cls: the policy's class. options: keyword arguments for it.
    context: what it is told of nodes and models; those of a made-up system when absent.

    What `cls(context, **options)` raises is raised.
    """
    context = context or made_up_context()
    options = dict(options or {})
    name = getattr(cls, "__name__", str(cls))
    first, again = (_run(cls(context, **options), context, seed, decisions, trouble=False) for _ in range(2))
    troubled = _run(cls(context, **options), context, seed, decisions, trouble=True)
    limit_s = cls(context, **options).max_decision_s
    taken_s = median(first.decision_s) if first.decision_s else None
    problems = [p for run in (first, troubled) for p in run.problems]
    backups = [p for p in problems if p.startswith(("backup", "fallback"))]
    plans = [p for p in problems if p not in backups]
    seen = len({plan.label for plan in first.plans})
    findings = (
        _finding("calls", first.error is None, f"{decisions} requests decided and observed", first.error),
        _deterministic(first, again),
        Finding("time", taken_s is not None and taken_s <= limit_s,
                "no decision came to an end" if taken_s is None else
                f"median {taken_s * 1e3:.3g} ms of processor time, {limit_s * 1e3:.3g} ms stated"),
        _finding("missing observations", troubled.error is None,
                 "nothing measured, nodes gone, failures, lost probes, no time left: decided all the same", troubled.error),
        _finding("plans", not plans, f"{seen} different plans, all can be executed", _some(plans)),
        _finding("backups", not backups, "backups and fallbacks stay on the device and answer by themselves", _some(backups)),
    )
    return PolicyReport(name, findings, taken_s)


def plan_problems(plan: Plan, context: Context, served: Sequence[str] | None = None) -> list[str]:
    """What keeps a plan from being executed, in words; empty when nothing does.

    served: models that the nodes have; all of the context's when absent. What is wrong with a backup or fallback begins with
    that word.
    """
    models = tuple(context.models) if served is None else tuple(served)
    found = _steps_problems(plan.steps, context, models)
    for part, steps in (("fallback", plan.fallback), ("backup", plan.backup)):
        if steps:
            found += [f"{part}: {problem}" for problem in _steps_problems(steps, context, models)]
            found += [f"{part}: step {i} runs on {s.node}, not on the device {context.device}"
                      for i, s in enumerate(steps) if s.node != context.device]
    if plan.backup_after_s is not None and not 0 <= plan.backup_after_s < float("inf"):
        found.append(f"backup: backup_after_s is {plan.backup_after_s}")
    if plan.backup_after_s is not None and not plan.backup:
        found.append("backup: backup_after_s without a backup")
    if plan.retries < 0:
        found.append(f"retries is {plan.retries}")
    return found


def _steps_problems(steps: Sequence[Step], context: Context, models: Sequence[str]) -> list[str]:
    if not 1 <= len(steps) <= MAX_STEPS:
        return [f"a plan has 1 to {MAX_STEPS} steps, not {len(steps)}"]
    found = []
    for i, step in enumerate(steps):
        if step.node not in context.nodes.values():
            found.append(f"step {i}: there is no node {step.node!r} for this device")
        if step.model not in context.models:
            found.append(f"step {i}: there is no model {step.model!r}")
            continue
        if step.model not in models:
            found.append(f"step {i}: models() does not name {step.model}, so nodes do not have it")
        stages = context.models[step.model].num_stages
        if not 0 <= step.start < step.stop <= stages:
            found.append(f"step {i}: stages {step.start}:{step.stop} are not a range within 0:{stages} of {step.model}")
        if not is_codec_name(step.codec):
            found.append(f"step {i}: there is no codec {step.codec!r}")
        try:
            ExitRule.parse(None if step.exit is None else asdict(step.exit))
        except ValueError as error:
            found.append(f"step {i}: {error}")
    for i, (before, step) in enumerate(pairwise(steps), start=1):
        goes_on = step.model == before.model and step.start == before.stop
        if not goes_on and not (step.start == 0 and before.start == 0):
            found.append(f"step {i} begins at stage {step.start} of {step.model}, the one before it stops at {before.stop} of "
                         f"{before.model}")
    if not found and not _answers(steps[-1], context):
        found.append("the last step neither reaches the end of its model nor has an exit that always answers")
    return found


def _answers(last: Step, context: Context) -> bool:
    model, rule = context.models[last.model], last.exit
    if last.stop == model.num_stages:
        return True
    certain = rule is not None and (rule.kind == "always" or (rule.kind == "max_probability" and rule.threshold <= 0)
                                    or (rule.kind == "entropy" and rule.threshold >= 1))
    return certain and any(last.start <= stage < last.stop for stage in model.exits.values())


@dataclass
class _Run:
    plans: list[Plan]
    scores: list[dict[str, float]]
    decision_s: list[float]
    problems: list[str]
    error: str | None = None


def _run(policy: Policy, context: Context, seed: int, decisions: int, *, trouble: bool) -> _Run:
    """One policy object through a rehearsal; ends at the first exception, which is kept in words."""
    run = _Run([], [], [], [])
    rehearsal = Rehearsal(context, policy.probes, seed, trouble=trouble)
    call = "models()"
    try:
        served = policy.models()
        for _ in range(decisions):
            observation = rehearsal.observation()
            call = f"decide({observation})"
            begin_ns = time.thread_time_ns()
            plan = policy.decide(observation)
            run.decision_s.append((time.thread_time_ns() - begin_ns) / 1e9)
            call = "scores()"
            run.scores.append(dict(policy.scores()))
            run.plans.append(plan)
            problems = plan_problems(plan, context, served)
            run.problems += [f"{problem} (plan {plan.name})" for problem in problems]
            if problems:
                return run  # what cannot be executed has no outcome
            outcome, late, probe = rehearsal.consequences(plan)
            call = f"observe({outcome})"
            policy.observe(outcome)
            if late is not None:
                call = f"observe_late({late})"
                policy.observe_late(late)
            if probe is not None:
                call = f"observe_probe({probe})"
                policy.observe_probe(probe)
    except Exception as error:
        run.error = f"{type(error).__name__}: {error}, in {call[:600]}"
    return run


def _deterministic(first: _Run, again: _Run) -> Finding:
    for i, (one, two) in enumerate(zip(first.plans, again.plans, strict=False)):
        if one != two:
            return Finding("deterministic", False, f"decision {i} was {one.label} ({one.name}) and then {two.label} "
                           f"({two.name}), with the same seed and the same calls; use context.seed, and no clock")
        if repr(first.scores[i]) != repr(again.scores[i]):
            return Finding("deterministic", False, f"decision {i} had the scores {first.scores[i]} and then {again.scores[i]}, "
                           "with the same seed and the same calls")
    same = len(first.plans) == len(again.plans)
    return _finding("deterministic", same, f"{len(first.plans)} decisions twice the same",
                    f"{len(first.plans)} decisions came to an end, and then {len(again.plans)}")


def _finding(check: str, passed: bool, good: str, bad: str | None) -> Finding:
    return Finding(check, passed, good if passed else str(bad))


def _some(problems: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(problems))
    return "; ".join(distinct[:3]) + (f"; and {len(distinct) - 3} more" if len(distinct) > 3 else "")
