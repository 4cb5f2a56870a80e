"""AlphaRTC / OpenNetLab JSON: ``uplink.trace_pattern[]`` of ``{"duration", "capacity", "loss", "rtt"}``.

``duration`` is ms, ``capacity`` kbit/s, ``loss`` a probability, ``rtt`` ms (half of it becomes the one-way
delay). ``jitter`` is not used. Where both directions hold a pattern, ``--column uplink`` or ``downlink``
must choose.
"""

from __future__ import annotations

from typing import Any

from testbed.traces.formats import json_document
from testbed.traces.source import Rows, Source
from testbed.traces.trace import Trace

DIRECTIONS = ("uplink", "downlink")


def sniff(source: Source) -> bool:
    """An object with a ``trace_pattern``."""
    return source.text.lstrip()[:1] == "{" and json_document.looks_like(source, "trace_pattern")


def columns(source: Source) -> list[str]:
    """The directions that hold a pattern."""
    return list(_patterns(source))


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """The pattern of one direction."""
    patterns = _patterns(source)
    if column is None and len(patterns) != 1:
        raise source.error(
            "holds both directions" if patterns else "holds no trace_pattern",
            remedy=f"choose with --column {' or --column '.join(patterns)}" if patterns else None,
        )
    direction = next(iter(patterns)) if column is None else column
    if direction not in patterns:
        raise source.error("has no such direction", value=direction, remedy=f"it holds {', '.join(patterns)}")
    steps = patterns[direction]
    rows = Rows(source)
    places = json_document.entry_places(
        source, "capacity", len(steps), f"{direction}.trace_pattern", after=direction
    )
    for step, place in zip(steps, places, strict=True):
        entry = json_document.mapping(source, step, place)
        duration_ms = json_document.field(source, entry, "duration", place)
        rate_bps = json_document.field(source, entry, "capacity", place) * 1e3
        if abs(duration_ms) > 1e12:
            raise source.error("duration is out of range", place, value=duration_ms)
        rows.add_rate(
            round(duration_ms * 1e6),
            rate_bps,
            place,
            delay_s=source.number(entry.get("rtt", 0), place, "rtt") / 2e3,
            loss=source.number(entry.get("loss", 0), place, "loss"),
        )
    present = {key for step in steps for key in step}
    return rows.trace(clip, delay="rtt" in present, loss="loss" in present)


def _patterns(source: Source) -> dict[str, list[Any]]:
    document = json_document.mapping(source, json_document.parse(source), "the document")
    found: dict[str, list[Any]] = {}
    for direction in DIRECTIONS:
        part = document.get(direction)
        steps = part.get("trace_pattern") if isinstance(part, dict) else None
        if steps is not None and not isinstance(steps, list):
            raise source.error("trace_pattern is not a list", direction, value=steps)
        if steps:
            found[direction] = steps
    return found
