"""`testbed models`: list, cut, train and time the models of a catalogue."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from testbed.cli.codecs import codecs, train_bottleneck
from testbed.cli.cuts import cuts
from testbed.cli.exits import exits
from testbed.cli.statistics import statistics
from testbed.errors import InputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="List and train the models of the catalogue.")

app.command("cuts")(cuts)
app.command("exits")(exits)
app.command("statistics")(statistics)
app.command("codecs")(codecs)
app.command("train-bottleneck")(train_bottleneck)

_CATALOGUE = Path("nodes/models/catalogue.yaml")
CatalogueOption = Annotated[Path, typer.Option("--catalogue", help="Catalogue file.")]


@app.command("list")
def list_models(catalogue: CatalogueOption = _CATALOGUE) -> None:
    """List the models: accuracy of their exits, size and cost."""
    from testbed.inference.catalogue import load_catalogue

    found = load_catalogue(catalogue)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("model", "data set", "accuracy of the exits", "parameters", "MMAC", "ms"):
        is_number = heading in ("parameters", "MMAC", "ms")
        table.add_column(heading, no_wrap=heading != "accuracy of the exits", justify="right" if is_number else "left")
    for info in found.models.values():
        table.add_row(
            info.name, info.dataset, ", ".join(f"{e.name} {e.accuracy:.1%}" for e in info.exits),
            f"{info.parameters / 1e6:.2f} M", f"{sum(s.macs for s in info.stages) / 1e6:.1f}",
            f"{info.reference_time_s(0, info.num_stages) * 1e3:.2f}")
    machines = dict.fromkeys(str(info.reference.get("machine", "the reference machine")) for info in found.models.values())
    console = Console()
    console.print(table)
    console.print(f"ms: all stages, batch 1, one thread of {', '.join(machines)}. `testbed models show NAME` tells more.",
                  highlight=False)


@app.command("show")
def show(name: str, catalogue: CatalogueOption = _CATALOGUE) -> None:
    """Show one model: exits with accuracy and calibration, cost, training recipe, weights."""
    from testbed.inference.catalogue import load_catalogue

    info = load_catalogue(catalogue)[name]
    table = Table(show_header=False, title=info.name, title_justify="left")
    for key, value in (
        ("data set", f"{info.dataset}, frames of {'x'.join(map(str, info.input_shape))}, {info.classes} classes"),
        ("stages", ", ".join(s.name for s in info.stages)),
        *((f"exit {e.name}", f"after {info.stages[e.after].name}, accuracy {e.accuracy:.1%}" + (
            "" if e.ece is None or e.ece_calibrated is None else
            f", calibration error {e.ece:.1%}, {e.ece_calibrated:.1%} at temperature {e.temperature:.2f}"))
          for e in info.exits),
        ("parameters", f"{info.parameters:,}, of which exit heads {sum(e.parameters for e in info.exits):,}"),
        ("cost", f"{sum(s.macs for s in info.stages) / 1e6:.1f} MMAC, "
                 f"{info.reference_time_s(0, info.num_stages) * 1e3:.2f} ms on one thread of "
                 f"{info.reference.get('machine', 'the reference machine')}"),
        ("recipe", f"seed {info.seed}, {info.recipe}"),
        ("weights", f"{info.weights} ({info.storage}), sha256 {info.sha256[:16]}"),
    ):
        table.add_row(key, value)
    Console().print(table)


@app.command("train")
def train(name: str, catalogue: CatalogueOption = _CATALOGUE, seed: Annotated[int, typer.Option(min=0)] = 1,
          fresh: Annotated[bool, typer.Option("--fresh", help="Forget an interrupted training of this model.")] = False,
          ) -> None:
    """Train a shipped model again, and write its weights and its entries in the catalogue. Interrupted, it goes on."""
    from testbed.inference.publish import checkpoint_of, train_to_catalogue
    from testbed.inference.recipes import RECIPES
    from testbed.inference.train import bfloat16_is_native

    if name not in RECIPES:
        raise InputError("there is no training recipe for this model", key="NAME", value=name,
                         remedy=f"use one of {', '.join(RECIPES)}")
    if RECIPES[name].bfloat16 and not bfloat16_is_native():
        typer.echo("this processor has no bfloat16: training in float32, which takes longer", err=True)
    checkpoint = checkpoint_of(name, seed)
    if fresh:
        checkpoint.unlink(missing_ok=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        result = train_to_catalogue(
            name, catalogue, machine=cpu_model(), seed=seed, checkpoint=checkpoint,
            progress=lambda done, of, text: bar.update(task, completed=done, total=of, description=f"{name} {text}"))
    checkpoint.unlink(missing_ok=True)
    for entry, scores in result.accuracy.items():
        leaving = result.leaving[entry]
        typer.echo(f"{entry}: accuracy on the test split: {', '.join(f'{e} {v:.1%}' for e, v in scores.items())}")
        if len(scores) > 1:
            shares = ", ".join(f"{e} {share:.1%}" for e, share in leaving["share"].items())
            typer.echo(f"  leaving at probability >= {leaving['threshold']}: {shares}; accuracy then {leaving['accuracy']:.1%}")
    typer.echo(f"written: {catalogue} and {', '.join(map(str, result.weights))}")


@app.command("time")
def time_models(names: Annotated[list[str] | None, typer.Argument(help="Models; all when none is named.")] = None,
                catalogue: CatalogueOption = _CATALOGUE) -> None:
    """Measure the reference times of models on this machine again, and write them into the catalogue."""
    from testbed.inference.catalogue import load_catalogue, load_model
    from testbed.inference.publish import write_reference_times

    found = load_catalogue(catalogue)
    for name in names or list(found.models):
        before = found[name].reference_time_s(0, found[name].num_stages)
        after = write_reference_times(load_model(found, name), catalogue, cpu_model())
        typer.echo(f"{name}: {after * 1e3:.2f} ms, catalogue said {before * 1e3:.2f} ms")


def cpu_model() -> str:
    """Name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
