"""`testbed models codecs` and `train-bottleneck`: what codecs there are, what they do to a model's tensors, learned ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.inference.codecs import Registry

_CATALOGUE = Path("nodes/models/catalogue.yaml")
CatalogueOption = Annotated[Path, typer.Option("--catalogue", help="Catalogue file.")]


def codecs(
    catalogue: CatalogueOption = _CATALOGUE,
    model: Annotated[str | None, typer.Option("--model", help="Measure on this model's tensors, at every cut.")] = None,
    cut: Annotated[list[int] | None, typer.Option("--cut", min=0, help="Only at this cut; may be repeated.")] = None,
    codec: Annotated[list[str] | None, typer.Option("--codec", help="Only this codec; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples to measure on.")] = 50,
) -> None:
    """List the codecs, or measure them on a model's tensors."""
    from testbed.inference.codecs import Registry

    registry = Registry(catalogue)
    names = [registry.named(name).name for name in codec] if codec else list(registry)
    if model is not None:
        return _measure(catalogue, registry, model, names, cut, samples)
    if cut:
        raise InputError("belongs to --model", key="--cut", value=cut[0], remedy="add --model NAME")
    table = _table("codec", "for", "bytes", "largest error", "what it is")
    for name in names if codec else (n for n in names if "+" not in n):
        found = registry[name]
        table.add_row(name, found.kind, found.rate, found.bound, found.description)
    if not codec:
        table.add_row("+zlib +lz4 +zstd", "", "by content", "as before it", "lossless, after a codec whose bytes do not depend "
                      "on the content: int8+zstd")
    console = Console()
    console.print(table, highlight=False)
    console.print("JPEG and WebP take a quality: jpeg-50. Bytes are those of the tensor, without the message header.",
                  highlight=False)
    return None


def _measure(catalogue: Path, registry: Registry, model: str, names: list[str], cut: list[int] | None, samples: int) -> None:
    import torch

    from testbed.inference.catalogue import load_catalogue, load_model
    from testbed.inference.codecs.measure import Measured, measure
    from testbed.inference.data import load_dataset

    torch.set_num_threads(1)
    loaded = load_model(load_catalogue(catalogue), model)
    wrong = [c for c in cut or () if c > loaded.info.num_stages]
    if wrong:
        raise InputError(f"model {model} has no such cut", key="--cut", value=wrong[0],
                         remedy=f"use 0 to {loaded.info.num_stages}")
    data = load_dataset(loaded.info.dataset, "calibration")
    table = _table("cut", "codec", "bytes", "ratio", "largest error", "encode ms", "decode ms")
    cuts = list(dict.fromkeys(cut)) if cut else list(range(loaded.info.num_stages + 1))
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True),
                  transient=True) as bar:
        task = bar.add_task(model, total=len(cuts) * len(names))
        for row in measure(loaded, data.x[:samples], registry, names, cuts,
                           lambda done, of: bar.update(task, completed=done)):
            if isinstance(row, Measured):
                table.add_row(str(row.cut), row.codec, f"{row.size_bytes:,.0f}", f"{row.ratio:.1f}", f"{row.error:.2g}",
                              f"{row.encode_s * 1e3:.3f}", f"{row.decode_s * 1e3:.3f}")
            else:
                table.add_row(str(row[0]), row[1], *["-"] * 5)
    console = Console()
    console.print(table, highlight=False)
    console.print(f"{min(samples, len(data))} calibration samples; bytes: mean without the message header; ratio: to float32; "
                  "times: medians of this machine, now. A dash: not made for that tensor.", highlight=False)


def train_bottleneck(
    model: str,
    cut: Annotated[int, typer.Option("--cut", min=0, help="Cut at which the tensor is to be compressed.")],
    catalogue: CatalogueOption = _CATALOGUE,
    channels: Annotated[int, typer.Option(min=1, max=4096, help="Channels of the code.")] = 8,
    stride: Annotated[int, typer.Option(min=1, max=32, help="How many times narrower and lower than the tensor it is.")] = 2,
    bits: Annotated[int, typer.Option(min=1, max=8, help="Bits of each value of the code.")] = 8,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    reconstruction_epochs: Annotated[int, typer.Option(min=0, help="Of these, the first that only rebuild the tensor.")] = 2,
    samples: Annotated[int, typer.Option(min=0, help="Training samples per epoch; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0)] = 0.02,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the batches (not for digits).")] = False,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="The frozen model computes in bfloat16.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    variant: Annotated[str | None, typer.Option("--variant", help="A second one at this cut: MODEL@CUT.VARIANT.")] = None,
) -> None:
    """Train a learned codec for one cut of a model, with the model frozen; goes on after an interruption."""
    import re

    from testbed.inference.bottleneck import BottleneckRecipe, train_to_catalogue
    from testbed.inference.catalogue import load_catalogue

    if variant is not None and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", variant):
        raise InputError("is not a short name", key="--variant", value=variant, remedy="use small letters, digits, - and _")
    if reconstruction_epochs >= epochs:
        raise InputError("leaves no epoch for the cross-entropy", key="--reconstruction-epochs", value=reconstruction_epochs,
                         remedy=f"use less than --epochs {epochs}")
    recipe = BottleneckRecipe(channels=channels, stride=stride, bits=bits, epochs=epochs, samples=samples,
                              batch_size=batch_size, learning_rate=learning_rate, flip=flip, bfloat16=bfloat16,
                              reconstruction_epochs=reconstruction_epochs)
    found = load_catalogue(catalogue)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(model, total=epochs)
        entry = train_to_catalogue(
            found, model, cut, variant=variant, seed=seed, recipe=recipe, threads=threads,
            progress=lambda done, text: bar.update(task, completed=done, description=f"{model} {text}"))
    for name, value in entry.accuracy.items():
        typer.echo(f"accuracy of exit {name} on the test split: {value:.1%} (float32: {entry.accuracy_without[name]:.1%})")
    typer.echo(f"codec bottleneck:{entry.key}: {entry.size_bytes:,} bytes for a sample, {entry.ratio:g} times fewer than float32")
    typer.echo(f"written: {catalogue} and {catalogue.parent / entry.weights}")


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    right = {"cut", "ratio", "encode ms", "decode ms"}
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("codec", "for"), justify="right" if heading in right else "left")
    return table
