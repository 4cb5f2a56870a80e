"""What the CSV formats share: rows by header name, each with its line number."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from testbed.traces.source import Source


def header(source: Source) -> list[str]:
    """The names in the first line that is neither blank nor a comment; empty where there is none."""
    try:
        return [name.strip() for name in next(csv.reader(source.head[:1]), [])]
    except csv.Error:
        return []


def rows(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, fields by name) of every row below the header."""
    names = header(source)
    data = source.data_lines()
    next(data, None)
    for line, text in data:
        try:
            fields = next(csv.reader([text]), [])
        except csv.Error as error:
            raise source.error(
                f"is not CSV: {error}", line, value=text, remedy="mend or remove the line"
            ) from None
        if len(fields) != len(names):
            raise source.error(
                f"{len(fields)} fields where the header has {len(names)}",
                line,
                value=text,
                remedy="mend or remove the line",
            )
        yield line, dict(zip(names, (value.strip() for value in fields), strict=True))
