"""Token-bucket offloading on a real link: the analytic decisions image by image, and transfers that do not wait for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from testbed.measurement.trial import load_trial
from tests.running import ROOT, command, logs, trial_folders

pytestmark = pytest.mark.net

# a tensor of digits_branchy behind its early exit takes 9.2 kB on the link: 1.5 s at its rate, and the burst holds four
TOPOLOGY = {
    "tiers": [{"name": "device", "count": 2, "compute": {"profile": "raspberry-pi-zero-2", "outputs": "memoised"},
               "runtime": "process"},
              {"name": "edge", "count": 1, "compute": {"profile": "edge-server", "outputs": "memoised"}, "runtime": "process"}],
    "links": [{"between": ["device", "edge"], "up": {"rate": "50kbit", "burst": "40KB", "delay": "5ms", "queue": "200packets"},
               "down": {"rate": "10mbit", "delay": "5ms", "queue": "100packets"}}],
    "tcp": {"congestion": "reno", "slow_start_after_idle": False}}
SCENARIO = {
    "name": "bucket_run", "topology": "cameras.yaml", "model": "digits_branchy", "dataset": "digits", "seed": 3,
    "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "calibration": {"mode": "off"},
    "policies": [{"name": "bucket", "policy": "token-bucket", "options": {
        "rate": 0.08, "depth": 3, "unit_s": 0.125, "entropy": 0.5}}],
    "load": {"requests_per_device": 50, "warmup_requests": 2, "rate_per_s": 8, "arrivals": "periodic", "deadline": "500ms",
             "timeout": "8s", "queue": {"workers": 1}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "cameras.yaml").write_text(yaml.safe_dump(TOPOLOGY))
    (folder / "bucket_run.yaml").write_text(yaml.safe_dump(SCENARIO))
    done = command("run", folder / "bucket_run.yaml", "--runs", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr + logs(folder)
    return folder / "runs"


def test_offloads_and_accuracy_are_those_of_the_analytic_policy(runs: Path) -> None:
    done = command("analytic", runs / "bucket_run")
    lines = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("device") and "agrees" in line.lower()]
    assert len(lines) == 2, done.stdout + done.stderr
    for _, requests, offloads, analytic, _, same, accuracy, analytic_accuracy, *_ in lines:
        assert requests == "52" and offloads == analytic and int(offloads) >= 3 and same == "100.0%"
        assert accuracy == analytic_accuracy
    assert done.returncode == 0, done.stdout


def test_transfers_do_not_wait_because_the_link_saved_up_what_the_bucket_did(runs: Path) -> None:
    folder, = trial_folders(runs)
    trial = load_trial(folder)
    up = trial.hops[(trial.hops["kind"] == "transfer") & (trial.hops["dst_node"] == "edge1")]
    took_s = ((up["recv_last_ns"] - up["send_start_ns"]) / 1e9).astype(float)
    assert len(up) >= 6 and took_s.max() < 1.0, "1.5 s each at the link's rate"
    assert trial.requests["status"].eq("ok").all()
    assert set(trial.requests["exit_id"]) == {"early", "final"}
    assert command("replay-decisions", runs / "bucket_run").returncode == 0
