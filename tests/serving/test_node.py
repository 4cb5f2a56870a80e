"""The node program: ready when warm, telemetry while it lives, and it ends when told or when its parent is gone."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *options: str, **changes: Any) -> subprocess.Popen[str]:
    config = {"name": "edge1", "tier": "edge", "host": "127.0.0.1", "port": 0, "peers": {}, "tiers": {"edge1": "edge"},
              "tier_order": ["edge"], "catalogue": str(ROOT / "nodes/models/catalogue.yaml"),
              "models": ["digits_branchy"], "profiles": str(ROOT / "nodes/profiles"), "compute": "edge-server",
              "telemetry": str(folder / "nodes.csv"), "ready": str(folder / "ready")} | changes
    (folder / "node.json").write_text(json.dumps(config))
    return subprocess.Popen([sys.executable, "-m", "testbed.serving.node", "--config", str(folder / "node.json"), *options],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["stdin", "sigterm"])
def test_life_of_a_node(tmp_path: Path, how: str) -> None:
    process = start(tmp_path, *(["--die-with-stdin"] if how == "stdin" else []))
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert facts == json.loads((tmp_path / "ready").read_text())
        assert facts["models"] == ["digits_branchy"] and facts["model_time_s"]["digits_branchy"]["measured"] > 0
        if how == "sigterm":
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)  # closes standard input
    finally:
        process.kill()
    assert process.returncode == 0 and "ready on port" in errors and "edge1 stops" in errors
    rows = list(csv.DictReader((tmp_path / "nodes.csv").open()))
    assert rows and rows[0]["node"] == "edge1" and float(rows[-1]["cpu_usage_s"]) > 0
    assert int(rows[0]["memory_bytes"]) > 10_000_000 and rows[0]["queue_depth"] == "0"


@pytest.mark.parametrize(("changes", "message"), [
    ({"models": ["nope"]}, "there is no such model"), ({"compute": "abacus"}, "there is no such compute profile"),
    ({"catalogue": "/nowhere.yaml"}, "there is no such file"), ({"host": "203.0.113.9"}, "cannot listen"),
    ({"prot": 1}, "unknown key")])
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    process = start(tmp_path, **changes)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and message in errors and "Traceback" not in errors
