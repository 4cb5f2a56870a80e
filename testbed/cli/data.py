"""`testbed data`: list the data sets and where they are, and get those that are not shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.errors import InputError, TestbedError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="List data sets, check one of your own, and get those that are not shipped.")


@app.command("list")
def list_data() -> None:
    """One block per data set: what it is, splits, and where it is (or how to get it)."""
    from testbed.inference import cifar10
    from testbed.inference.data import DATASETS, SPLITS, load_dataset

    about = {"digits": "handwritten digits of 8x8 pixels, enlarged to frames of 64x64; comes with scikit-learn",
             "cifar10": f"{cifar10.ABOUT}\n    licence: {cifar10.LICENCE}\n    cite: {cifar10.CITATION}"}
    for name in DATASETS:
        typer.echo(f"{name}: {about[name]}")
        try:
            splits = [load_dataset(name, split) for split in SPLITS]
            where = f" in {cifar10.find_cifar10()}" if name == "cifar10" else ""
            sizes = ", ".join(f"{data.split} {len(data):,}" for data in splits)
            typer.echo(f"    {sizes} samples of {'x'.join(map(str, splits[0].shape))}, {splits[0].classes} classes{where}")
        except TestbedError as error:
            typer.echo(f"    not usable: {error}")


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="an .npz file, or a folder of images")],
    image_size: Annotated[str | None, typer.Option("--image-size", help="HEIGHTxWIDTH to resize the images to")] = None,
) -> None:
    """Open a data set of your own as a scenario would, and say what it holds."""
    from testbed.inference.data import SPLITS, load_dataset

    name = path if path.endswith(".npz") or "/" in path else f"./{path}"
    size = None if image_size is None else _size(image_size)
    found = []
    for split in SPLITS:
        try:
            found.append(load_dataset(name, split, size))
        except InputError:
            if split == "test":
                raise
    for data in found:
        typer.echo(f"{data.split}: {len(data):,} samples of {'x'.join(map(str, data.shape))}, {data.classes} classes"
                   f"{': ' + ', '.join(data.class_names) if data.class_names else ''}")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="cifar10")],
    folder: Annotated[Path | None, typer.Option("--into", help="folder that receives cifar-10-batches-py/; default "
                                                "~/.cache/testbed/data, where scenarios find it")] = None,
    url: Annotated[str | None, typer.Option("--url", help="another copy of the archive; file:///PATH for one that you "
                                            "have")] = None,
) -> None:
    """Download a data set, checked against its published md5; needs the internet."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from testbed.inference import cifar10
    from testbed.inference.get_data import get_cifar10
    from testbed.schema.data import cache_root

    if name != "cifar10":
        raise InputError("there is nothing to get under this name", key="NAME", value=name,
                         remedy="use cifar10; digits comes with scikit-learn, which is installed")
    into = folder or cache_root()
    typer.echo(f"cifar10: {cifar10.ABOUT}\n  from: {url or cifar10.ARCHIVE_URL}\n  licence: {cifar10.LICENCE}\n"
               f"  cite: {cifar10.CITATION}")
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("cifar-10-python.tar.gz", total=cifar10.ARCHIVE_BYTES)
        done = get_cifar10(into, url or cifar10.ARCHIVE_URL,
                           progress=lambda received, size: bar.update(task, completed=received, total=size))
    if done is None:
        typer.echo(f"{into / cifar10.FOLDER}: already there, every md5 agrees")
        return
    typer.echo(f"{done}: fetched, every md5 agrees")
    if folder is not None:
        typer.echo(f"set TESTBED_DATA={into.resolve()} for scenarios to find it")


def _size(text: str) -> tuple[int, int]:
    """`32x32` or `32` -> (32, 32). Raises InputError."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 0 < int(p) <= 4096 for p in parts):
        raise InputError("is not a size in pixels", key="--image-size", value=text, remedy="write HEIGHTxWIDTH, such as 32x32")
    return int(parts[0]), int(parts[-1])
