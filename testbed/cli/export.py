"""`testbed export RUN -o FILE.zip`: a run as one archive for an artefact appendix."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def export(
    run: Path = typer.Argument(..., help="folder of a run, such as runs/quickstart; a bare name is looked up in runs/"),
    output: Path | None = typer.Option(None, "--output", "-o", help="archive to write (default: NAME.zip)"),
    content: bool = typer.Option(True, help="also pack weights, profiles, traces and policy files"),
) -> None:
    """Pack the finished trials of RUN: tables, manifests, report, a README with a glossary, and what is needed to repeat them."""
    from testbed.errors import InputError
    from testbed.experiment.artefact import export_run

    folder = run if run.is_dir() or not (Path("runs") / run).is_dir() else Path("runs") / run
    target = output or Path(f"{folder.resolve().name}.zip")
    if target.suffix != ".zip":
        raise InputError("is not the name of a zip archive", key="--output", value=str(target), remedy="end it with .zip")
    if not target.resolve().parent.is_dir():
        raise InputError("there is no such folder", key="--output", value=str(target.parent), remedy="make it first")
    trials = export_run(folder, target, content=content)
    print(f"{target}: {len(trials)} trials, {target.stat().st_size / 1e6:.1f} MB")
