"""Shows comparisons: a table in the terminal with its intervals drawn, an offline HTML page, a picture for papers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from testbed.errors import InputError
from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.comparison import PAIR_MEDIAN, Comparison, Effect
from testbed.measurement.summary import verdict
from testbed.measurement.validity import VALID

_LABELS = {
    "latency_mean": "mean latency", PAIR_MEDIAN: "median of pairs",
    "latency_p50": "p50", "latency_p95": "p95", "latency_p99": "p99", "accuracy": "accuracy",
    "deadline_hit": "in time", "correct_in_time": "correct in time", "bytes_up": "sent up", "bytes_down": "sent down",
    "failed_share": "failed", "effective_accuracy": "effective accuracy", "cost_per_1000": "cost per 1000",
}
_HIGHER_IS_BETTER = {"accuracy", "effective_accuracy", "deadline_hit", "correct_in_time"}
SUFFIXES = (".html", ".png", ".svg")


def comparison_table(comparison: Comparison, width: int) -> Table:
    """One row per metric, then one per tier: both values, the difference with its interval, the interval drawn."""
    room = max(0, min(31, width - 84))
    title = f"B: {comparison.name_b}   against   A: {comparison.name_a}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title=title, title_justify="left")
    for name in ("metric", "A", "B", "B - A", "95% interval", "relative"):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    if room >= 15:
        table.add_column("lower" + " " * (room - 11) + "higher", no_wrap=True)
    for heading, rows in (("", comparison.effects), ("effect per tier, mean", comparison.tiers)):
        if heading:
            table.add_row(Text(heading, style="bold dim"))
        reach = _reach(rows, comparison)
        for effect in rows:
            style = {"better": "green", "worse": "red"}.get(judgement(effect), "")
            cells = [Text(label(effect)), Text(fmt.quantity(effect.a, effect.unit)), Text(fmt.quantity(effect.b, effect.unit)),
                     Text(signed(effect.difference, effect.unit), style=style), Text(interval_words(effect)),
                     Text(_percent(effect.relative[0]))]
            if room >= 15:
                cells.append(Text(_drawn(effect, comparison, reach, room), style=style))
            table.add_row(*cells)
    return table


def comparison_footer(comparison: Comparison) -> Text:
    """What was paired, what differs, McNemar's counts, why values are missing, and the verdicts."""
    how = (f"paired: {comparison.requests} requests with the same arrival, sample and trace offset"
           if comparison.paired else "unpaired: the two sides are samples of their own")
    text = Text(how)
    if comparison.differs:
        more = f" and {len(comparison.differs) - 6} more" if len(comparison.differs) > 6 else ""
        text.append(f"\ndiffers (A / B): {'; '.join(comparison.differs[:6])}{more}")
    for words in mcnemar_words(comparison):
        text.append(f"\n{words}")
    for note, names in notes(comparison).items():
        text.append(f"\n{', '.join(names)}: {note}", style="dim")
    for side, group in (("A", comparison.a), ("B", comparison.b)):
        word = verdict(group.trials)
        if word != VALID:
            text.append(f"\n{side} is {word}: its numbers are partly the emulator's; see its report", style="bold red")
    return text.append("\n")


def write_comparison(path: Path, comparisons: Sequence[Comparison]) -> Path:
    """Write a page (.html) or a picture (.png, .svg). Raises InputError for another suffix."""
    if path.suffix not in SUFFIXES:
        raise InputError("is no kind of file that can be written", key="--output", value=str(path),
                         remedy=f"end the name in {', '.join(SUFFIXES)}")
    if path.suffix == ".html":
        return write_text_atomic(path, comparison_html(comparisons))
    from testbed.measurement.comparison_figure import save_comparison_figure

    return save_comparison_figure(path, comparisons)


def comparison_html(comparisons: Sequence[Comparison]) -> str:
    """The page as text: tables and intervals in plain HTML, nothing to load and no script."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("compare.html.j2"))
    return template.render(comparisons=[_view(comparison) for comparison in comparisons], css=_asset("report.css"),
                           now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))


def label(effect: Effect) -> str:
    """What a person calls the metric."""
    return _LABELS.get(effect.metric, effect.metric)


def signed(value: float | None, unit: str) -> str:
    """`+3.2 ms`; shares in percentage points."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{value * 100:+.1f} pp"
    return ("+" if value > 0 else "") + fmt.quantity(value, unit)


def interval_words(effect: Effect) -> str:
    """`-3.2 to +1.0 ms`, or empty."""
    if effect.low is None or effect.high is None:
        return ""
    low, high = signed(effect.low, effect.unit), signed(effect.high, effect.unit)
    number, _, unit = low.rpartition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low} to {high}"


def judgement(effect: Effect) -> str:
    """better, worse, or `not seen` when the interval holds zero (or there is none)."""
    if effect.sign == 0:
        return "not seen"
    return "better" if (effect.sign > 0) == (effect.metric in _HIGHER_IS_BETTER) else "worse"


def mcnemar_words(comparison: Comparison) -> list[str]:
    """Paired counts of the shares that have them."""
    return [f"{label(e)}: only A in {e.only_a} pairs, only B in {e.only_b} (McNemar, exact: p = {e.p_value:.2g})"
            for e in comparison.effects if e.only_a is not None and e.p_value is not None and e.only_a + (e.only_b or 0)]


def notes(comparison: Comparison) -> dict[str, list[str]]:
    """Reason -> metrics that it leaves without a value or an interval."""
    found: dict[str, list[str]] = {}
    for effect in (*comparison.effects, *comparison.tiers):
        if effect.note:
            found.setdefault(effect.note, []).append(label(effect))
    return found


def scaled(effect: Effect, comparison: Comparison) -> tuple[float | None, float | None, float | None]:
    """Difference, low, high on the axis of its row: relative to A; shares in themselves; parts and pairs over A's mean."""
    raw = effect.difference, effect.low, effect.high
    if effect in comparison.tiers or effect.metric == PAIR_MEDIAN:
        whole = next((e.a for e in comparison.effects if e.metric == "latency_mean"), None)
        return (None, None, None) if not whole else tuple(None if x is None else x / whole for x in raw)  # type: ignore[return-value]
    return raw if effect.unit == "share" else effect.relative


def _reach(rows: Sequence[Effect], comparison: Comparison) -> float:
    found = [abs(x) for effect in rows for x in scaled(effect, comparison) if x is not None]
    return max(found, default=0.0) or 1.0


def _drawn_values(effect: Effect, comparison: Comparison, reach: float) -> dict[str, float] | None:
    """Positions in percent of the track; zero is in the middle."""
    middle, low, high = scaled(effect, comparison)
    if middle is None:
        return None
    place = [50 + 50 * (x / reach) for x in (middle, middle if low is None else low, middle if high is None else high)]
    return {"dot": place[0], "from": place[1], "width": max(0.0, place[2] - place[1])}


def _drawn(effect: Effect, comparison: Comparison, reach: float, room: int) -> str:
    middle, low, high = scaled(effect, comparison)
    if middle is None:
        return ""
    line = [" "] * room
    half = (room - 1) // 2

    def column(x: float) -> int:
        return min(room - 1, max(0, half + round(half * x / reach)))

    if low is not None and high is not None:
        for i in range(column(low), column(high) + 1):
            line[i] = "─"
    line[half] = "┼" if line[half] == "─" else "│"
    line[column(middle)] = "●"
    return "".join(line)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _view(comparison: Comparison) -> dict[str, Any]:
    def rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
        reach = _reach(effects, comparison)
        return [{"label": label(e), "a": fmt.quantity(e.a, e.unit), "b": fmt.quantity(e.b, e.unit),
                 "difference": signed(e.difference, e.unit), "interval": interval_words(e), "relative": _percent(e.relative[0]),
                 "judgement": judgement(e), "note": e.note, "drawn": _drawn_values(e, comparison, reach)} for e in effects]

    return {"name_a": comparison.name_a, "name_b": comparison.name_b, "paired": comparison.paired,
            "requests": comparison.requests, "differs": comparison.differs, "rows": rows(comparison.effects),
            "tiers": rows(comparison.tiers), "mcnemar": mcnemar_words(comparison), "notes": notes(comparison),
            "verdicts": [verdict(group.trials) for group in (comparison.a, comparison.b)]}


def _asset(name: str) -> str:
    return (resources.files("testbed.measurement") / "templates" / name).read_text(encoding="utf-8")
