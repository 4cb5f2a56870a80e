"""The content that ships with the testbed (topologies, scenarios, nodes, traces): where it lies, and copies of it to edit."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from testbed.errors import InputError, MissingToolError

FOLDERS = ("topologies", "scenarios", "nodes", "traces")
SIGN = "scenarios/quickstart.yaml"


def shipped_content() -> Path:
    """The folder that holds the shipped folders: the project beside the package, or share/testbed of an installation.

    Raises MissingToolError when the installation is damaged.
    """
    beside = Path(__file__).resolve().parents[2]
    if (beside / SIGN).is_file():
        return beside
    try:
        installed = importlib.metadata.files("testbed") or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    for file in installed:
        if file.as_posix().endswith(f"share/testbed/{SIGN}"):
            found = Path(str(file.locate())).resolve()
            if found.is_file():
                return found.parents[1]
    raise MissingToolError("the content that ships with testbed is not there", remedy="install it again: pip install "
                           "--force-reinstall testbed, or work in a clone of the project")


def write_copy(target: Path) -> list[Path]:
    """Copy the shipped folders below `target`; returns the files. Raises InputError when one of them is there already."""
    source = shipped_content()
    there = [name for name in FOLDERS if (target / name).exists()]
    if there:
        raise InputError(f"has a {there[0]}/ already, and nothing is overwritten", file=target,
                         remedy="give the name of a new folder")
    written = []
    for name in FOLDERS:
        for file in sorted(p for p in (source / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            written.append(copy)
    return written
