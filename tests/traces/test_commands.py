"""`testbed traces ...` as a user calls it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.traces import load_trace

SHIPPED = Path(__file__).resolve().parents[2] / "traces"
UP = str(SHIPPED / "synthetic-lte-driving.up")


def test_list_shows_every_shipped_trace(capsys):
    assert main(["traces", "list", str(SHIPPED)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("Mbit/s" in line for line in lines) == 6
    assert any(line.startswith("README.md") and "no trace format" in line for line in lines)


def test_list_formats(capsys):
    assert main(["traces", "list", "--formats"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_info_as_table_and_as_json(capsys):
    assert main(["traces", "info", UP]) == 0
    assert "4.000 Mbit/s" in capsys.readouterr().out
    assert main(["traces", "info", UP, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["duration_s"] == 150 and found["format"] == "csv" and 0 < found["zero_share"] < 0.02


def test_convert_scales_rotates_appends_and_resamples(tmp_path, capsys):
    target = tmp_path / "x.csv"
    command = ["traces", "convert", UP, str(target), "--append", UP.replace(".up", ".down"), "--scale", "0.5",
               "--offset", "30s", "--resample", "100ms"]  # fmt: skip
    assert main(command) == 0
    trace, up = load_trace(target), load_trace(UP)
    assert trace.duration_ns == 300 * 10**9
    assert trace.mean_rate_bps == pytest.approx(3.5e6, rel=1e-3)
    assert trace.bits_between(0, 10**9) == pytest.approx(up.bits_between(30 * 10**9, 31 * 10**9) / 2, abs=20)
    assert "converted from synthetic-lte-driving.up, synthetic-lte-driving.down" in target.read_text()


def test_convert_to_mahimahi(tmp_path, capsys):
    assert main(["traces", "convert", UP, str(tmp_path / "x.up.gz")]) == 0
    trace = load_trace(tmp_path / "x.up.gz")
    assert trace.packet_bits == 12_000 and abs(trace.total_bits - load_trace(UP).total_bits) < 12_000


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_plot(tmp_path, name, capsys):
    assert main(["traces", "plot", UP, UP.replace(".up", ".down"), "-o", str(tmp_path / name)]) == 0
    raw = (tmp_path / name).read_bytes()
    assert len(raw) > 20_000 and raw.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


DOCUMENTED = re.findall(
    r"^\$ testbed (traces .*)$", (SHIPPED.parent / "docs/commands/traces.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("command", [line for line in DOCUMENTED if not line.startswith("traces get")])
def test_documented_commands_work(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "traces").symlink_to(SHIPPED)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["info", "nowhere.up"], ["nowhere.up", "no such trace file"]),
        (["info", UP, "--clip", "5"], ["--clip", "no unit", "5mbit"]),
        (["info", UP, "--format", "pcap"], ["format", "pcap", "mahimahi"]),
        (["convert", UP, "x.json", "--to", "sabre"], ["only read", "csv, mahimahi"]),
        (["convert", UP, "x.csv", "--offset", "soon"], ["--offset", "soon", "25ms"]),
        (["plot", UP, "-o", "x.docx"], ["x.docx", ".png"]),
        (["generate", "x", "--mobility", "flying"], ["flying", "driving"]),
        (["get", "everything"], ["everything", "mahimahi"]),
        (["list", "no-such-folder"], ["no-such-folder"]),
    ],
)
def test_bad_calls_are_one_line_and_exit_code_2(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["traces", *command]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err
    assert not list(tmp_path.iterdir())


def test_the_room_stays_light():
    """The emulation's processes import it: numpy is all that it may load."""
    code = (
        "import sys, testbed.traces, testbed.traces.generate, testbed.traces.statistics; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"pandas", "matplotlib", "scipy", "pydantic", "typer", "torch", "urllib.request"}
