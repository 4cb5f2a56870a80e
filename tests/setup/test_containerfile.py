"""What can be checked of nodes/Containerfile without a registry: that it fits the project and our engines.

It is not built here: no base image can be had without a registry. docs/containers.md says so.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY"}


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, rest), comments and continuation lines resolved."""
    text = (PROJECT / "nodes/Containerfile").read_text()
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [tuple(line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]  # type: ignore[misc]


def test_only_known_instructions(instructions: list[tuple[str, str]]) -> None:
    assert {name for name, _ in instructions} <= KNOWN


def test_everything_copied_from_the_project_is_there(instructions: list[tuple[str, str]]) -> None:
    for name, rest in instructions:
        if name == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert (PROJECT / source).exists(), source


def test_its_python_is_one_that_the_project_supports(instructions: list[tuple[str, str]]) -> None:
    version = next(rest for name, rest in instructions if name == "ARG" and rest.startswith("PYTHON=")).split("=")[1]
    required = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", required).groups()  # type: ignore[union-attr]
    assert int(low) <= int(version.split(".")[1]) < int(high)


def test_packages_are_pinned_and_no_host_is_named(instructions: list[tuple[str, str]]) -> None:
    installs = [rest for name, rest in instructions if name == "RUN" and "pip install" in rest]
    assert installs and all("-c constraints.txt" in rest or "--no-deps" in rest for rest in installs)
    assert not re.search(r"https?://|\w\.(io|org|com)\b", " ".join(rest for _, rest in instructions))


def test_the_testbed_gives_the_command(instructions: list[tuple[str, str]]) -> None:
    """Engines are given the whole command; python3 must be found first in the image's own environment."""
    last_stage = instructions[max(i for i, (name, _) in enumerate(instructions) if name == "FROM") :]
    assert any(name == "ENV" and "PATH=/opt/testbed/bin:" in rest for name, rest in last_stage)
    assert not any(name in ("ENTRYPOINT", "CMD", "USER") for name, _ in last_stage)
