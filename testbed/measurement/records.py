"""Tables of a trial as pandas frames: readers with the right types, and writers of whole tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.errors import InputError
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.tables import (
    HOPS,
    LINKS,
    LIST_SEPARATOR,
    MACHINE,
    NODES,
    ORACLE,
    REQUESTS,
    TABLES,
    Column,
    Table,
    TableWriter,
    cell,
)

__all__ = ["HOPS", "LINKS", "LIST_SEPARATOR", "MACHINE", "NODES", "ORACLE", "REQUESTS", "TABLES", "Column", "Table",
           "TableWriter", "empty_table", "latency_s", "merge_tables", "read_table", "write_table"]

_PANDAS_TYPE: dict[str, str] = {"int": "Int64", "float": "float64", "str": "string", "bool": "boolean"}


def write_table(path: str | Path, table: Table, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> Path:
    """Write a whole table atomically, columns in the table's order, extra columns (of a frame) after them."""
    if isinstance(rows, pd.DataFrame):
        extra = [name for name in rows.columns if name not in table.names]
        frame = rows.reindex(columns=[*table.names, *extra])
        frame = frame.assign(**{
            name: frame[name].map({True: "true", False: "false"})
            for name in frame.columns
            if str(frame[name].dtype) in ("bool", "boolean")
        })
        return write_text_atomic(path, frame.to_csv(index=False, lineterminator="\n"))
    buffer = io.StringIO()
    output = csv.writer(buffer, lineterminator="\n")
    output.writerow(table.names)
    known = frozenset(table.names)
    for row in rows:
        if not known.issuperset(row):
            raise ValueError(f"table {table.name} has no column {sorted(set(row) - known)}")
        output.writerow(["" if row.get(name) is pd.NA else cell(row.get(name)) for name in table.names])
    return write_text_atomic(path, buffer.getvalue())


def read_table(path: str | Path, table: Table) -> pd.DataFrame:
    """Read a table with the right types: nullable integers, booleans and text, floats with NaN.

    Columns that the file lacks are added empty; columns that the table does not define are kept as pandas
    reads them. Raises InputError when the file is missing or a cell does not have its column's type.
    """
    source = Path(path)
    types = {column.name: _PANDAS_TYPE[column.type] for column in table.columns}
    try:
        frame = pd.read_csv(source, dtype=types, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InputError(f"the table {table.name} is missing", file=source,
                         remedy="give the directory of a finished run") from None
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except (ValueError, TypeError) as error:
        raise InputError(f"not a {table.name} table: {error}", file=source,
                         remedy="run the trial again; the columns are described in docs/results.md") from None
    for name in table.names:
        if name not in frame.columns:
            frame[name] = pd.Series(pd.NA if types[name] != "float64" else np.nan, index=frame.index, dtype=types[name])
    return frame[[*table.names, *[name for name in frame.columns if name not in table.names]]]


def empty_table(table: Table) -> pd.DataFrame:
    """Return the table without rows, with the reader's column types."""
    return pd.DataFrame({column.name: pd.Series(dtype=_PANDAS_TYPE[column.type]) for column in table.columns})


def merge_tables(parts: Sequence[str | Path], path: str | Path, table: Table, *, sort_by: Sequence[str] = ()) -> Path:
    """Join the files that several processes wrote into one table (stable order), atomically."""
    frames = [frame for frame in (read_table(part, table) for part in parts) if len(frame)]
    joined = pd.concat(frames, ignore_index=True) if frames else empty_table(table)
    if sort_by:
        joined = joined.sort_values(list(sort_by), kind="stable", ignore_index=True)
    return write_table(path, table, joined)


def latency_s(requests: pd.DataFrame) -> pd.Series:
    """Latency in seconds: completed minus *scheduled* (no coordinated omission); NaN where never completed."""
    difference = (requests["completed_ns"] - requests["scheduled_ns"]).to_numpy("float64", na_value=np.nan)
    return pd.Series(difference / 1e9, index=requests.index, name="latency_s")
