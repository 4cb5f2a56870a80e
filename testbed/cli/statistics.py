"""`testbed models statistics`: measure and write what policies may know of a model: exit curve and payload bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def statistics(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all when none is named.")] = None,
    catalogue: Annotated[Path, typer.Option("--catalogue", help="Catalogue file.")] = Path("nodes/models/catalogue.yaml"),
) -> None:
    """Measure exit curves and payload bytes per codec and cut on the calibration split; write them into the catalogue."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from testbed.inference.catalogue import load_catalogue, load_model
    from testbed.inference.publish import write_statistics

    torch.set_num_threads(1)
    found = load_catalogue(catalogue)
    loaded = [load_model(found, name) for name in names or found.models]  # all named models exist before one is measured
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True),
                  transient=True) as bar:
        task = bar.add_task("", total=None)
        for model in loaded:
            bar.reset(task, description=model.info.name)
            measured = write_statistics(model, catalogue, lambda done, of: bar.update(task, completed=done, total=of))
            curve = measured.get("exit_curve")
            exits = "no early exit" if curve is None else f"{len(curve['threshold'])} thresholds on {curve['samples']:,} samples"
            typer.echo(f"{model.info.name}: {exits}, {len(measured['wire_bytes'])} codecs at {model.info.num_stages + 1} cuts")
