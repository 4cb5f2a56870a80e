"""Tables keep types and emptiness: what is written is read back, an empty cell is never a zero."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.measurement.atomic import plain, write_json_atomic, write_text_atomic
from testbed.measurement.records import (
    HOPS,
    NODES,
    REQUESTS,
    TABLES,
    TableWriter,
    latency_s,
    merge_tables,
    read_table,
    write_table,
)

VALUES = {
    "int": st.none() | st.integers(0, 2**62),
    "float": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "str": st.none() | st.text("abc+-_.,\"' é\n", min_size=1, max_size=8).filter(lambda s: s.strip()),
    "bool": st.none() | st.booleans(),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_names_carry_units(table):
    suffix = {"ns": "_ns", "s": "_s", "bytes": "_bytes", "bit/s": "_bps"}
    for column in table.columns:
        assert column.meaning and (not column.unit or column.name.endswith(suffix[column.unit]))
    assert len(set(table.names)) == len(table.names) and table.names[0] == "run_id"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fixed_dictionaries({c.name: VALUES[c.type] for c in REQUESTS.columns}), max_size=5))
def test_round_trip_is_exact(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "requests.csv"
    write_table(path, REQUESTS, rows)
    back = read_table(path, REQUESTS)
    assert len(back) == len(rows)
    for row, (_, got) in zip(rows, back.iterrows(), strict=True):
        for column in REQUESTS.columns:
            want, have = row[column.name], got[column.name]
            assert pd.isna(have) if want is None else have == want, column.name
    assert write_table(path, REQUESTS, back).read_text() == write_table(path, REQUESTS, rows).read_text()


def test_nanoseconds_keep_all_digits(tmp_path):
    rows = [{"scheduled_ns": 2**60 + 1, "completed_ns": 2**60 + 250_000_001, "status": "ok"},
            {"scheduled_ns": 2**60 + 3, "status": "dropped"}]
    table = read_table(write_table(tmp_path / "r.csv", REQUESTS, rows), REQUESTS)
    assert table["scheduled_ns"].tolist() == [2**60 + 1, 2**60 + 3]
    latency = latency_s(table)
    assert latency.iloc[0] == 0.25 and math.isnan(latency.iloc[1])  # not completed is not zero


def test_streaming_writer_refuses_unknown_columns_and_fills_run_id(tmp_path):
    with TableWriter(tmp_path / "h.csv", HOPS, run_id="r1", flush_every=1) as writer:
        writer.write({"request_id": "a", "kind": "compute", "compute_end_ns": 5})
        with pytest.raises(ValueError, match="no column"):
            writer.write({"compute_end": 5})
        assert (tmp_path / "h.csv").read_text().count("\n") == 2  # a killed process leaves what it had
    table = read_table(tmp_path / "h.csv", HOPS)
    assert table["run_id"].tolist() == ["r1"] and pd.isna(table["compute_start_ns"].iloc[0])


def test_who_looks_while_it_is_written_sees_rows_a_quarter_of_a_second_old(tmp_path, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("testbed.measurement.tables.time.monotonic", lambda: now_s[0])
    with TableWriter(tmp_path / "h.csv", HOPS) as writer:
        for after_s, lines in ((0.1, 0), (0.26, 3), (0.4, 3), (0.6, 5)):  # the header and the rows before go along
            now_s[0] = 100.0 + after_s
            writer.write({"request_id": "a"})
            assert (tmp_path / "h.csv").read_text().count("\n") == lines, after_s


def test_merge_sorts_and_survives_empty_parts(tmp_path):
    write_table(tmp_path / "a.csv", NODES, [{"t_ns": 5, "node": "x"}, {"t_ns": 1, "node": "x"}])
    write_table(tmp_path / "b.csv", NODES, [])
    write_table(tmp_path / "c.csv", NODES, [{"t_ns": 3, "node": "y"}])
    merged = merge_tables([tmp_path / f"{n}.csv" for n in "abc"], tmp_path / "all.csv", NODES, sort_by=["t_ns"])
    assert read_table(merged, NODES)["t_ns"].tolist() == [1, 3, 5]


def test_wrong_files_are_typed_errors(tmp_path):
    with pytest.raises(InputError, match="missing"):
        read_table(tmp_path / "no.csv", HOPS)
    (tmp_path / "bad.csv").write_text("request_id,payload_bytes\na,many\n")
    with pytest.raises(InputError, match=r"bad\.csv: not a hops table"):
        read_table(tmp_path / "bad.csv", HOPS)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_json_atomic(path, {"status": "running"})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_text_atomic(path, "half")
    assert path.read_text() == '{\n "status": "running"\n}\n' and os.listdir(tmp_path) == ["status.json"]


def test_json_is_strict():
    assert plain({"a": float("nan"), "p": Path("x"), 3: (pd.NA, True)}) == {"a": None, "p": "x", "3": [None, True]}
