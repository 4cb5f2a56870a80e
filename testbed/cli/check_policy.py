"""`testbed check-policy NAME`: the conformance test of a policy, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from testbed.policies import Context

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def check_policy(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A built-in policy's name, or file.py:Class.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Option of the policy, such as "
                                                       "options.initial_bps=1e6. Repeatable.")] = None,
    scenario: Annotated[Path | None, typer.Option("--scenario", help="Scenario whose nodes, models and profiles the policy is "
                                                  "told of; a made-up system without it.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the made-up requests.")] = 1,
) -> None:
    """Check that a policy is deterministic, quick, robust, and that its plans can be executed; ends with 1 when it is not."""
    from pydantic import ValidationError

    from testbed.cli.replay_decisions import policy_options
    from testbed.errors import InputError
    from testbed.policies import make_policy
    from testbed.policies.check import check_policy as check
    from testbed.policies.rehearsal import made_up_context
    from testbed.schema.scenario import PolicySpec

    options = policy_options(settings or [])
    context = made_up_context() if scenario is None else scenario_context(scenario)
    try:
        spec = PolicySpec(name="checked", policy=policy, options=options)
    except ValidationError:
        raise InputError("is no name of a policy", key="POLICY", value=policy,
                         remedy="give a built-in policy's name, or a file such as my_policy.py:MyPolicy") from None
    made = make_policy(spec, context)  # a wrong name or option is the user's input
    report = check(type(made), options, context, seed=seed)
    print(report)
    raise SystemExit(0 if report.ok else 1)


def scenario_context(path: Path) -> Context:
    """What policies on the first device of a scenario know. Raises InputError."""
    from testbed.experiment.content import Content
    from testbed.experiment.trials import context_for, devices_of
    from testbed.schema.files import expand

    scenario = next(iter(expand(path))).scenario
    return context_for(scenario, Content.of(scenario, path), devices_of(scenario)[0], repeat=0)
