"""Picture of comparisons: differences with their intervals, one panel per comparison, metrics left and tiers right."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.measurement.atomic import write_bytes_atomic
from testbed.measurement.comparison import Comparison, Effect
from testbed.measurement.comparison_view import interval_words, judgement, label, scaled, signed
from testbed.measurement.figures import FIGURE_STYLE, new_figure

_TINTS = {"better": "#0b7a4b", "worse": "#b3261e", "not seen": "#6f7782"}


def save_comparison_figure(path: Path, comparisons: Sequence[Comparison]) -> Path:
    """Write the picture; its kind is the path's suffix."""
    import matplotlib  # heavy: only needed when a picture is asked for

    with matplotlib.rc_context(FIGURE_STYLE):
        height = sum(0.9 + 0.27 * max(len(c.effects), len(c.tiers)) for c in comparisons)
        figure = new_figure(9.0, max(2.4, height))
        axes = figure.subplots(len(comparisons), 2, squeeze=False)
        for row, comparison in zip(axes, comparisons, strict=True):
            _panel(row[0], comparison, comparison.effects, "relative to A (%); shares in percentage points")
            _panel(row[1], comparison, comparison.tiers, "share of A's mean latency (%)")
            row[0].set_title(f"{comparison.name_b} against {comparison.name_a}", loc="left", fontsize=9)
            row[1].set_title("effect per tier", loc="left", fontsize=9)
        buffer = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        figure.savefig(buffer, format=kind, dpi=180, metadata={"Date": None} if kind == "svg" else None)
    return write_bytes_atomic(path, buffer.getvalue())


def _panel(axes: Any, comparison: Comparison, effects: Sequence[Effect], words: str) -> None:
    shown = [effect for effect in effects if scaled(effect, comparison)[0] is not None]
    for i, effect in enumerate(shown):
        middle, low, high = (None if x is None else 100 * x for x in scaled(effect, comparison))
        tint = _TINTS[judgement(effect)]
        if low is not None and high is not None:
            axes.plot([low, high], [i, i], color=tint, lw=2, solid_capstyle="butt")
        axes.plot([middle], [i], "o", color=tint, ms=5)
        text = signed(effect.difference, effect.unit) + (f" ({interval_words(effect)})" if effect.low is not None else "")
        axes.annotate(text, (1.0, i), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=6.5, color=tint)
    axes.axvline(0, color="#3b4650", lw=0.9)
    axes.set_yticks(range(len(shown)), [label(effect) for effect in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(words, fontsize=8)
