"""`testbed models cuts`: every place where a model can be cut, with what crosses it and the cost before and after it."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.inference.catalogue import ModelInfo
    from testbed.inference.graph import GraphModel
    from testbed.inference.staged import StagedModel

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One cut. `live` names the tensors that cross it, with their shapes for one sample; `size_bytes` is theirs, as float32."""

    cut: int
    after: str
    before: str
    live: str
    size_bytes: int
    of_input: float
    macs_before: int
    macs_after: int
    time_before_s: float
    time_after_s: float
    note: str


def cuts(name: Annotated[str, typer.Argument(help="a model of the catalogue, or file.py:function")],
         catalogue: Annotated[Path, typer.Option("--catalogue", help="Catalogue file.")] = Path("nodes/models/catalogue.yaml"),
         graph: Annotated[bool, typer.Option("--graph", help="Cut a staged model at every node, not at its stages.")] = False,
         measure: Annotated[bool, typer.Option("--measure", help="Time the stages on this machine now.")] = False,
         dataset: Annotated[str | None, typer.Option(help="What a file.py:function is to classify.")] = None,
         shape: Annotated[str | None, typer.Option("--input", help="Instead of --dataset: CxHxW.")] = None,
         output: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file too.")] = None) -> None:
    """Show each place where a model can be cut: what crosses it, and the cost before and after it."""
    import torch

    from testbed.schema.files import is_own_model

    torch.set_num_threads(1)
    uncut: list[str] = []
    where = "this machine, now"
    if is_own_model(name):
        info = None
        model: StagedModel | None = _own(name, dataset, shape)
    else:
        from testbed.inference.catalogue import load_catalogue, load_model

        found = load_catalogue(catalogue)
        info = found[name]
        if graph and info.storage == "torch-int8":
            raise InputError("computes in 8 bits within its stages: only between them are tensors float32", key="--graph",
                             value=name, remedy="leave --graph away, or list the cuts of its float32 form")
        model = load_model(found, name).model if graph or measure else None
    if graph and model is not None:
        model = _traced(model, name)
    if model is None:
        assert info is not None
        rows = _rows_of_entry(info)
        where = f"{info.reference.get('machine', 'reference machine')} (from the catalogue)"
    else:
        rows, uncut = _rows_of_model(model, None if info is None or graph else [s.macs for s in info.stages])
    _print(f"{name}; one thread of {where}", rows, uncut)
    if output is not None:
        _write(rows, output)


def _own(name: str, dataset: str | None, shape: str | None) -> StagedModel:
    import numpy as np
    import torch

    from testbed.inference.data import load_dataset
    from testbed.inference.own_model import as_staged, build_module, check_classes
    from testbed.inference.trace import BATCHES

    if (dataset is None) == (shape is None):
        raise InputError("needs the shape of its input", key="NAME", value=name,
                         remedy="give either --dataset digits or --input 3x32x32")
    file = Path(name.rpartition(":")[0])
    if dataset is None:
        if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape or ""):
            raise InputError("is not a shape", key="--input", value=shape, remedy="write channels x height x width: 3x32x32")
        x = torch.rand(BATCHES[1], *map(int, str(shape).split("x")), generator=torch.Generator().manual_seed(0))
        return as_staged(build_module(name, Path()), x, file, check=True)
    data = load_dataset(dataset)
    x = torch.from_numpy(np.concatenate([data.sample(i) for i in range(BATCHES[1])]))
    model = as_staged(build_module(name, Path()), x, file, check=True)
    with torch.inference_mode():
        check_classes({exit_name: y.numpy() for exit_name, y in model.all_exits(x).items()}, data, dataset, file)
    return model


def _traced(model: StagedModel, name: str) -> GraphModel:
    import torch

    from testbed.inference.graph import GraphModel
    from testbed.inference.trace import BATCHES

    if isinstance(model, GraphModel):
        return model
    try:
        return GraphModel(model, torch.rand(BATCHES[1], *model.input_shape, generator=torch.Generator().manual_seed(0)))
    except InputError as error:
        raise InputError(error.problem, key=f"--graph {name}",
                         remedy="leave --graph away: the model is cut at its stages") from error


def _rows_of_entry(info: ModelInfo) -> list[Row]:
    return _rows([s.name for s in info.stages], [info.shape_at(i) for i in range(info.num_stages + 1)],
                 [s.macs for s in info.stages], _sums([s.reference_time_s for s in info.stages]),
                 {e.after + 1: f"exit {e.name}" for e in info.exits})


def _rows_of_model(model: StagedModel, macs: list[int] | None) -> tuple[list[Row], list[str]]:
    """Rows with the times of now, and the places that are no cuts, with the reason. `macs` of the stages, where known."""
    import torch

    from testbed.inference.describe import measure
    from testbed.inference.graph import GraphModel, cut_times_s, stage_cuts
    from testbed.inference.staged import count_macs, stage_shapes

    shapes = [model.input_shape, *stage_shapes(model)]
    if isinstance(model, GraphModel):
        notes = {cut: f"stage cut {number}" for cut, number in stage_cuts(model).items()}
        live = [" + ".join(f"{name} {_text(shape)}" for name, shape in cut.live) for cut in model.cuts]
        rows = _rows(model.stage_names, shapes, model.macs(), cut_times_s(model), notes,
                     live, [cut.after for cut in model.cuts])
        return rows, [f"no cut after {u.after}: {u.why}" for u in model.uncut]
    if macs is None:
        macs, x = [], torch.zeros(1, *model.input_shape)
        with torch.inference_mode():
            for stage in model.stages:
                macs.append(count_macs(stage, x))
                x = stage(x)
    exits = {after + 1: f"exit {name}" for after, name in model.exits.items()}
    return _rows(model.stage_names, shapes, macs, _sums(measure(model)[0]), exits), []


def _sums(times_s: Sequence[float]) -> list[tuple[float, float]]:
    return [(sum(times_s[:cut]), sum(times_s[cut:])) for cut in range(len(times_s) + 1)]


def _rows(names: Sequence[str], shapes: Sequence[Shape], macs: Sequence[int], times_s: Sequence[tuple[float, float]],
          notes: Mapping[int, str], live: Sequence[str] | None = None, after: Sequence[str] | None = None) -> list[Row]:
    from math import prod

    after = after or ["input", *names]
    live = live or [f"{a} {_text(s)}" for a, s in zip(after, shapes, strict=True)]
    return [Row(cut, after[cut], names[cut] if cut < len(names) else "", live[cut], 4 * prod(shapes[cut]),
                prod(shapes[cut]) / prod(shapes[0]), sum(macs[:cut]), sum(macs[cut:]), *times_s[cut], notes.get(cut, ""))
            for cut in range(len(names) + 1)]


def _print(title: str, rows: Sequence[Row], uncut: Sequence[str]) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left",
                  caption="MMAC and ms: before + after the cut", caption_justify="left")
    for heading in ("cut", "after", "live tensors", "bytes", "of input", "MMAC", "ms", ""):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("bytes", "of input") else "left")
    for r in rows:
        table.add_row(str(r.cut), r.after, r.live.replace(" + ", "\n"), f"{r.size_bytes:,}", f"{r.of_input:.2f}",
                      f"{r.macs_before / 1e6:.2f} + {r.macs_after / 1e6:.2f}",
                      f"{r.time_before_s * 1e3:.2f} + {r.time_after_s * 1e3:.2f}", r.note)
    console = Console() if sys.stdout.isatty() else Console(width=max(130, Console().width))
    console.print(table)
    for line in uncut:
        console.print(line, highlight=False, soft_wrap=True)


def _write(rows: Sequence[Row], path: Path) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=path, key="--csv", remedy="name a file in a folder that "
                         "exists") from None


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "1"
