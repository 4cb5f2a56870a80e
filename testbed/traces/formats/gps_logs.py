"""Six-column download logs: Ghent 4G (van der Hooft et al. 2016), Norway HSDPA (Riiser et al. 2013).

Columns: epoch (ms in Ghent's, s in Norway's), ms since some start, latitude, longitude, bytes since the
previous row, ms since the previous row. A row's bytes belong to the interval that *ends* at it, so column 6
is the time axis: rows stretch over outages (85 s in Oslo's metro). What the log did not observe between
rows is left out.
"""

from __future__ import annotations

import re

from testbed.traces.formats.columns import NUMBER
from testbed.traces.source import Rows, Source
from testbed.traces.trace import Trace

ROW = re.compile(rf"\d+\s+\d+\s+\S+\s+\S+\s+{NUMBER}\s+{NUMBER}")  # a position may be missing ("null", "nan")
GHENT_ROW = re.compile(r"\d{12,}\s.*")  # epoch in ms: 13 digits since 2001
NS_PER_MS = 1_000_000


def sniff_ghent(source: Source) -> bool:
    """Six columns, epoch in milliseconds."""
    return source.mostly(ROW) and source.mostly(GHENT_ROW)


def sniff_norway(source: Source) -> bool:
    """Six columns, epoch in seconds."""
    return source.mostly(ROW) and not source.mostly(GHENT_ROW)


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """Bytes over milliseconds, row by row; exact."""
    if column is not None:
        raise source.error("this format has one series only", value=column, remedy="leave --column out")
    rows, before_ms = Rows(source), None
    for line, text in source.data_lines():
        fields = text.split()
        if len(fields) != 6:
            raise source.error(
                f"has {len(fields)} columns instead of 6", line, value=text, remedy="mend or remove the line"
            )
        source.integer(fields[0], line, "the epoch time (column 1)")
        now_ms = source.integer(fields[1], line, "the time in ms (column 2)")
        size_bytes = source.integer(fields[4], line, "the bytes (column 5)")
        length_ms = source.integer(fields[5], line, "the interval in ms (column 6)")
        if before_ms is not None and now_ms <= before_ms:
            raise source.error(
                "time goes backwards or stands still (column 2)",
                line,
                value=fields[1],
                remedy="rows must be in order of time; sort or split the file",
            )
        before_ms = now_ms
        rows.add(length_ms * NS_PER_MS, size_bytes * 8, line)
    return rows.trace(clip)
