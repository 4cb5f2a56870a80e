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
        pages = ROOT / "docs" / "scenarios"
        words = scenario.stem.split("_")  # a family may share a page that names its files: idn_shift_analytic.yaml in idn.md
        shared = [pages / f"{'_'.join(words[:n])}.md" for n in range(1, len(words))]
        assert (pages / f"{scenario.stem}.md").is_file() or any(
            page.is_file() and scenario.name in page.read_text() for page in shared), scenario


def test_every_command_has_a_page() -> None:
    from testbed.cli import COMMANDS as KNOWN

    for name in KNOWN:
        assert (ROOT / "docs" / "commands" / f"{name}.md").is_file(), name


def test_the_newcomers_path_is_five_commands_that_fit_each_other(tmp_path: Path) -> None:
    block = re.search(r"five commands\n\n```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    clone, first, changed, swept, report = (re.split(r"\s+#", line)[0] for line in block[1].splitlines())
    assert clone.startswith("git clone ") and first == "sudo make run"
    scenario = re.search(r"^SCENARIO \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert scenario
    ids = []
    for line in (f"sudo .venv/bin/testbed run {scenario[1]}", changed, swept):
        words = shlex.split(line)
        assert words[:2] == ["sudo", ".venv/bin/testbed"]
        plan = command(*words[2:], "--dry-run", "--runs", tmp_path)
        assert plan.returncode == 0, plan.stderr
        *trials, _ = plan.stdout.splitlines()
        ids.append({trial.split()[0] for trial in trials})
    assert len(ids[1] - ids[0]) == 1, "one changed threshold is one new trial"
    assert len(ids[2] - ids[0]) == 2 and len(ids[2] & ids[0]) == 5, "a sweep takes over what was run"
    assert report == f"xdg-open runs/{ids[0].pop().split('/')[0]}/report.html"
