"""Recorded round-trip times: for jitter on a link, never for its rate.

Known: 5Gophers' RTT table (``rtt_ms``) and ping logs (``rtt_in_ms``), the output of ``ping``, G-NetTrack's
``PINGAVG``, and one number of milliseconds per line.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from testbed.traces.formats import csv_table
from testbed.traces.formats.columns import NUMBER
from testbed.traces.source import Source, open_source
from testbed.traces.trace import FloatArray

COLUMNS = ("rtt_ms", "rtt_in_ms", "PINGAVG")
GROUP = ("carrier", "network_type", "ue_location", "server_location", "target_server")
PING_LINE = re.compile(rf".*\btime[=<]({NUMBER}) ?ms\b.*")
PLAIN_LINE = re.compile(NUMBER)
REASON = "holds round-trip times, not bandwidth"
REMEDY = "name it as a jitter_log of a link, or choose another file as its trace"


def sniff(source: Source) -> bool:
    """Is this a log of round-trip times (and so no bandwidth trace)?"""
    names = csv_table.header(source)
    return (
        "rtt_ms" in names
        or "rtt_in_ms" in names
        or source.mostly(PING_LINE)
        or source.text.startswith("PING ")
    )


def load_rtt_log(path: str | Path, *, column: str | None = None) -> FloatArray:
    """Round-trip times in seconds, float64 (n,), in the order of the file.

    column: which group, where a file holds several, as ``VERIZON/US-East``. Raises `InputError` naming file
    and line.
    """
    return read_rtt_source(open_source(path), column=column)


def read_rtt_source(source: Source, *, column: str | None = None) -> FloatArray:
    """As `load_rtt_log`, for text that is already in memory."""
    names = csv_table.header(source)
    value_name = next((name for name in COLUMNS if name in names), None)
    if value_name is not None:
        milliseconds = _table(source, names, value_name, column)
    elif column is not None:
        raise source.error("this log has one series only", value=column, remedy="leave the column out")
    elif sniff(source):
        matches = [(line, PING_LINE.fullmatch(text)) for line, text in source.data_lines()]
        milliseconds = [source.number(found[1], line, "the time") for line, found in matches if found]
    elif source.mostly(PLAIN_LINE):
        milliseconds = [
            source.number(text, line, "the round-trip time") for line, text in source.data_lines()
        ]
    else:
        raise source.error(
            "is no log of round-trip times",
            remedy=f"known: columns {', '.join(COLUMNS)}, "
            "the output of ping, or one number of milliseconds per line",
        )
    if not milliseconds:
        raise source.error("holds no round-trip time")
    worst = int(np.argmax([-1 if value >= 0 and value < 3.6e6 else 1 for value in milliseconds]))
    if not 0 <= milliseconds[worst] < 3.6e6:
        raise source.error(
            "a round-trip time must lie between 0 and an hour", value=f"{milliseconds[worst]} ms"
        )
    return np.array(milliseconds, dtype=np.float64) / 1e3


def _table(source: Source, names: list[str], value_name: str, column: str | None) -> list[float]:
    keys = [key for key in GROUP if key in names]
    groups: dict[str, list[float]] = {}
    for line, fields in csv_table.rows(source):
        if fields[value_name] != "-":
            group = "/".join(fields[key] for key in keys)
            groups.setdefault(group, []).append(source.number(fields[value_name], line, value_name))
    if column is None and len(groups) > 1:
        raise source.error(
            f"holds {len(groups)} series", remedy=f"choose one of {', '.join(list(groups)[:12])}"
        )
    if column is not None and column not in groups:
        raise source.error(
            "has no such series", value=column, remedy=f"it holds {', '.join(list(groups)[:12])}"
        )
    return (
        groups.get(column) or next(iter(groups.values()), []) if column else next(iter(groups.values()), [])
    )
