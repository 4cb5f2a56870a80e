"""Documentation is part of the work: command blocks run, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from tests.running import ROOT, command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [(page.relative_to(ROOT), line[2:].split("  #")[0].strip())
            for page in PAGES if page.name != "traces.md"  # tests/traces runs those, with their files
            for block in BLOCK.findall(page.read_text()) for line in block.splitlines() if line.startswith("$ testbed ")]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_documented_commands_run(page: Path, line: str) -> None:
    words = shlex.split(line)[1:]
    assert words[0] != "run" or "--dry-run" in words, f"{page}: a block that is tested must not run for minutes"
    done = command(*words)
    assert done.returncode == 0, f"{page}: {line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_scenario_has_a_page_and_a_header() -> None:
    for scenario in sorted((ROOT / "scenarios").glob("*.yaml")):
        assert scenario.read_text().startswith("# "), scenario
        assert "xpect" in scenario.read_text().split("\nname:")[0], f"{scenario}: the header says what to expect"
        assert (ROOT / "docs" / "scenarios" / f"{scenario.stem}.md").is_file(), scenario


def test_every_command_has_a_page() -> None:
    from testbed.cli import COMMANDS as KNOWN

    for name in KNOWN:
        assert (ROOT / "docs" / "commands" / f"{name}.md").is_file(), name
