"""The reference pages say what the code says: generated sections are current, examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed.measurement.describe import SECTIONS, refresh

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", ["results.md", "validity.md"])
def test_generated_sections_are_current(name):
    text = (DOCS / name).read_text()
    assert re.findall(r"<!-- generated: (\w+) -->", text), name
    assert refresh(text) == text, "run: python -m testbed.measurement.describe docs"


def test_every_section_stands_in_a_page():
    pages = "".join((DOCS / name).read_text() for name in ("results.md", "validity.md"))
    assert set(re.findall(r"<!-- generated: (\w+) -->", pages)) == set(SECTIONS)


def test_the_example_in_results_runs(trial, capsys):
    code = re.search(r"```python\n(.*?)```", (DOCS / "results.md").read_text(), re.DOTALL)[1]
    exec(code.replace("runs/quickstart/<config-hash>/0", str(trial)), {})
    assert "0.95" in capsys.readouterr().out
