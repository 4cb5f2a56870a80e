"""G-NetTrack Pro CSV, as in UCC's 4G and 5G data sets (Raca et al., MMSys 2018 and 2020).

``--column DL_bitrate`` (default) or ``UL_bitrate``, in kbit/s; ``-`` means no reading. UL_bitrate of a
download test is the return traffic, not the capacity of the uplink.

Stamps are cut to whole seconds and the logger samples about every 1.0 to 1.2 s, so that seconds repeat (the
same reading again, beside an event) and others are missing. Therefore the rows of one second are one
sample, their mean, and the samples of an unbroken stretch share its duration equally: the mean of the trace
is the mean of the samples. A gap of more than 5 s is a pause of the log; it is left out, and the trace goes
on after it.
"""

from __future__ import annotations

from datetime import datetime

from testbed.traces.formats import csv_table
from testbed.traces.source import Rows, Source
from testbed.traces.trace import NS_PER_S, Trace

SERIES = ("DL_bitrate", "UL_bitrate")
STAMP = "%Y.%m.%d_%H.%M.%S"
MAX_GAP_S = 5


def sniff(source: Source) -> bool:
    """A header with ``Timestamp`` and a bit rate."""
    names = csv_table.header(source)
    return "Timestamp" in names and any(name in names for name in SERIES)


def columns(source: Source) -> list[str]:
    """The bit rates that the header names; the first is the default."""
    names = csv_table.header(source)
    return [name for name in SERIES if name in names]


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """One series of bit rates over time."""
    wanted = {"DL": "DL_bitrate", "UL": "UL_bitrate"}.get(column or "", column) or "DL_bitrate"
    if wanted not in columns(source):
        raise source.error(
            "has no such column", value=wanted, remedy=f"it holds {', '.join(columns(source))}"
        )
    if "Timestamp" not in csv_table.header(source):
        raise source.error("has no column Timestamp", 1)
    stretches: list[list[tuple[int, list[float], int]]] = []  # of (second, readings in kbit/s, line)
    before_s: int | None = None
    for line, fields in csv_table.rows(source):
        second = _second(source, fields["Timestamp"], line)
        if before_s is not None and second < before_s:
            raise source.error(
                "time goes backwards",
                line,
                value=fields["Timestamp"],
                remedy="rows must be in order of time; sort or split the file",
            )
        reading = fields[wanted]
        if reading not in ("-", ""):
            if before_s is None or second - before_s > MAX_GAP_S:
                stretches.append([])
            value = source.number(reading, line, wanted)
            if not stretches:
                stretches.append([])
            stretch = stretches[-1]
            if stretch and stretch[-1][0] == second:
                stretch[-1][1].append(value)
            else:
                stretch.append((second, [value], line))
        before_s = second
    rows = Rows(source)
    for stretch in stretches:
        if not stretch:
            continue
        length_ns = (stretch[-1][0] - stretch[0][0] + 1) * NS_PER_S
        for index, (_, readings, line) in enumerate(stretch):
            duration_ns = length_ns * (index + 1) // len(stretch) - length_ns * index // len(stretch)
            rows.add_rate(duration_ns, sum(readings) / len(readings) * 1e3, line)
    return rows.trace(clip)


def _second(source: Source, text: str, line: int) -> int:
    try:
        moment = datetime.strptime(text, STAMP)
    except ValueError:
        raise source.error(
            "Timestamp is not YYYY.MM.DD_HH.MM.SS", line, value=text, remedy="mend or remove the line"
        ) from None
    return (moment - datetime(1970, 1, 1)).days * 86_400 + (moment - datetime(1970, 1, 1)).seconds
