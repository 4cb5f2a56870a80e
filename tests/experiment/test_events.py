"""Faults on a real run: whatever fails, every request ends with a status, and the manifest says what was done when."""

from pathlib import Path

import pytest
import yaml

from testbed.measurement.trial import load_trial
from tests.running import ROOT, command, logs, trial_folders

pytestmark = [pytest.mark.net, pytest.mark.container]
SCENARIO = {
    "name": "all_events", "topology": str(ROOT / "topologies" / "lte_three_tier.yaml"), "model": "digits_branchy",
    "dataset": "digits", "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "seed": 3,
    "policies": [{"name": "edge", "plan": "edge-only", "fallback": "device", "retries": 1}],
    "load": {"requests_per_device": 100, "warmup_requests": 2, "rate_per_s": 5, "arrivals": "periodic", "timeout": "800ms"},
    "events": [
        {"at": "2s", "kind": "rate", "link": "device1-edge1", "direction": "up", "rate": "1mbit", "duration": "2s"},
        {"at": "5s", "kind": "handover", "link": "device2-edge1", "duration": "150ms"},
        {"at": "7s", "kind": "node_pause", "node": "edge1", "duration": "1500ms"},
        {"at": "10s", "kind": "partition", "tier": "edge", "duration": "1500ms"},
        {"at": "13s", "kind": "node_crash", "node": "edge1"},
        {"at": "14s", "kind": "node_restart", "node": "edge1"},
        {"at": "500s", "kind": "link_down", "link": "device1-edge1"},
    ],
}


def test_every_request_ends_and_every_event_is_told(tmp_path: Path) -> None:
    file = tmp_path / "all_events.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    done = command("run", file, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
    trial = load_trial(trial_folders(tmp_path / "runs")[0])
    start_ns = trial.manifest["clock"]["start_ns"]

    told = {e["kind"]: e for e in trial.manifest["events"]}
    assert set(told) == {"rate", "rate_end", "handover", "handover_end", "node_pause", "node_resume", "partition", "heal",
                         "node_crash", "node_restart", "link_down"}
    late = told.pop("link_down")
    assert late["t_ns"] is None and "ended before" in late["error"]
    assert all(e["error"] is None for e in told.values()), told
    assert all(0 <= e["t_ns"] - e["due_ns"] < 1e9 for e in told.values()), told

    requests = trial.requests
    assert len(requests) == 2 * 102
    assert (requests["status"] == "ok").all(), requests[["status", "error_type"]].value_counts()
    due_s = (requests["scheduled_ns"] - start_ns) / 1e9
    latency_s = (requests["completed_ns"] - requests["scheduled_ns"]) / 1e9
    fell_back = requests["error_type"].fillna("").str.startswith("fallback")
    first = requests["device"] == "device1"
    # a frame of 16 KB needs more than 0.13 s at 1 Mbit/s
    assert latency_s[first & due_s.between(2.2, 3.2) & ~fell_back].min() > 0.13
    # frozen, cut off, dead: the device answers by itself; and not before anything happened
    for begin, end in ((7.1, 7.6), (10.1, 10.6), (13.1, 13.9)):
        assert fell_back[due_s.between(begin, end)].all(), (begin, requests[due_s.between(begin, end)]["error_type"])
    assert not fell_back[due_s < 2].any()
    assert set(requests.loc[fell_back, "final_node"]) == {"device1", "device2"}
