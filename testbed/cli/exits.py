"""`testbed models exits`: what each threshold gives, from the logits of a whole split; the run's analytic companion."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from testbed.errors import InputError


def exits(
    name: Annotated[str, typer.Argument(help="A model of the catalogue with an early exit.")],
    catalogue: Annotated[Path, typer.Option("--catalogue", help="Catalogue file.")] = Path("nodes/models/catalogue.yaml"),
    thresholds: Annotated[str | None, typer.Option("--thresholds", help="Comma-separated; default 0 to above 1.")] = None,
    rule: Annotated[str, typer.Option("--rule", help="max_probability or entropy")] = "max_probability",
    split: Annotated[str, typer.Option("--split", help="train, calibration or test")] = "test",
    limit: Annotated[int | None, typer.Option("--samples", min=1, help="Only the first so many samples.")] = None,
    table_file: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file.")] = None,
) -> None:
    """Exit shares, accuracies and cost of every threshold over a whole split, without a network."""
    from dataclasses import replace

    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from testbed.inference.catalogue import load_catalogue, load_model
    from testbed.inference.data import load_dataset
    from testbed.inference.evaluate import exit_logits
    from testbed.inference.staged import StagedModel
    from testbed.inference.thresholds import THRESHOLDS, threshold_table

    asked = THRESHOLDS if thresholds is None else _numbers(thresholds)
    if rule not in ("max_probability", "entropy"):
        raise InputError("is no exit rule with a threshold", key="--rule", value=rule, remedy="use max_probability or entropy")
    loaded = load_catalogue(catalogue)
    info = loaded[name]
    if len(info.exits) < 2:
        raise InputError(f"model {name} has no early exit", key="NAME", value=name,
                         remedy="choose a model that `testbed models list` shows with several exits")
    data = load_dataset(info.dataset, split)  # type: ignore[arg-type]  # checked there
    data = data if limit is None else replace(data, frames=data.frames[:limit], y=data.y[:limit])
    model = load_model(loaded, name).model
    if not isinstance(model, StagedModel):
        raise InputError(f"model {name} is a graph without exits", key="NAME", value=name, remedy="choose a staged model")
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True),
                  transient=True) as bar:
        task = bar.add_task(f"{name} on {info.dataset} {split}", total=len(data))
        logits = exit_logits(model, data, progress=lambda done, of: bar.update(task, completed=done))
    rows = threshold_table(info, logits, data.y, asked, rule)  # type: ignore[arg-type]  # one of the two
    early = [e.name for e in info.exits[:-1]]
    shown = Table(title=f"{name}, {rule}, {len(data):,} samples of {info.dataset} {split}", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("threshold", *(f"leave at {e}" for e in early), "accuracy early", "final on the same", "escalated", "all",
                    "mean MMAC"):
        shown.add_column(heading, justify="right")
    for row in rows:
        cells = (row.accuracy_early, row.accuracy_early_final, row.accuracy_escalated, row.accuracy)
        shown.add_row(f"{row.threshold:g}", *(f"{row.exit_shares[e]:.2%}" for e in early),
                      *("-" if cell is None else f"{cell:.2%}" for cell in cells), f"{row.mean_macs / 1e6:.1f}")
    Console().print(shown)
    if table_file is not None:
        with open(table_file, "w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream, lineterminator="\n")
            out.writerow(["threshold", "early_share", *(f"exit_share[{e.name}]" for e in info.exits), "accuracy_early",
                          "accuracy_early_final", "accuracy_escalated", "accuracy", "mean_macs"])
            for row in rows:
                out.writerow([row.threshold, row.early_share, *(row.exit_shares[e.name] for e in info.exits), row.accuracy_early,
                              row.accuracy_early_final, row.accuracy_escalated, row.accuracy, row.mean_macs])
        typer.echo(f"{table_file}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= value < 1e9 for value in found):
        raise InputError("is not a list of thresholds", key="--thresholds", value=text, remedy="write for example 0,0.5,0.8,1.01")
    return found
