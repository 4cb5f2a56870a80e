"""`testbed rerun MANIFEST`: repeat a finished trial from its manifest, and say what differs."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
NOT_REPRODUCED = 1


@app.command()
def rerun(
    manifest: Path = typer.Argument(..., help="manifest.json of a finished trial, or the trial's folder"),
    runs: Path = typer.Option(Path("reruns"), help="folder that receives the repetition"),
    content: Path | None = typer.Option(None, help="content folder of an export (default: one above the manifest, if any)"),
    engine: str = typer.Option("auto", help="container engine: auto, podman or docker"),
) -> None:
    """Repeat the trial of MANIFEST; exit code 0 when all columns that are not times came out alike, 1 when not, 4 when it
    failed."""
    from rich.console import Console

    from testbed.cli.progress import RunProgress
    from testbed.errors import InputError
    from testbed.experiment.bundle import CATALOGUE, Recipe, plan_again
    from testbed.experiment.content import find_upwards
    from testbed.experiment.estimate import Estimate
    from testbed.experiment.rerun import compare_requests, environment_differences
    from testbed.experiment.runner import run_experiment
    from testbed.experiment.trials import Experiment
    from testbed.measurement.trial import read_json

    if engine not in ("auto", "podman", "docker"):
        raise InputError("is no container engine", key="--engine", value=engine, remedy="use auto, podman or docker")
    file = manifest / "manifest.json" if manifest.is_dir() else manifest
    then = read_json(file)
    if content is None:
        above = find_upwards(file, f"content/{CATALOGUE}")
        content = None if above is None else above.parents[2]
    recipe = Recipe.of_manifest(then, file)
    place = runs / "rerun.files" / f"{then['scenario']}-{then['config_hash']}-{recipe.repeat}.yaml"
    trial, _ = plan_again(recipe, place, content)
    experiment = Experiment(trial.scenario.name, place, (trial,))
    console = Console() if sys.stdout.isatty() else Console(width=max(110, shutil.get_terminal_size((110, 24)).columns))
    signal.signal(signal.SIGTERM, _as_interrupt)
    estimate = Estimate()
    with RunProgress(console, experiment, estimate) as progress:
        result, = run_experiment(experiment, runs, resume=False, engine=engine, on_progress=progress.event)
    if result.error is not None:
        console.print(f"[red]failed[/red]: {result.error}", soft_wrap=True, highlight=False)
        raise typer.Exit(4)
    now = read_json(result.folder.path / "manifest.json")
    _show_differences(console, environment_differences(then, now))
    console.print(f"repetition: {result.folder.path}", soft_wrap=True, highlight=False)
    if not (file.parent / "requests.csv").is_file():
        console.print("there is no requests.csv beside the manifest, so there is nothing to compare with", highlight=False)
        return
    comparison = compare_requests(file.parent, result.folder.path)
    _show_comparison(console, comparison, file.parent, result.folder.path)
    raise typer.Exit(0 if comparison.reproduced else NOT_REPRODUCED)


def _show_differences(console: Any, differences: Any) -> None:
    from rich.table import Table

    if not differences:
        console.print("the same here: kernel, CPU, packages, files", highlight=False)
        return
    table = Table(title="Different here", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in ("what", "", "then", "now"):
        table.add_column(heading, overflow="fold")
    for d in differences:
        table.add_row(d.kind, d.name, *("-" if v is None else str(v) for v in (d.then, d.now)))
    console.print(table)


def _show_comparison(console: Any, comparison: Any, then: Path, now: Path) -> None:
    from testbed.experiment.rerun import latency_quantiles_s

    fixed = [c for c in comparison.columns if not c.timed]
    differing = [c for c in fixed if c.differing]
    if comparison.reproduced:
        console.print(f"reproduced: {comparison.rows_then} requests, {len(fixed)} columns that are not times are identical",
                      highlight=False)
    else:
        console.print(f"not reproduced: {comparison.rows_then} requests then, {comparison.rows_now} now, {comparison.matched} in "
                      "both", highlight=False)
        for column in differing:
            console.print(f"  {column.name}: differs in {column.differing} of {comparison.matched} requests", highlight=False)
    a, b = latency_quantiles_s(then), latency_quantiles_s(now)
    if len(a) and len(b):
        shown = ", ".join(f"p{q * 100:.0f} {a[q] * 1e3:.1f} -> {b[q] * 1e3:.1f} ms" for q in a.index)
        console.print(f"latency, then and now: {shown}", highlight=False)


def _as_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
