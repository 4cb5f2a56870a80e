"""``iperf3 --json``: the bytes of each interval (throughput achieved, a lower bound of capacity).

``--column sum`` (default) is the test's own direction; after ``--bidir``, ``sum_bidir_reverse`` is the
other one. Omitted intervals (``-O``) are left out. Note that the sender's view counts what entered its
socket buffer: take the receiver's file, or ``-R`` seen from the client, for what really crossed the path.
"""

from __future__ import annotations

from typing import Any

from testbed.traces.formats import json_document
from testbed.traces.source import Rows, Source
from testbed.traces.trace import NS_PER_S, Trace

SERIES = ("sum", "sum_bidir_reverse")
MAX_GAP_S = 0.05  # between the end of an interval and the begin of the next; iperf3 leaves microseconds


def sniff(source: Source) -> bool:
    """An object with ``start`` and ``intervals``, which iperf3 writes even when it failed."""
    return source.text.lstrip()[:1] == "{" and json_document.looks_like(source, "start", "intervals")


def columns(source: Source) -> list[str]:
    """The sums that the intervals hold."""
    intervals = _intervals(source)
    return [name for name in SERIES if intervals and isinstance(intervals[0], dict) and name in intervals[0]]


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """Bytes per interval."""
    name = column or "sum"
    choices = columns(source)
    if name not in choices:
        raise source.error(
            "has no such series", value=name, remedy=f"it holds {', '.join(choices) or 'none'}"
        )
    rows, before_s = Rows(source), None
    for index, interval in enumerate(_intervals(source)):
        place = f"intervals[{index}].{name}"
        total = json_document.mapping(source, json_document.mapping(source, interval, place).get(name), place)
        if total.get("omitted"):
            continue
        start_s = json_document.field(source, total, "start", place)
        end_s = json_document.field(source, total, "end", place)
        size_bytes = json_document.field(source, total, "bytes", place)
        if before_s is None:
            before_s = start_s
        if not start_s - MAX_GAP_S <= before_s <= start_s + MAX_GAP_S or not 0 <= end_s < 1e7:
            raise source.error("does not begin where the interval before it ended", place, value=start_s)
        rows.add(round(end_s * NS_PER_S) - round(before_s * NS_PER_S), round(size_bytes * 8), place)
        before_s = end_s
    return rows.trace(clip)


def _intervals(source: Source) -> list[Any]:
    document = json_document.mapping(source, json_document.parse(source), "the document")
    if document.get("error"):
        raise source.error("iperf3 failed", "error", value=document["error"], remedy="measure again")
    intervals = document.get("intervals")
    if not isinstance(intervals, list) or not intervals:
        raise source.error("holds no interval", "intervals", remedy="measure again, for at least a second")
    return intervals
