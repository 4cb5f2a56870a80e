"""Study files: analytic experiments that need no network. A `study:` key names the kind, which adds keys of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from testbed.schema.files import read_document
from testbed.schema.topology import Strict


class Study(Strict):
    """Keys of every study file; a kind subclasses it and adds its own.

    `version` is raised when the same file would give other numbers: finished results then count as another study's.
    """

    version: ClassVar[int] = 1

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,59}$")
    description: str = ""
    study: str
    seed: int = Field(1, ge=0)
    repeats: int = Field(1, ge=1, le=1_000_000)

    def files(self) -> tuple[Path, ...]:
        """Files whose content decides the results, beside the keys; part of the configuration hash."""
        return ()

    def content(self) -> dict[str, str]:
        """Digests, by name, of what decides the results and is no file of the study's own, such as a data set."""
        return {}


def study_kind(path: str | Path) -> str | None:
    """The value of `study:` in a YAML file; None when the file is no study. Raises InputError when it is not readable."""
    kind = read_document(path).data.get("study")
    return None if kind is None else str(kind)
