"""5Gophers CSV (Narayanan et al., WWW 2020): one row per second, Mbit/s in a ``throughput_mbps`` column.

A file may hold several series: carriers side by side (``Sprint_throughput_mbps``, ...), or runs below each
other with ``carrier``, ``protocol``, ``num_tcp_conn`` and ``run_num``. ``--column`` chooses: ``Verizon``, or
``VERIZON/TCP/8`` (all its runs, one after the other), or ``VERIZON/TCP/8/101`` (one run). Every row counts
one second; seconds that ``seq_num`` leaves out were not measured and are left out.
"""

from __future__ import annotations

from testbed.traces.formats import csv_table
from testbed.traces.source import Rows, Source
from testbed.traces.trace import NS_PER_S, Trace

VALUE = "throughput_mbps"
GROUP = ("carrier", "protocol", "num_tcp_conn")


def sniff(source: Source) -> bool:
    """A header with a column that ends in ``throughput_mbps``."""
    return any(name.endswith(VALUE) for name in csv_table.header(source))


def columns(source: Source) -> list[str]:
    """The series to choose from (runs not listed singly)."""
    names = csv_table.header(source)
    series = [name.removesuffix(VALUE).rstrip("_") or VALUE for name in names if name.endswith(VALUE)]
    keys = [key for key in GROUP if key in names]
    if len(series) > 1 or len(keys) < len(GROUP):
        return series
    return list(dict.fromkeys("/".join(fields[key] for key in keys) for _, fields in csv_table.rows(source)))


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """One series, a second per row."""
    names, choices = csv_table.header(source), columns(source)
    if column is None and len(choices) > 1:
        raise source.error(
            f"holds {len(choices)} series",
            remedy=f"choose with --column {' | '.join(choices[:12])}"
            + (" (a run: append /run_num)" if "run_num" in names else ""),
        )
    value_name, group = VALUE, None
    if column is not None and "/" in column:
        group = column.split("/")
        keys = [*GROUP, "run_num"][: len(group)]
        if len(group) > 4 or any(key not in names for key in keys):
            raise source.error(
                "has no such series", value=column, remedy=f"it holds {', '.join(choices[:12])}"
            )
    elif column is not None:
        value_name = column if column.endswith(VALUE) else f"{column}_{VALUE}"
    if value_name not in names:
        raise source.error("has no such series", value=column, remedy=f"it holds {', '.join(choices[:12])}")
    rows, run, before = Rows(source), None, None
    for line, fields in csv_table.rows(source):
        if group is not None and [fields[key] for key in keys] != group:
            continue
        here = fields.get("run_num")
        if "seq_num" in names:
            second = source.integer(fields["seq_num"], line, "seq_num")
            if here == run and before is not None and second <= before:
                raise source.error(
                    "time goes backwards or stands still (seq_num)",
                    line,
                    value=second,
                    remedy="choose one series with --column, or sort the file",
                )
            before = second
        run = here
        rows.add_rate(NS_PER_S, source.number(fields[value_name], line, value_name) * 1e6, line)
    if not rows.bits:
        raise source.error("has no such series", value=column, remedy=f"it holds {', '.join(choices[:12])}")
    return rows.trace(clip)
