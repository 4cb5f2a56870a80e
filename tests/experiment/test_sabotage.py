"""The run judges itself: sabotage of a real run turns its verdict INVALID, with the right check and a reason in words."""

import json
import sys
from pathlib import Path

import pytest

from testbed.experiment.runner import run_experiment
from testbed.experiment.trials import plan_experiment
from tests.running import QUICKSTART

pytestmark = [pytest.mark.net, pytest.mark.container]
SABOTAGE = Path(__file__).with_name("sabotage.py")
SHORT = {"policies": ["edge-only"], "load.requests_per_device": 40, "load.warmup_requests": 2, "load.rate_per_s": 5}


@pytest.mark.parametrize(("way", "failed", "says"), [
    ("slow_shaper", {"apply_lag_p99_steps", "missed_steps_share"}, "shaper"),
    ("busy_cpu", {"cpu_busy_share"}, "cores were busy"),
    ("wrong_rate", {"rate_error"}, "edge1-cloud1"),
])
def test_sabotage_is_caught(tmp_path: Path, way: str, failed: set[str], says: str) -> None:
    results = run_experiment(plan_experiment(QUICKSTART, SHORT), tmp_path,
                             program=[sys.executable, str(SABOTAGE), way])
    assert [r.error for r in results] == [None]
    manifest = json.loads((results[0].folder.path / "manifest.json").read_text())
    checks = {c["name"]: c for c in manifest["validity"]["checks"]}
    assert manifest["validity"]["verdict"] == results[0].verdict == "INVALID"
    caught = {name for name in failed if checks[name]["state"] == "failed"}
    assert caught, {name: (c["value"], c["limit"]) for name, c in checks.items()}
    assert any(says in checks[name]["reason"] for name in caught), [checks[name]["reason"] for name in caught]
