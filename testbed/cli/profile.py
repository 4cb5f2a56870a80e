"""`testbed profile`: measure the service times of a model's stages on this machine and write them as a compute profile."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli.models import cpu_model
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.inference.catalogue import ModelInfo
    from testbed.inference.profiling import ModelProfile, Spread

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

_CATALOGUE = Path("nodes/models/catalogue.yaml")


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="model of the catalogue")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="profile file to write (FILE.yaml)")] = None,
    threads: Annotated[int, typer.Option(min=1, help="threads of torch")] = 1,
    repeats: Annotated[int, typer.Option(min=20, help="passes over all stages")] = 200,
    pause: Annotated[str, typer.Option(help="pause before each pass, as between sparse requests")] = "0ms",
    description: Annotated[str, typer.Option(help="what machine this is, for the file")] = "",
    catalogue: Annotated[Path, typer.Option("--catalogue", help="catalogue file")] = _CATALOGUE,
    regressors: Annotated[Path | None, typer.Option("--regressors", help="sweep layer sizes, fit a regression per layer type, "
                                                    "and write it (FILE.json)")] = None,
    sweep_passes: Annotated[int, typer.Option(min=3, help="with --regressors: passes over the layers of the sweep")] = 30,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file if it exists")] = False,
) -> None:
    """Measure each stage and exit head of MODEL (one sample): median, 5th and 95th percentile, coefficient of variation."""
    from testbed.inference.catalogue import load_catalogue
    from testbed.schema.units import parse_duration_s

    try:
        pause_s = parse_duration_s(pause)
    except ValueError as error:
        problem, _, remedy = str(error).partition("|")
        raise InputError(problem, key="--pause", value=pause, remedy=remedy) from None
    _check_output(output, "--output", (".yaml", ".yml"), "a profile file", overwrite)
    _check_output(regressors, "--regressors", (".json",), "a file of regressions", overwrite)
    info = load_catalogue(catalogue)[model]
    measured = _measure(catalogue, model, threads, repeats, pause_s)
    _show(info, measured)
    if regressors is not None:
        from testbed.cli.regressors import sweep_and_write

        sweep_and_write(regressors, catalogue, model, [s.median_s for s in measured.stages], threads, sweep_passes)
    if output is None:
        typer.echo("not written; -o FILE.yaml writes it as a compute profile")
        return
    from testbed.inference.profiling import write_profile

    write_profile(output, output.stem, description or f"{cpu_model()}, {_threads(threads)}",
                  _source(threads, repeats, pause), model, measured)
    typer.echo(f"written: {output}; use it as compute: {{profile: {output.name}}}, by a path relative to the file that says so")


def _check_output(file: Path | None, key: str, endings: tuple[str, ...], what: str, overwrite: bool) -> None:
    if file is None:
        return
    if file.suffix not in endings:
        raise InputError(f"is not the name of {what}", key=key, value=str(file), remedy=f"let it end in {endings[0]}")
    if file.exists() and not overwrite:
        raise InputError("exists", file=file, key=key, remedy="choose another name, or add --overwrite")


def _measure(catalogue: Path, model: str, threads: int, repeats: int, pause_s: float) -> ModelProfile:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from testbed.inference.catalogue import load_catalogue, load_model
    from testbed.inference.profiling import measure_profile

    loaded = load_model(load_catalogue(catalogue), model)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=repeats)
        return measure_profile(loaded.model, loaded.info, threads=threads, repeats=repeats, pause_s=pause_s,
                               progress=lambda done, of: bar.update(task, completed=done))


def _show(info: ModelInfo, measured: ModelProfile) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{info.name} on {cpu_model()}", box=box.SIMPLE_HEAD, caption="one sample; ratio: median over the "
                  "catalogue's reference time")
    for heading in ("stage", "median ms", "p5", "p95", "cv", "reference ms", "ratio"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "stage" else "right")

    def row(label: str, spread: Spread, reference_s: float) -> None:
        table.add_row(label, *(f"{s * 1e3:.3f}" for s in (spread.median_s, spread.p5_s, spread.p95_s)), f"{spread.cv:.1%}",
                      f"{reference_s * 1e3:.3f}", f"{spread.median_s / reference_s:.2f}" if reference_s else "-")

    for stage, spread in zip(info.stages, measured.stages, strict=True):
        row(stage.name, spread, stage.reference_time_s)
    for info_exit in info.exits:
        if info_exit.name in measured.heads:
            row(f"exit {info_exit.name}", measured.heads[info_exit.name], info_exit.reference_time_s)
    row("all stages", measured.whole, info.reference_time_s(0, info.num_stages))
    Console().print(table)


def _source(threads: int, repeats: int, pause: str) -> str:
    import torch

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (f"Measured on {today} by testbed profile: {cpu_model()}, {_threads(threads)}, torch {torch.__version__}, {repeats} "
            f"passes of one sample, pause {pause}. Medians.")


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
