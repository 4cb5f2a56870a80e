"""What a study hands back (tables, figures, findings), and its files: CSV, SVG, PNG, one offline page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.measurement.atomic import write_bytes_atomic, write_text_atomic
from testbed.measurement.figures import FIGURE_STYLE, SERIES_COLORS, new_figure

Draw = Callable[[Any], None]  # draws on a matplotlib Figure
_INLINE = {"#3b4650": "var(--soft)", "#b8c0c8": "var(--line)", "#e8ebee": "var(--grid)", "#ffffff": "var(--card)",
           **{color: f"var(--s{i})" for i, color in enumerate(SERIES_COLORS)}}


@dataclass(frozen=True)
class Finding:
    """A shape that a specification expects, and whether it was seen.

    Parameters
    ----------
    text: what is claimed, in one sentence.
    value: what was seen.
    expected: what was expected.
    holds: whether the two agree; None where that cannot be judged.
    """

    text: str
    value: str | float
    expected: str | float
    holds: bool | None

    @property
    def verdict(self) -> str:
        """seen, not seen, or open."""
        return "open" if self.holds is None else "seen" if self.holds else "not seen"


@dataclass(frozen=True)
class StudyOutcome:
    """Results of a study.

    Parameters
    ----------
    tables: name -> table, with units in the names of the columns; the first is the main one and goes to the terminal.
    figures: name -> function that draws on an empty matplotlib Figure (colours C0 to C7 follow the report's).
    findings: the expected shapes and whether they were seen.
    captions: name of a table or figure -> one or two sentences that say how to read it.
    files: name -> content of further files to keep, such as a trained policy.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Draw] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def write_outcome(folder: Path, outcome: StudyOutcome) -> dict[str, str]:
    """Write `<table>.csv`, `<figure>.svg`, `<figure>.png` and the further files; returns the figures as inline SVG, by name."""
    for name, content in outcome.files.items():
        write_bytes_atomic(folder / name, content)
    for name, table in outcome.tables.items():
        write_text_atomic(folder / f"{name}.csv", table.to_csv(index=False))
    return {name: _write_figure(folder, name, draw) for name, draw in outcome.figures.items()}


def _write_figure(folder: Path, name: str, draw: Draw) -> str:
    import matplotlib  # heavy: only needed when there is a figure
    from cycler import cycler

    with matplotlib.rc_context({**FIGURE_STYLE, "axes.prop_cycle": cycler(color=list(SERIES_COLORS))}):
        figure = new_figure(6.6, 3.8)
        draw(figure)
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            # without a date the same study gives the same file
            figure.savefig(buffer, format=kind, dpi=180, metadata={"Date": None} if kind == "svg" else None)
            write_bytes_atomic(folder / f"{name}.{kind}", buffer.getvalue())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(name, text.getvalue())


def _inline(name: str, svg: str) -> str:
    """The SVG element with the page's colours in place of its own, and ids that no other figure of the page has."""
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg"):])
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match[1]}{name}-", svg)
    for color, variable in _INLINE.items():
        svg = svg.replace(color, variable)
    return svg


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as mappings for manifest.json."""
    return [asdict(finding) for finding in findings]
