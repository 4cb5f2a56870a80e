"""Edgent and SPINN on real links: exits as predicted for a deadline, and local answers in time when the edge dies or freezes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from testbed.measurement.trial import load_trial
from tests.running import ROOT, command, logs, trial_folders

pytestmark = pytest.mark.net

COMMON = {"topology": "link.yaml", "model": "digits_branchy", "dataset": "digits", "seed": 3,
          "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "calibration": {"mode": "off"}}
TOPOLOGY = (ROOT / "topologies" / "slow_link.yaml").read_text().replace("delay: 20ms", "delay: 2ms")
# digits_branchy on this device: 33 ms to the early exit, 70 ms to the last; the edge answers after 15 ms over 20 Mbit/s, and after
# 90 ms over 500 kbit/s
SPINN = {
    **COMMON, "name": "spinn_run", "sweep": {"topology.links.device-edge.up.rate": ["20mbit"]},
    "policies": [{"name": "spinn", "policy": "spinn", "options": {
        "constraints": [], "objective": "worst", "input_codec": "uint8", "retry_s": 1, "probe_period_s": 0.5, "probe_bytes": 4000}}],
    "load": {"requests_per_device": 34, "warmup_requests": 2, "rate_per_s": 5, "arrivals": "periodic", "deadline": "250ms",
             "timeout": "2s"},
    "events": [{"at": "2s", "kind": "node_pause", "node": "edge1", "duration": "1200ms"},
               {"at": "5200ms", "kind": "node_crash", "node": "edge1"}]}
EDGENT = {
    **COMMON, "name": "edgent_run", "sweep": {"topology.links.device-edge.up.rate": ["500kbit", "20mbit"]},
    "policies": [{"name": "edgent", "policy": "edgent", "options": {"input_codec": "uint8", "mode": "dynamic"}}],
    "load": {"requests_per_device": 5, "warmup_requests": 3, "arrivals": "closed", "deadline": "62ms"}}


def run(scenario: dict[str, object], folder: Path) -> list[Path]:
    (folder / "link.yaml").write_text(TOPOLOGY)
    file = folder / f"{scenario['name']}.yaml"
    file.write_text(yaml.safe_dump(scenario))
    done = command("run", file, "--runs", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr + logs(folder)
    return list(trial_folders(folder / "runs"))


def test_spinn_answers_locally_and_in_time_without_its_server(tmp_path: Path) -> None:
    folder, = run(SPINN, tmp_path)
    trial = load_trial(folder)
    requests = trial.requests.sort_values("request_id")
    due_s = (requests["scheduled_ns"] - trial.manifest["clock"]["start_ns"]) / 1e9
    assert (requests["status"] == "ok").all()
    frozen, crashed = due_s.between(2.1, 3.1), due_s > 5.3
    for with_edge in (due_s < 1.8, due_s.between(4.4, 5.1)):  # at first, and tried again
        assert (requests[with_edge]["final_node"] == "edge1").mean() > 0.5, "with a server, that is the faster place"
    for without in (frozen, crashed):
        some = requests[without]
        assert len(some) >= 5 and set(some["final_node"]) == {"device1"} and set(some["exit_id"]) <= {"early", "final"}
        assert some["deadline_met"].astype(bool).mean() >= 0.8  # all of them on a machine with nothing else to do
    assert (requests[due_s.between(1.7, 3.1)]["backup"] == "won").any(), "nothing refuses while it is frozen: the backup answers"
    assert requests[due_s > 5]["error_type"].fillna("").str.contains("refused").any(), "a dead one refuses at once"
    replayed = command("replay-decisions", folder)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_edgent_leaves_at_the_exit_that_the_link_allows(tmp_path: Path) -> None:
    found = {}
    for folder in run(EDGENT, tmp_path):
        trial = load_trial(folder)
        rate = trial.manifest["config"]["topology"]["links"][0]["up"]["rate"].removesuffix("bit")
        measured: pd.DataFrame = trial.requests[trial.requests["phase"] == "measure"]
        assert (measured["status"] == "ok").all()
        found[float(rate)] = (measured["exit_id"].mode()[0], measured["plan"].mode()[0])
        misses = [c for c in trial.manifest["validity"]["checks"] if c["name"] == "memo_miss_share"]
        assert misses and misses[0]["value"] == 0, "outputs of its plans were there"
    assert found == {5e5: ("early", "device1[0:3]"), 2e7: ("final", "edge1[0:5]")}
