"""Ladders of models, most accurate first, with the source of each number: MobileNetV1 on ImageNet, or ours from a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue
from testbed.schema.topology import Strict

ZOO = "TensorFlow model zoo (tensorflow/models, research/slim/nets/mobilenet_v1.md)"


class Variant(Strict):
    """One model of a ladder. Accuracies are shares (0 to 1); `mmacs`: millions of multiply-accumulates per inference."""

    name: str = Field(min_length=1)
    precision: Literal["fp32", "int8"] = "fp32"
    mmacs: float = Field(gt=0)
    top1: float = Field(ge=0, le=1)
    top5: float | None = Field(None, ge=0, le=1)
    source: str = ""
    reference_s: float | None = Field(None, gt=0)  # time on a core of speed 1; without it mmacs and the platform's rate say it


def _zoo(name: str, precision: Literal["fp32", "int8"], mmacs: float, top1: float, top5: float) -> Variant:
    return Variant(name=name, precision=precision, mmacs=mmacs, top1=top1, top5=top5, source=ZOO)


# 224 x 224 pixels, widths 1.0, 0.75, 0.5, 0.25; the names d0..d7 follow falling width, float first
MOBILENET_V1: tuple[Variant, ...] = (
    _zoo("d0", "fp32", 569, 0.709, 0.899), _zoo("d1", "fp32", 317, 0.684, 0.882),
    _zoo("d2", "fp32", 150, 0.633, 0.849), _zoo("d3", "fp32", 41, 0.498, 0.742),
    _zoo("d4", "int8", 569, 0.697, 0.895), _zoo("d5", "int8", 317, 0.679, 0.881),
    _zoo("d6", "int8", 150, 0.622, 0.845), _zoo("d7", "int8", 41, 0.482, 0.738))


def accuracies(ladder: Sequence[Variant], measure: str) -> tuple[float, ...]:
    """Nominal accuracy of each model, `top1` or `top5`. Raises InputError where a model has none."""
    found = [v.top1 if measure == "top1" else v.top5 for v in ladder]
    missing = [v.name for v, a in zip(ladder, found, strict=True) if a is None]
    if missing:
        raise InputError("has no top-5 accuracy", key="accuracy", value=missing[0], remedy="write accuracy: top1, or add top5:")
    return tuple(a for a in found if a is not None)


def from_catalogue(path: Path, names: Sequence[str]) -> tuple[Variant, ...]:
    """A ladder of models of a catalogue file, in the order given. Raises InputError for a name that it has not."""
    catalogue = load_catalogue(path)
    return tuple(
        Variant(name=name, precision="int8" if name.endswith("_int8") else "fp32",
                mmacs=sum(stage.macs for stage in catalogue[name].stages) / 1e6, top1=catalogue[name].exits[-1].accuracy,
                reference_s=catalogue[name].reference_time_s(0, catalogue[name].num_stages),
                source=f"{path.name}, test split of {catalogue[name].dataset}")
        for name in names)
