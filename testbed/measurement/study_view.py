"""Shows a study: findings and main table in the terminal, one offline page with all tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from rich.table import Table
from rich.text import Text

from testbed.measurement.study import Finding, StudyOutcome

MAX_ROWS = 60  # of the main table in the terminal; the CSV file has all
_STYLE = {"seen": "green", "not seen": "red", "open": "yellow"}
_PILL = {"seen": "passed", "not seen": "failed", "open": "warned"}


def study_table(name: str, table: pd.DataFrame) -> Table:
    """A table of the study for the terminal; rows beyond MAX_ROWS are left out, and the title says so."""
    left = len(table) - MAX_ROWS
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left",
                  title=name if left <= 0 else f"{name} (first {MAX_ROWS} of {len(table)} rows)")
    for column in table.columns:
        shown.add_column(str(column), justify="right" if pd.api.types.is_numeric_dtype(table[column]) else "left")
    for row in _rows(table.head(MAX_ROWS)):
        shown.add_row(*row)
    return shown


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row per finding: seen or not, the claim, what was seen, what was expected."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title="findings", title_justify="left")
    for column in ("", "expected shape", "seen", "expected"):
        table.add_column(column)
    for finding in findings:
        table.add_row(Text(finding.verdict, style=_STYLE[finding.verdict]), Text(finding.text), Text(words(finding.value)),
                      Text(words(finding.expected)))
    return table


def study_html(name: str, description: str, outcome: StudyOutcome, pictures: Mapping[str, str],
               manifest: Mapping[str, Any]) -> str:
    """The page as text: nothing to load and no script."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("study.html.j2"))
    findings = [{"pill": _PILL[f.verdict], "verdict": f.verdict, "text": f.text, "value": words(f.value),
                 "expected": words(f.expected)} for f in outcome.findings]
    return template.render(
        name=name, description=description, css=_asset("report.css"), findings=findings,
        seen=sum(f.holds is True for f in outcome.findings), judged=sum(f.holds is not None for f in outcome.findings),
        tables=[{"name": key, "columns": [str(c) for c in table.columns], "rows": list(_rows(table)),
                 "caption": outcome.captions.get(key, "")} for key, table in outcome.tables.items()],
        pictures=[{"name": key, "svg": svg, "caption": outcome.captions.get(key, "")} for key, svg in pictures.items()],
        facts=list(_facts(manifest)), now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))


def words(value: object) -> str:
    """A cell for people: numbers with five significant figures, an empty cell for a missing value."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def read_tables(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Tables of a finished study, by name."""
    return {name: pd.read_csv(folder / f"{name}.csv") for name in names}


def _rows(table: pd.DataFrame) -> Iterable[list[str]]:
    return ([words(cell) for cell in row] for row in table.itertuples(index=False, name=None))


def _facts(manifest: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in manifest.items():
        if key == "findings":
            continue
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _asset(name: str) -> str:
    return (resources.files("testbed.measurement") / "templates" / name).read_text(encoding="utf-8")
