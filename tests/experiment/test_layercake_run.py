"""LayerCake over a real network: what it measures of the link, which models answer, cold starts, cost, and its log."""

from __future__ import annotations

import json

import pytest

from testbed.measurement.metrics import evaluate_all
from testbed.measurement.trial import Trial, load_trial
from testbed.policies.replay import replay_decisions
from tests.running import ROOT, command, logs, trial_folders

pytestmark = pytest.mark.net

LADDER = {"device": ["mobilenet_050_int8", "mobilenet_100_int8"], "edge": ["mobilenet_100_int8", "resnet20_branchy"]}
PRICE = {"per_invocation": 2e-7, "per_gb_s": 1.6667e-5, "memory": "6144MB"}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """One link of 5 Mbit/s and 40 ms; an image of 12 KB takes 60 ms to the edge, so only longer deadlines go there."""
    folder = tmp_path_factory.mktemp("layercake")
    (folder / "cake.yaml").write_text(json.dumps({
        "name": "cake", "topology": str(ROOT / "topologies" / "one_link.yaml"), "model": "mobilenet_050_int8", "dataset": "cifar10",
        "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "seed": 3, "calibration": {"mode": "off"},
        "load": {"requests_per_device": 45, "warmup_requests": 5, "rate_per_s": 8, "queue": {"order": "edf", "workers": 2},
                 "deadlines": {"uniform": ["15ms", "400ms"]}, "deadline": "400ms"},
        "prices": {"tiers": {"edge": PRICE}},
        "policies": [{"name": "cake", "policy": "layercake", "options": {
            "device_models": LADDER["device"], "remote": {"edge": LADDER["edge"]}, "resize_s": 0, "probe_period_s": 0.5,
            "probe_bytes": 50_000, "backup": "proactive", "backup_factor": 0.8}}]}))
    runs = folder / "runs"
    done = command("run", folder / "cake.yaml", "--runs", runs, "--set",
                   "topology.tiers.edge.residency={load_rate: 80mbit, keep_alive: 60s}")
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    return load_trial(trial_folders(runs)[0])


def decisions(trial: Trial) -> list[dict[str, object]]:
    return [json.loads(line) for line in (trial.path / "decisions.jsonl").read_text().splitlines()]


def test_tight_deadlines_stay_on_the_device_and_loose_ones_leave_it(trial: Trial) -> None:
    r = trial.requests
    assert len(r) == 50 and r["request_id"].is_unique and (r["status"] == "ok").all()
    steps = {d["request_id"]: d["plan"]["steps"][0] for d in decisions(trial) if d["kind"] == "decide"}  # type: ignore[index]
    planned = r["request_id"].map(lambda name: steps[name]["node"])
    assert set(planned) == {"device1", "edge1"}
    assert set(planned[r["deadline_s"] < 0.08]) == {"device1"}  # 0.8 * 80 ms is less than round trip (40), upload (20) and model (10)
    assert (planned[r["deadline_s"] > 0.25] == "edge1").mean() > 0.2  # the others met a busy variant
    on_edge = r[r["final_node"] == "edge1"]
    assert set(on_edge["model"]) <= set(LADDER["edge"]) and set(r.loc[r["final_node"] == "device1", "model"]) <= set(LADDER["device"])


def test_the_nodes_had_every_output_before_the_load(trial: Trial) -> None:
    hits = trial.hops.loc[trial.hops["kind"] == "compute", "memo_hit"]
    assert len(hits) >= 50 and hits.all()


def test_probes_measure_the_rate_and_round_trip_of_the_link(trial: Trial) -> None:
    last = [d["scores"] for d in decisions(trial) if d["kind"] == "decide"][-1]
    assert last["rtt_s"] == pytest.approx(0.041, abs=0.02)  # type: ignore[index]
    # 83 ms at 5 Mbit/s; where other programs delay the echo or the probe by 30 ms, the estimate is off by as much
    assert 3.5e6 < last["bandwidth_bps"] < 7.5e6  # type: ignore[index]
    assert 0 <= last["bandwidth_age_s"] < 2  # type: ignore[index]


def test_a_cold_model_is_loaded_once_and_billed(trial: Trial) -> None:
    loads = trial.hops[trial.hops["load_ns"].notna() & (trial.hops["dst_node"] == "edge1")]
    assert 1 <= len(loads) == loads["model"].nunique()
    metrics = {e.metric: e.value for e in evaluate_all([trial])}
    measured = set(trial.requests.loc[trial.requests["phase"] == "measure", "request_id"])
    billed = trial.hops[(trial.hops["dst_node"] == "edge1") & trial.hops["compute_end_ns"].notna()
                        & trial.hops["request_id"].isin(measured)]
    seconds = (billed["compute_end_ns"] - billed["compute_start_ns"] + billed["load_ns"].fillna(0)).astype("float64").sum() / 1e9
    assert metrics["cost_per_1000"] == pytest.approx(1000 / len(measured) * (len(billed) * 2e-7 + seconds * 6.144 * 1.6667e-5))
    effective = metrics["effective_accuracy"]
    assert effective is not None and 0.77 < effective < 0.845  # between the least and the most accurate of the ladder


def test_decisions_are_made_again_from_the_log_and_take_less_than_a_millisecond(trial: Trial) -> None:
    made_again = replay_decisions(trial.path / "decisions.jsonl")
    assert [len(device.decisions) for device in made_again] == [50] and not any(device.differing for device in made_again)
    assert trial.requests["decision_duration_s"].median() < 0.001
