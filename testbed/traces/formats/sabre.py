"""Sabre's JSON (Spiteri et al., MMSys 2018): ``[{"duration_ms", "bandwidth_kbps", "latency_ms"}, ...]``.

Periods are played in order. ``latency_ms`` is a round trip that Sabre adds to each request; half of it
becomes the one-way delay of the segment (in the published files it is a constant that their authors chose,
not a measurement).
"""

from __future__ import annotations

from testbed.traces.formats import json_document
from testbed.traces.source import Rows, Source
from testbed.traces.trace import Trace


def sniff(source: Source) -> bool:
    """A list of objects with ``duration_ms`` and ``bandwidth_kbps``."""
    return source.text.lstrip()[:1] == "[" and json_document.looks_like(
        source, "duration_ms", "bandwidth_kbps"
    )


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """The periods as segments."""
    if column is not None:
        raise source.error("this format has one series only", value=column, remedy="leave --column out")
    periods = json_document.parse(source)
    if not isinstance(periods, list):
        raise source.error("is not a list of periods", value=periods)
    rows, with_delay = Rows(source), False
    places = json_document.entry_places(source, "duration_ms", len(periods), "")
    for period, place in zip(periods, places, strict=True):
        entry = json_document.mapping(source, period, place)
        duration_ms = json_document.field(source, entry, "duration_ms", place)
        rate_kbps = json_document.field(source, entry, "bandwidth_kbps", place)
        with_delay = with_delay or "latency_ms" in entry
        latency_ms = source.number(entry.get("latency_ms", 0), place, "latency_ms")
        if abs(duration_ms) > 1e12:
            raise source.error("duration_ms is out of range", place, value=duration_ms)
        rows.add_rate(round(duration_ms * 1e6), rate_kbps * 1e3, place, delay_s=latency_ms / 2e3)
    return rows.trace(clip, delay=with_delay)
