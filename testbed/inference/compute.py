"""Compute profiles: how long a host other than this machine takes for stages of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from testbed.errors import InputError
from testbed.inference.catalogue import ModelInfo
from testbed.schema.files import is_profile_path, read_document
from testbed.schema.topology import Strict
from testbed.schema.units import Duration

_RANGE = re.compile(r"^(\d+):(\d+)$")


class Measured(Strict):
    """A measured service time: its median is what a worker is held to; the spread is kept for the reader."""

    median: Duration
    p5: Duration | None = None
    p95: Duration | None = None
    cv: float | None = Field(None, ge=0)


def _measured(value: object) -> object:
    return value if isinstance(value, dict) else {"median": value}


Time = Annotated[Measured, BeforeValidator(_measured)]


class _ProfileFile(Strict):
    """A profile file: a measured table where there is one, a stated factor (and a floor) for the rest."""

    name: str
    description: str
    source: str = Field(min_length=10)
    slowdown: float | None = Field(None, gt=0, le=10_000)
    floor: Duration = 0.0
    table: dict[str, dict[str, Time]] = Field(default_factory=dict)
    heads: dict[str, dict[str, Time]] = Field(default_factory=dict)

    @field_validator("table")
    @classmethod
    def _ranges(cls, table: dict[str, dict[str, Measured]]) -> dict[str, dict[str, Measured]]:
        for model, ranges in table.items():
            for key in ranges:
                match = _RANGE.match(key)
                if match is None or int(match[1]) >= int(match[2]):
                    raise ValueError(f"{model}.{key} is not a stage range such as 0:3")
        return table

    @model_validator(mode="after")
    def _something(self) -> _ProfileFile:
        if self.slowdown is None and not self.table:
            raise ValueError("needs slowdown: or table:")
        if self.floor and self.slowdown is None:
            raise ValueError("floor: goes with slowdown:")
        return self


@dataclass(frozen=True)
class ComputeProfile:
    """Service time of stage ranges on some host.

    A range that stands in `table` takes that time; else the sum of its single stages where all stand there; else, stage
    by stage, `slowdown` times the catalogue's reference time, but at least `floor_s` (what a GPU needs to be given
    its work). Exit heads take the time in `heads` (by the exit's name); else `slowdown` times their reference time; else
    nothing. Reference times were measured once and are the same in every run. Without a table and a slowdown (`real`)
    nothing is held: work takes what it takes.
    """

    name: str
    source: str = "this machine"
    slowdown: float | None = None
    table: Mapping[str, Mapping[tuple[int, int], float]] = field(default_factory=dict)
    floor_s: float = 0.0
    heads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """Whether the worker runs at this machine's own speed."""
        return self.slowdown is None and not self.table

    def service_time_s(self, info: ModelInfo, start: int, stop: int, exits: tuple[int, ...] = ()) -> float | None:
        """Time of stages start..stop-1 with the exit heads after stages `exits`, for one sample; None when real.

        Raises InputError when the profile says nothing about this range.
        """
        if self.is_real:
            return None
        heads = sum(self._head_s(info, index) for index in exits)
        known = self.table.get(info.name, {})
        if (start, stop) in known:
            return known[start, stop] + heads
        singles = [known.get((i, i + 1)) for i in range(start, stop)]
        if singles and all(t is not None for t in singles):
            return sum(t for t in singles if t is not None) + heads
        if self.slowdown is None:
            raise InputError(f"has no time for stages {start}:{stop} of {info.name}", file=self.name, key="table",
                             remedy="add the range, its single stages, or a slowdown: for the rest")
        slowdown = self.slowdown
        return sum(max(slowdown * info.reference_time_s(i, i + 1), self.floor_s) for i in range(start, stop)) + heads

    def check(self, info: ModelInfo) -> None:
        """Raise InputError when the profile has no time for some stage of a model."""
        for index in range(info.num_stages):
            self.service_time_s(info, index, index + 1)

    def _head_s(self, info: ModelInfo, index: int) -> float:
        head = info.exit_after[index]
        known = self.heads.get(info.name, {}).get(head.name)
        return (self.slowdown or 0.0) * head.reference_time_s if known is None else known


REAL = ComputeProfile("real")


def load_profile(name: str, folder: str | Path) -> ComputeProfile:
    """The profile `name` (`<folder>/<name>.yaml`), a path to a profile file, or `real`. Raises InputError."""
    if name == "real":
        return REAL
    folder = Path(folder)
    path = Path(name) if is_profile_path(name) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise InputError("there is no such compute profile", file=path, key="profile", value=name,
                         remedy=f"use one of {', '.join(['real', *known])}")
    document = read_document(path)
    try:
        parsed = _ProfileFile.model_validate(document.data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(problem["msg"].removeprefix("Value error, "), file=path,
                         key=".".join(map(str, problem["loc"])) or None, value=problem.get("input"),
                         remedy="see nodes/profiles/raspberry-pi-4.yaml") from None
    table: dict[str, dict[tuple[int, int], float]] = {}
    for model, ranges in parsed.table.items():
        table[model] = {}
        for key, time in ranges.items():
            start, _, stop = key.partition(":")
            table[model][int(start), int(stop)] = time.median
    heads = {model: {name: time.median for name, time in times.items()} for model, times in parsed.heads.items()}
    return ComputeProfile(parsed.name, parsed.source, parsed.slowdown, table, parsed.floor, heads)
