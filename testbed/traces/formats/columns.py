"""Two columns, seconds and Mbit/s, no header: Pensieve's cooked traces (SIGCOMM 2017) and Lumos5G (IMC 2020).

Row *i*'s rate holds from the time of row *i-1* to its own, as in Pensieve's player; the first row only sets
the origin. White space or a comma separates the columns; steps may be irregular.
"""

from __future__ import annotations

import re

from testbed.traces.source import Rows, Source
from testbed.traces.trace import NS_PER_S, Trace

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
ROW = re.compile(rf"{NUMBER}(?:[ \t]+|[ \t]*,[ \t]*){NUMBER}")
SEPARATOR = re.compile(r"[\s,]+")


def sniff(source: Source) -> bool:
    """Most lines are two numbers, and the first is no header."""
    return source.mostly(ROW) and not source.head[0][:1].isalpha()


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """The rates over time."""
    if column is not None:
        raise source.error("this format has one series only", value=column, remedy="leave --column out")
    rows, before_ns = Rows(source), None
    for line, text in source.data_lines():
        fields = SEPARATOR.split(text)
        if len(fields) != 2:
            raise source.error(
                "is not two columns (seconds, Mbit/s)", line, value=text, remedy="mend or remove the line"
            )
        time_s = source.number(fields[0], line, "the time in seconds")
        rate_bps = source.number(fields[1], line, "the rate in Mbit/s") * 1e6
        if abs(time_s) > 1e11:
            raise source.error(
                "the time is out of range", line, value=fields[0], remedy="the first column is in seconds"
            )
        now_ns = round(time_s * NS_PER_S)
        if before_ns is not None:
            if now_ns <= before_ns:
                raise source.error(
                    "time goes backwards or stands still",
                    line,
                    value=fields[0],
                    remedy="times must increase; mend or remove the line",
                )
            rows.add_rate(now_ns - before_ns, rate_bps, line)
        elif rate_bps < 0:
            rows.add_rate(
                1, rate_bps, line
            )  # the first rate is not used, but a negative one shows a broken file
        before_ns = now_ns
    return rows.trace(clip)
