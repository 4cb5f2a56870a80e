"""Mahimahi's delivery opportunities (Winstein et al., NSDI 2013): one ms stamp per 1500-byte packet.

Stamp *t* says that one packet may pass *t* milliseconds after the start; the last stamp is the period, and
opportunity *i* of lap *n* is at ``n * last + t_i`` (Mahimahi's ``link_queue.cc``). Here its 12,000 bits
belong to the millisecond that ends at *t*, so that the bits allowed up to the end of millisecond *k* are
12,000 times the stamps <= *k*. Stamp 0, which some captures have, is the first nanosecond: nothing is lost,
and what is written again is the same file.
"""

from __future__ import annotations

import re

import numpy as np

from testbed.errors import InputError
from testbed.traces.source import MAX_DURATION_NS, Source, check_rates
from testbed.traces.trace import IntArray, Trace

PACKET_BITS = 1500 * 8
NS_PER_MS = 1_000_000
WINDOW_MS = 100
STAMP = re.compile(r"-?\d+")


def sniff(source: Source) -> bool:
    """Most lines are one whole number, nothing else."""
    return source.mostly(STAMP)


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """The opportunities of a file as a trace in whole packets."""
    if column is not None:
        raise source.error(
            "a Mahimahi file has no columns to choose from", value=column, remedy="leave --column out"
        )
    stamps = _stamps(source)
    if len(stamps) == 0 or stamps[-1] == 0:
        raise source.error(
            "the last stamp is the period and must be above 0",
            len(stamps),
            remedy="a fixed 12 Mbit/s is a file that holds just 1",
        )
    if stamps[-1] > MAX_DURATION_NS // NS_PER_MS:
        raise source.error(
            "is longer than 30 days", len(stamps), value=int(stamps[-1]), remedy="stamps are milliseconds"
        )
    if clip is None:
        _, first = np.unique(stamps // WINDOW_MS, return_index=True)
        counts = np.diff(np.append(first, len(stamps)))
        check_rates(
            source,
            counts * (PACKET_BITS * 1000 / WINDOW_MS),
            [int(line) + 1 for line in first],
            measured=True,
        )
    trace = from_stamps(stamps, source.name)
    return trace if clip is None else trace.clipped(clip)


def from_stamps(stamps_ms: IntArray, name: str = "") -> Trace:
    """The trace of non-decreasing stamps (the last above 0)."""
    at, counts = np.unique(stamps_ms, return_counts=True)
    ends = at * NS_PER_MS
    starts = ends - NS_PER_MS
    if at[0] == 0:
        starts[0], ends[0] = 0, 1
        if len(at) > 1 and at[1] == 1:
            starts[1] = 1
    times = np.unique(np.concatenate(([0], starts, ends)))
    bits = np.zeros(len(times) - 1, dtype=np.int64)
    bits[np.searchsorted(times, starts)] = counts * PACKET_BITS
    return Trace(times, bits, packet_bits=PACKET_BITS, name=name)


def to_stamps(trace: Trace) -> IntArray:
    """The stamps of any trace: a packet is stamped with the millisecond in which its last bit has become due.

    Exact for traces of whole 1500-byte packets that end with one. Otherwise the total is off by less than one
    packet, the period is rounded up to a millisecond, and a closing opportunity is added where the last
    millisecond has none, because the format has no other way to say how long it lasts.
    """
    last_ms = -(-trace.duration_ns // NS_PER_MS)
    if trace.total_bits // PACKET_BITS > 200_000_000 or last_ms > 100_000_000:
        raise InputError(
            "too many packets for Mahimahi's format", file=trace.name, remedy="write CSV instead"
        )
    borders = np.minimum(np.arange(last_ms + 1, dtype=np.int64) * NS_PER_MS, trace.duration_ns)
    whole = trace.cumulative_bits(borders[1:-1]) // PACKET_BITS
    at_zero = trace.cumulative_bits(np.array([min(1, trace.duration_ns)])) // PACKET_BITS
    cumulative = np.concatenate((at_zero, whole, [trace.total_bits // PACKET_BITS]))
    counts = np.diff(cumulative, prepend=0)
    counts[-1] = max(1, counts[-1])
    return np.repeat(np.arange(last_ms + 1, dtype=np.int64), counts)


def write(trace: Trace, comments: list[str]) -> str:
    """The text of the file. Delay and loss have no place in it; neither have comments."""
    return "\n".join(map(str, to_stamps(trace).tolist())) + "\n"


def _stamps(source: Source) -> IntArray:
    lines = source.lines
    try:
        if not source.text.isascii() or "_" in source.text or "-" in source.text:
            raise ValueError
        stamps = np.array(lines, dtype=np.str_).astype(np.int64)
    except (ValueError, OverflowError):
        stamps = np.array([_stamp(source, text, line) for line, text in enumerate(lines, 1)], dtype=np.int64)
    back = np.flatnonzero(np.diff(stamps) < 0)
    if len(back):
        line = int(back[0]) + 2
        raise source.error(
            "time goes backwards",
            line,
            value=int(stamps[line - 1]),
            remedy="stamps must not decrease; sort or split the file",
        )
    return stamps


def _stamp(source: Source, text: str, line: int) -> int:
    """One line the slow way, to name what is wrong with it."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise source.error(
            "is not a time stamp in whole milliseconds",
            line,
            value=text,
            remedy="each line holds one integer; mend or remove the line",
        )
    return int(text)
