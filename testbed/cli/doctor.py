"""`testbed doctor`: what this machine can do, and what a run on it will use."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def doctor(as_json: bool = typer.Option(False, "--json", help="print the findings as JSON")) -> None:
    """Say what this machine can do and what will be used. Exit code 0 if the quickstart can run, else 3."""
    from testbed.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        findings = {
            "quickstart_runs": diagnosis.quickstart_runs,
            "will_use": dict(diagnosis.will_use),
            "checks": [asdict(check) for check in diagnosis.checks],
        }
        print(json.dumps(findings, indent=2))
    else:
        show(diagnosis)
    raise typer.Exit(0 if diagnosis.quickstart_runs else 3)


def show(diagnosis: object) -> None:
    """Two tables in the terminal: findings (with a remedy where one is wanted), and what will be used."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from testbed.doctor import Diagnosis

    assert isinstance(diagnosis, Diagnosis)
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold", title="This machine", title_justify="left")
    for heading in ("", "what", "found", "remedy"):
        table.add_column(heading, overflow="fold")
    group = ""
    for check in diagnosis.checks:
        if check.group != group:
            group = check.group
            table.add_row("", Text(group, style="bold underline"), "", "")
        mark, style = ("✓", "green") if check.good else ("✗", "red") if check.needed else ("–", "yellow")
        table.add_row(Text(mark, style=style), check.name, check.value, "" if check.good else check.remedy)
    console.print(table)
    console.print()
    used = Table(box=None, pad_edge=False, show_header=False, title="A run will use", title_justify="left")
    for what, how in diagnosis.will_use.items():
        used.add_row(Text(what, style="bold"), how)
    console.print(used)
    console.print()
    if diagnosis.quickstart_runs:
        console.print(Text("The quickstart can run here: make run", style="green"))
    else:
        missing = ", ".join(check.name for check in diagnosis.checks if check.needed and not check.good)
        console.print(Text(f"The quickstart cannot run here yet: {missing} (remedies above)", style="red"))
