"""`testbed replay-decisions FOLDER`: make the decisions of a finished trial again from its log, and say what differs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from testbed.policies.plan import Plan, Step
    from testbed.policies.replay import Decision

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def replay_decisions(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a trial, such as "
                                           "runs/quickstart/1a2b3c4d5e6f/0, or of a run: all its trials.")],
    policy: Annotated[str | None, typer.Option("--policy", help="Another policy that decides on the same observations: a "
                                               "built-in one by name, or file.py:Class.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Option of the policy, such as "
                                                       "options.initial_bps=1e6. Repeatable.")] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="How many differing decisions of each device to show.")] = 1,
) -> None:
    """Re-run the policy from decisions.jsonl alone and compare; ends with 0 when every decision is identical, else with 1."""
    from testbed.errors import InputError
    from testbed.experiment.truth import truth_of_trial
    from testbed.measurement.trial import find_trials, run_folder
    from testbed.policies.replay import replay_decisions as replay

    options = policy_options(settings or [])
    same = True
    trials = find_trials(run_folder(folder))
    for trial in trials:
        log = trial / "decisions.jsonl"
        if not log.is_file():
            raise InputError("the decision log is missing", file=log, remedy="give the folder of a finished trial")
        for result in replay(log, policy, options, partial(truth_of_trial, trial)):
            name = f"{trial.parent.name}/{trial.name} {result.policy} on {result.device}"
            differing, count = result.differing, len(result.decisions)
            same = same and not differing
            against = "" if result.same_policy else " with another policy or other options"
            if not differing:
                print(f"{name}: {count} decisions{against}, identical")
                continue
            print(f"{name}: {len(differing)} of {count} decisions{against} differ ({len(differing) / count:.1%})")
            for decision in differing[:show]:
                print(difference(decision, result.decisions[0].t_ns, result.same_policy))
    raise SystemExit(0 if same else 1)


def policy_options(settings: list[str]) -> dict[str, object]:
    """`["options.x=1"]` -> `{"x": 1}`. Raises InputError for what is no option of a policy."""
    from testbed.cli.options import parse_settings
    from testbed.errors import InputError

    values, sweep = parse_settings(settings)
    for key in (*sweep, *values):
        if not key.startswith("options.") or key in sweep:
            raise InputError("is not one option of the policy", key="--set", value=key,
                             remedy="write for example --set options.initial_bps=1e6")
    return {key.removeprefix("options."): value for key, value in values.items()}


def difference(decision: Decision, start_ns: int, same_policy: bool) -> str:
    """One differing decision in words."""
    lines = [f"  decision {decision.index}, request {decision.request_id}, "
             f"{(decision.t_ns - start_ns) / 1e9:.3f} s after the first",
             f"    logged: {described(decision.logged)}", f"    now:    {described(decision.made)}"]
    if same_policy and not decision.same_scores():
        names = sorted({*decision.logged_scores, *decision.made_scores})
        lines += [f"    {name}: {decision.logged_scores.get(name)} / {decision.made_scores.get(name)}" for name in names
                  if decision.logged_scores.get(name) != decision.made_scores.get(name)]
    return "\n".join(lines)


def described(plan: Plan) -> str:
    """A plan on one line: its name, steps with model, codec and exit rule, backup, fallback and retries."""
    def step(s: Step) -> str:
        rule = f" {s.exit.kind} {s.exit.threshold:g}" if s.exit else ""
        return f"{s.node}[{s.model} {s.start}:{s.stop} {s.codec}{rule}]"

    parts = [f"{plan.name}: " + " > ".join(map(step, plan.steps))]
    if plan.backup:
        parts.append(f"backup after {plan.backup_after_s or 0.0:.6g} s " + " > ".join(map(step, plan.backup)))
    if plan.fallback:
        parts.append("fallback " + " > ".join(map(step, plan.fallback)))
    return ", ".join([*parts, *([f"{plan.retries} retries"] if plan.retries else [])])
