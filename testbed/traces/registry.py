"""The formats we know, which one a file is in, and reading and writing by it."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as _replace
from pathlib import Path

from testbed.errors import InputError
from testbed.traces import rtt
from testbed.traces.formats import (
    columns,
    gnettrack,
    gophers,
    gps_logs,
    iperf3,
    mahimahi,
    opennetlab,
    own_csv,
    sabre,
)
from testbed.traces.source import Source, open_source
from testbed.traces.trace import Trace


@dataclass(frozen=True)
class Format:
    """One file format.

    Parameters
    ----------
    name: what ``--format`` calls it.
    about: one line for people.
    sniff: does this file look like it? Must be false for every other format here.
    read: (source, column, clip in bit/s) -> trace; raises only `InputError`.
    write: (trace, comment lines) -> text, or None where we do not write it.
    columns: (source) -> what ``--column`` may name, for formats that hold several series.
    """

    name: str
    about: str
    sniff: Callable[[Source], bool]
    read: Callable[[Source, str | None, float | None], Trace]
    write: Callable[[Trace, list[str]], str] | None = None
    columns: Callable[[Source], list[str]] | None = None


FORMATS: tuple[Format, ...] = (
    Format(
        "csv",
        "our own: duration_ms,rate_bps|bits[,delay_ms][,loss]",
        own_csv.sniff,
        own_csv.read,
        own_csv.write,
    ),
    Format("mahimahi", "one ms stamp per 1500-byte packet", mahimahi.sniff, mahimahi.read, mahimahi.write),
    Format("columns", "seconds and Mbit/s, two columns (Pensieve, Lumos5G)", columns.sniff, columns.read),
    Format("ghent", "six-column 4G logs of Ghent, epoch in ms", gps_logs.sniff_ghent, gps_logs.read),
    Format("norway", "six-column HSDPA logs of Norway, epoch in s", gps_logs.sniff_norway, gps_logs.read),
    Format(
        "gnettrack", "G-NetTrack CSV (UCC 4G/5G)", gnettrack.sniff, gnettrack.read, columns=gnettrack.columns
    ),
    Format(
        "gophers", "5Gophers CSV, Mbit/s per second", gophers.sniff, gophers.read, columns=gophers.columns
    ),
    Format("sabre", "Sabre JSON periods", sabre.sniff, sabre.read),
    Format(
        "opennetlab",
        "AlphaRTC/OpenNetLab JSON",
        opennetlab.sniff,
        opennetlab.read,
        columns=opennetlab.columns,
    ),
    Format("iperf3", "iperf3 --json intervals", iperf3.sniff, iperf3.read, columns=iperf3.columns),
)


def load_trace(
    path: str | Path, *, format: str | None = None, column: str | None = None, clip: float | None = None
) -> Trace:
    """Read a trace file, plain or gzip, in any known format.

    Parameters
    ----------
    path: the file.
    format: name of a format, or None to find it out from the content.
    column: which series, where the file holds several (see `Format.columns`).
    clip: cut all rates to [0, clip] bit/s instead of refusing negative and absurd ones.

    Raises `InputError` naming file and line.
    """
    return read_source(open_source(path), format=format, column=column, clip=clip)


def read_source(
    source: Source, *, format: str | None = None, column: str | None = None, clip: float | None = None
) -> Trace:
    """As `load_trace`, for text that is already in memory."""
    if clip is not None and not 0 < clip <= 1e12:
        raise InputError("the clip rate must be above 0 and at most 1 Tbit/s", key="clip", value=clip)
    chosen = find_format(format) if format is not None else detect(source)
    trace = chosen.read(source, column, clip)
    if trace.total_bits == 0:
        remedy = "choose another column, or use a link-down event for an outage"
        raise source.error("carries no bit at all", remedy=remedy)
    return trace


def find_format(name: str) -> Format:
    """The format of that name."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise InputError(
        "unknown trace format",
        key="format",
        value=name,
        remedy=f"the formats are {', '.join(known.name for known in FORMATS)}",
    )


def detect(source: Source) -> Format:
    """The format that a file is in, by its content alone."""
    if rtt.sniff(source):
        raise source.error(rtt.REASON, remedy=rtt.REMEDY)
    for known in FORMATS:
        if known.sniff(source):
            return known
    first = source.head[0] if source.head else ""
    raise source.error(
        "is in no trace format that is known",
        1 if first else None,
        value=first,
        remedy=f"name one with --format: {', '.join(known.name for known in FORMATS)}",
    )


def save_trace(
    trace: Trace, path: str | Path, *, format: str | None = None, comments: list[str] | None = None
) -> None:
    """Write a trace; a name that ends in ``.gz`` is compressed (no time in it: same trace, same bytes).

    format: ``csv`` or ``mahimahi``; None means csv for names ending in ``.csv`` or ``.csv.gz``, else
    mahimahi.
    """
    path = Path(path)
    plain = path.name.removesuffix(".gz")
    chosen = find_format(format or ("csv" if plain.endswith(".csv") else "mahimahi"))
    if chosen.write is None:
        writable = ", ".join(known.name for known in FORMATS if known.write)
        raise InputError(
            "this format is only read", key="format", value=chosen.name, remedy=f"write {writable}"
        )
    raw = chosen.write(trace, comments or []).encode()
    if plain != path.name:
        raw = gzip.compress(raw, compresslevel=9, mtime=0)
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise InputError(f"cannot be written: {error}", file=path) from None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file as stored."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def renamed(trace: Trace, name: str) -> Trace:
    """The same trace under another name."""
    return _replace(trace, name=name)
