"""Metrics against brute force over the rows, and the summary files that hold them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from testbed.measurement.metrics import FAMILIES, METRICS, evaluate_all
from testbed.measurement.summary import group_trials, summarise_run, summarise_trial
from testbed.measurement.trial import find_trials, load_run, load_trial

from .fake_run import make_run, make_trial


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def failing(tmp_path):
    return make_trial(tmp_path / "t" / "0", "early-exit", requests_per_device=60, failing=5)


def test_cost_is_invocations_plus_time_times_memory(failing):
    manifest = json.loads((failing / "manifest.json").read_text())
    manifest["config"]["prices"] = {"currency": "USD", "tiers": {
        "cloud": {"per_invocation": 2e-7, "per_gb_s": 1.6667e-5, "memory": "6144000000B"}}}
    (failing / "manifest.json").write_text(json.dumps(manifest))
    trial = load_trial(failing)
    got = {e.metric: e.value for e in evaluate_all([trial])}["cost_per_1000"]
    ids = set(trial.requests.loc[trial.requests["phase"] == "measure", "request_id"])
    hops = [h for h in rows_of(failing / "hops.csv") if h["compute_end_ns"] and h["dst_node"] == "cloud1"
            and h["request_id"] in ids]
    busy_s = sum(int(h["compute_end_ns"]) - int(h["compute_start_ns"]) for h in hops) / 1e9
    assert hops and got == pytest.approx(1000 / len(ids) * (len(hops) * 2e-7 + busy_s * 6.144 * 1.6667e-5))


def test_effective_accuracy_is_the_mean_over_the_models_that_answered(failing):
    trial = load_trial(failing)
    models = {"a": {"exit": "final", "accuracy": 0.5}, "b": {"exit": "last", "accuracy": 0.9}}
    requests = trial.requests.assign(model=["a", "b"] * (len(trial.requests) // 2), exit_id=["final", "last"] * (len(trial.requests) // 2))
    told = {**trial.manifest, "model_accuracy": models}
    ok = requests[(requests["phase"] == "measure") & (requests["status"] == "ok")]

    def value(frame, manifest):
        return {e.metric: e.value for e in evaluate_all([replace(trial, requests=frame, manifest=manifest)])}["effective_accuracy"]

    assert value(requests, told) == pytest.approx(sum({"a": 0.5, "b": 0.9}[m] for m in ok["model"]) / len(ok))
    assert value(requests, trial.manifest) is None  # an older manifest
    early = requests["exit_id"].where(requests["request_id"] != ok["request_id"].iloc[3], "early")
    assert value(requests.assign(exit_id=early), told) is None


def test_against_brute_force(failing):
    got = {e.metric: e.value for e in evaluate_all([load_trial(failing)])}
    rows = [r for r in rows_of(failing / "requests.csv") if r["phase"] == "measure"]
    ok = [r for r in rows if r["status"] == "ok"]
    latency = sorted((int(r["completed_ns"]) - int(r["scheduled_ns"])) / 1e9 for r in ok)
    assert got["requests"] == len(rows) and got["failed"] == len(rows) - len(ok) > 0
    assert got["accuracy"] == pytest.approx(sum(r["correct"] == "true" for r in ok) / len(ok))
    assert got["latency_p99"] is None  # of about a hundred
    for q in (50, 95):  # the smallest value that at least q% do not exceed
        oracle = next(x for x in latency if sum(y <= x for y in latency) >= q / 100 * len(latency))
        assert got[f"latency_p{q}"] == pytest.approx(oracle)
    in_time = [r for r in ok if r["deadline_met"] == "true"]
    assert got["deadline_hit"] == pytest.approx(len(in_time) / len(rows))  # failed ones count as missed
    assert got["correct_in_time"] == pytest.approx(sum(r["correct"] == "true" for r in in_time) / len(rows))
    ids = {r["request_id"] for r in rows}
    hops = [h for h in rows_of(failing / "hops.csv") if h["request_id"] in ids and h["direction"] == "up"]
    up = sum(int(h["payload_bytes"]) + int(h["header_bytes"]) for h in hops)
    assert got["bytes_up"] == pytest.approx(up / len(rows))
    exits = [name for name in got if name.startswith("exit_share[")]
    assert sorted(exits) == ["exit_share[exit1]", "exit_share[final]"]
    assert sum(got[name] for name in exits) == pytest.approx(1)
    assert sum(v for k, v in got.items() if k.startswith("time_share[")) == pytest.approx(1)
    assert sum(v for k, v in got.items() if k.startswith("time[")) == pytest.approx(sum(latency) / len(latency))
    assert got["offload"] == 1.0


def test_every_metric_is_described():
    assert all(m.formula and m.name for m in METRICS) and len({m.name for m in METRICS}) == len(METRICS)
    assert all(len(family) == 3 for family in FAMILIES)


def test_percentile_of_a_small_sample_is_blank_and_says_why(tmp_path):
    few = make_trial(tmp_path / "t" / "0", "edge-only", requests_per_device=30)
    p99 = next(e for e in evaluate_all([load_trial(few)]) if e.metric == "latency_p99")
    assert p99.value is None and p99.ci_low is None and "p99 needs 459" in p99.note


def test_intervals_hold_their_value_and_are_repeatable(trial):
    first, second = (summarise_trial(trial) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    found = first.dropna(subset=["ci_low"])
    assert len(found) > 10
    assert (found["ci_low"] <= found["value"] + 1e-12).all() and (found["value"] <= found["ci_high"] + 1e-12).all()
    assert list(first.columns) == ["run_id", "policy", "metric", "unit", "value", "ci_low", "ci_high", "n", "note"]


def test_repeats_are_pooled_and_sweep_points_are_rows(tmp_path):
    sweep = ({"trace_scale": 0.5}, {"trace_scale": 1.0})
    run = make_run(tmp_path, requests_per_device=20, policies=("edge-only", "split"), repeats=2, sweep=sweep)
    table = summarise_run(run)
    assert table[["policy", "sweep.trace_scale", "repeats"]].values.tolist() == [
        ["edge-only", 0.5, 2], ["edge-only", 1.0, 2], ["split", 0.5, 2], ["split", 1.0, 2]]
    single = [g.value("requests") for g in group_trials([load_trial(p) for p in find_trials(run)[:1]])]
    assert table["requests"].tolist() == [2 * single[0]] * 4
    on_disk = pd.read_csv(run / "table.csv")
    assert on_disk["latency_p50_s"].tolist() == pytest.approx(table["latency_p50_s"].tolist())
    long = pd.read_csv(run / "summary.csv")
    assert set(long["sweep.trace_scale"]) == {0.5, 1.0} and len(long["run_id"].iloc[0].split("+")) == 2


def test_policies_keep_the_order_of_the_file(run):
    assert [t.policy for t in load_run(run)] == ["device-only", "edge-only", "cloud-only", "split", "early-exit"]


def test_the_newest_of_two_configurations_counts(run):
    older = shutil.copytree(run / "cfg10", run / "cfgold")
    manifest = json.loads((older / "0" / "manifest.json").read_text())
    (older / "0" / "manifest.json").write_text(json.dumps(manifest | {"finished_utc": "2025-01-01T00:00:00Z"}))
    assert len(find_trials(run)) == 5 and older / "0" not in find_trials(run)
    (run / "cfg10" / "0" / "status.json").write_text('{"state": "failed"}')  # unfinished trials do not count
    assert older / "0" in find_trials(run)


def test_run_json_names_the_trials(run):
    summarise_run(run, trials=find_trials(run)[:2])
    assert [load_trial(p).policy for p in find_trials(run)] == ["device-only", "edge-only"]


def test_trial_directory_is_a_run_of_one_and_stays_untouched(trial):
    before = {p.name: p.read_bytes() for p in trial.iterdir()}
    assert len(summarise_run(trial)) == 1
    assert {p.name: p.read_bytes() for p in trial.iterdir()} == before


def test_a_trial_where_everything_failed_is_still_a_row(tmp_path):
    dead = make_trial(tmp_path / "t" / "0", "edge-only", requests_per_device=10, failing=10)
    got = {e.metric: e for e in evaluate_all([load_trial(dead)])}
    assert got["ok"].value == 0 and got["failed"].value == got["requests"].value > 0
    assert got["latency_p50"].value is None and got["deadline_hit"].value == 0
    assert not any(math.isnan(e.value) for e in got.values() if e.value is not None)
