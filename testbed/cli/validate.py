"""`testbed validate`: check scenario, study and topology files, and every file that they name, without touching anything."""

from __future__ import annotations

from pathlib import Path

import typer

from testbed.cli.options import parse_settings

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def validate(
    files: list[Path] = typer.Argument(..., help="scenario, study or topology files"),
    settings: list[str] = typer.Option([], "--set", help="key=value, or key=a,b,c as a sweep (dotted keys)"),
) -> None:
    """Check FILES; one line each, exit code 2 at the first error."""
    from testbed.experiment.trials import plan_experiment
    from testbed.schema.files import load_topology, read_document

    overrides, sweep = parse_settings(settings)
    for file in files:
        data = read_document(file).data
        if data.get("study") is not None:
            from testbed.cli.study import refuse_trial_options
            from testbed.experiment.studies import plan_study

            refuse_trial_options(file, sweep, "auto", 1)
            print(f"{file}: valid study of kind {plan_study(file, overrides).spec.study}")
        elif "tiers" in data:
            topology = load_topology(file)
            print(f"{file}: valid topology, {len(topology.node_names)} nodes, {len(topology.node_links())} links")
        else:
            experiment = plan_experiment(file, overrides, sweep)
            policies = list(dict.fromkeys(t.policy.name for t in experiment.trials))
            print(f"{file}: valid scenario, {len(experiment.trials)} trials of {', '.join(policies)}")
