"""`testbed profile --regressors`: the sweep of layer sizes, the held-out errors, and what the regressions say of a model."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from testbed.cli.models import cpu_model

if TYPE_CHECKING:
    from testbed.inference.regressors import Regressor, Regressors


def sweep_and_write(file: Path, catalogue: Path, model: str, measured_s: list[float], threads: int, passes: int) -> None:
    """Sweep, fit, predict every model of the catalogue, show it beside the measured stages of `model`, and write `file`."""
    from testbed.inference.regressors import Regressors

    layers = _sweep(threads, passes)
    fitted = Regressors(cpu_model(), _source(threads, passes), layers)
    stages, left_out = _stages(fitted, catalogue)
    found = Regressors(fitted.machine, fitted.source, layers, stages)
    found.write(file)
    _show(found)
    if model in stages:
        _show_stages(model, stages[model], measured_s)
    if left_out:
        typer.echo("no times predicted: " + "; ".join(f"{name} ({why})" for name, why in left_out.items()))
    typer.echo(f"written: {file}; use it as options: {{regression: {file.name}}} of a policy, by a path relative to the scenario")


def _sweep(threads: int, passes: int) -> dict[str, Regressor]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from testbed.inference.layer_sweep import fit_all

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("layers", total=passes)
        return fit_all(passes, threads=threads, progress=lambda done, of: bar.update(task, completed=done))


def _stages(fitted: Regressors, catalogue: Path) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
    """Predicted stage times of every model of the catalogue, and why some have none."""
    from testbed.inference.catalogue import builder, load_catalogue
    from testbed.inference.regressors import layers_of

    stages, left_out = {}, {}
    for name, info in load_catalogue(catalogue).models.items():
        if info.storage == "torch-int8":
            left_out[name] = "8-bit layers"
            continue
        try:
            stages[name] = tuple(map(fitted.predict_s, layers_of(builder(info.builder, catalogue)().eval())))
        except ValueError as error:
            left_out[name] = str(error)
    return stages, left_out


def _show(found: Regressors) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"layer regressions on {found.machine}", box=box.SIMPLE_HEAD,
                  caption="median, p90: of |predicted - measured| / measured, over the layers held out")
    for heading in ("layer type", "form", "layers", "held out", "median", "p90"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("layer type", "form") else "right")
    for kind, r in found.layers.items():
        table.add_row(kind, r.form, str(r.samples), str(r.held_out), f"{r.median_error:.1%}", f"{r.p90_error:.1%}")
    Console().print(table)


def _show_stages(model: str, predicted_s: tuple[float, ...], measured_s: list[float]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{model} by its layers", box=box.SIMPLE_HEAD)
    for heading in ("stage", "predicted ms", "measured ms", "ratio"):
        table.add_column(heading, no_wrap=True, justify="right")
    rows = [*((str(i), p, m) for i, (p, m) in enumerate(zip(predicted_s, measured_s, strict=True))),
            ("all stages", sum(predicted_s), sum(measured_s))]
    for label, predicted, measured in rows:
        table.add_row(label, f"{predicted * 1e3:.3f}", f"{measured * 1e3:.3f}",
                      f"{predicted / measured:.2f}" if measured else "-")
    Console().print(table)


def _source(threads: int, passes: int) -> str:
    import torch

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (f"Measured on {today} by testbed profile --regressors: {cpu_model()}, {threads} thread{'s' * (threads > 1)}, "
            f"torch {torch.__version__}, {passes} passes. Medians.")
