"""Every real trace, against the tables that came with the data (computed elsewhere, by other code)."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.traces import load_rtt_log, load_trace, save_trace
from testbed.traces.registry import detect
from testbed.traces.source import open_source

FORMAT_OF = {"mahimahi": "mahimahi", "nyc-lte": "mahimahi", "ghent-4g": "ghent", "norway-hsdpa": "norway",
             "sabre-json": "sabre", "pensieve-cooked": "columns", "lumos5g": "columns", "ucc-5g": "gnettrack",
             "5gophers": "gophers", "opennetlab-json": "opennetlab"}  # fmt: skip
# outliers of 8 and 16 Gbit/s in a 4G and a 5G capture: refused, readable with --clip
ABSURD = {"opennetlab-json/4G_3mbps.json", "opennetlab-json/5G_13mbps.json"}
NO_TRACE = re.compile(r".*(README(\.md)?|LICENSE|PROVENANCE\.tsv|SHA256SUMS|info\.txt|trace-info)$")
RTT = re.compile(r"5gophers/.*(02-Round-Trip-Times/data\.csv|04-Ping-Traces/.*\.log)$")


@dataclass(frozen=True)
class Row:
    """One line of a table: `file[ column]`, duration s, mean Mbit/s."""

    path: str
    column: str | None
    duration_s: float
    mean_mbps: float


@pytest.fixture(scope="module")
def folder(testbed_data: Path) -> Path:
    found = testbed_data / "traces"
    if not (found / "README.md").is_file():
        pytest.skip(f"no traces with a README.md in {testbed_data}")
    return found


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    found = []
    for line in (folder / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) >= 6 and cells[0].startswith("`") and re.fullmatch(r"[\d.]+", cells[1]):
            path, _, column = cells[0].strip("`").replace("…", "All-Carriers").partition(" ")
            found.append(Row(path, column.split(" (")[0] or None, float(cells[1]), float(cells[2])))
    return found


@pytest.mark.parametrize("group", FORMAT_OF)
def test_detected_and_the_mean_agrees_within_half_a_percent(group: str, folder: Path, rows: list[Row]):
    mine = [row for row in rows if row.path.startswith(f"{group}/")]
    assert mine
    for row in mine:
        path = folder / row.path
        assert detect(open_source(path)).name == FORMAT_OF[group], row.path
        if row.path in ABSURD:
            with pytest.raises(InputError, match=r"line \d+.*absurd rate.*--clip"):
                load_trace(path)
        trace = load_trace(path, column=row.column, clip=100e9 if row.path in ABSURD else None)
        # the table has two decimals: half a unit of the last one is not an error of ours
        assert trace.mean_rate_bps / 1e6 == pytest.approx(row.mean_mbps, rel=0.005, abs=0.0051), row
        assert trace.duration_ns / 1e9 == pytest.approx(row.duration_s, abs=1.01), row


def test_every_file_is_in_a_table_or_refused_for_a_stated_reason(folder: Path, rows: list[Row]):
    listed = {row.path for row in rows}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = str(path.relative_to(folder))
        if RTT.match(name):
            with pytest.raises(InputError, match="round-trip times, not bandwidth"):
                load_trace(path)
        elif NO_TRACE.match(name):
            with pytest.raises(InputError, match="no trace format that is known"):
                load_trace(path)
        else:
            assert name in listed, f"{name} is in no table of the README"


def test_mahimahi_files_come_back_byte_by_byte(folder: Path, tmp_path: Path):
    files = [path for group in ("mahimahi", "nyc-lte") for path in (folder / group).iterdir()]
    captures = [path for path in files if not NO_TRACE.match(str(path))]
    assert len(captures) == 9
    for path in captures:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        trace = load_trace(path)
        save_trace(trace, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == raw, path.name
        save_trace(trace, tmp_path / "own.csv.gz")
        assert load_trace(tmp_path / "own.csv.gz") == trace, path.name


def test_readers_of_the_same_run_agree(folder: Path):
    """Ten runs exist both as raw logs and as Sabre JSON (rates there are cut to whole kbit/s)."""
    pairs = [
        (item, folder / "ghent-4g" / f"{item.stem}.log") for item in (folder / "sabre-json/4Glogs").iterdir()
    ]
    pairs += [(item, next((folder / "norway-hsdpa").rglob(f"{item.stem}.log")))
              for item in (folder / "sabre-json/3Glogs").iterdir()]  # fmt: skip
    assert len(pairs) == 10
    for sabre, log in pairs:
        a, b = load_trace(sabre), load_trace(log)
        assert a.duration_ns == pytest.approx(b.duration_ns, abs=10_000_000)
        assert a.mean_rate_bps == pytest.approx(b.mean_rate_bps, rel=0.001)


def test_clipping_an_outlier_leaves_a_plausible_mean(folder: Path):
    assert 1e6 < load_trace(folder / "opennetlab-json/4G_3mbps.json", clip=100e6).mean_rate_bps < 5e6


def test_round_trip_logs(folder: Path):
    """Medians and extremes of the README's tables of round-trip times."""
    table = folder / "5gophers/All-Carriers/02-Round-Trip-Times/data.csv"
    with pytest.raises(InputError, match=r"6 series.*VERIZON/US-East"):
        load_rtt_log(table)
    rtts = sorted(load_rtt_log(table, column="VERIZON/US-East").tolist())
    assert len(rtts) == 120
    assert (rtts[0], rtts[-1]) == pytest.approx((0.0388, 0.0795))
    assert (rtts[59] + rtts[60]) / 2 == pytest.approx(0.0634, abs=6e-5)
    logs = sorted((folder / "5gophers/mmWave-only/04-Ping-Traces").iterdir())
    assert len(logs) == 34
    assert all(0.01 < rtt < 0.2 for log in logs for rtt in load_rtt_log(log))
