"""A policy over a real network: queue, own deadlines, backups, probes, a crash; and its decisions made again from the log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testbed.measurement.components import components
from testbed.measurement.spans import spans_of, waterfall
from testbed.measurement.trial import Trial, load_trial
from testbed.policies.replay import replay_decisions
from testbed.schema.scenario import Load
from testbed.workload.arrivals import deadlines_s, generator
from tests.running import ROOT, command, logs, trial_folders

pytestmark = pytest.mark.net

# more than two at a time can take, so that requests wait; the crash comes half-way
LOAD = {"requests_per_device": 77, "warmup_requests": 3, "rate_per_s": 30, "timeout": "2s",
        "deadlines": {"uniform": ["200ms", "600ms"], "pivot": [{"requests": [10, 20], "uniform": ["3s", "4s"]}]},
        "queue": {"order": "edf", "workers": 2}, "min_accuracy": 0.5}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "turns.yaml").write_text(json.dumps({
        "name": "turns", "topology": str(ROOT / "topologies" / "one_link.yaml"), "model": "digits_branchy", "dataset": "digits",
        "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "load": LOAD, "seed": 5, "calibration": {"mode": "off"},
        "policies": [{"name": "turns", "policy": str(Path(__file__).parent / "turns_policy.py:Turns"), "fallback": "device"}],
        "events": [{"at": "1.5s", "kind": "node_crash", "node": "edge1"}]}))
    runs = folder / "runs"
    done = command("run", folder / "turns.yaml", "--runs", runs)
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    return load_trial(trial_folders(runs)[0])


def test_every_request_is_answered_once_by_whoever_was_first(trial: Trial) -> None:
    r = trial.requests
    assert len(r) == 80 and r["request_id"].is_unique and (r["status"] == "ok").all()
    raced = r[r["backup"].notna()]
    assert {"won", "lost"} >= set(raced["backup"]) and len(raced) > 5
    assert set(raced.loc[raced["backup"] == "won", "final_node"]) == {"device1"}
    assert set(raced.loc[raced["backup"] == "lost", "final_node"]) <= {"edge1"}  # on a busy machine none loses
    assert raced["duplicates"].isin([0, 1]).all() and r.loc[r["backup"].isna(), "duplicates"].isna().all()
    own = trial.hops[trial.hops["request_id"].isin(raced["request_id"])]
    assert own["duplicate"].notna().all() and trial.hops.loc[~trial.hops.index.isin(own.index), "duplicate"].isna().all()
    for _, row in raced.iterrows():  # the rows that count end with the answer
        counts = trial.hops[(trial.hops["request_id"] == row["request_id"]) & (trial.hops["duplicate"] == False)]  # noqa: E712
        assert int(counts[["recv_last_ns", "compute_end_ns"]].max().max()) == row["completed_ns"]


def test_after_the_crash_fallback_and_backup_answer_and_the_rows_say_why(trial: Trial) -> None:
    crashed_ns = trial.manifest["clock"]["start_ns"] + 2_000_000_000
    late = trial.requests[trial.requests["dispatched_ns"] > crashed_ns]
    assert len(late) > 5 and set(late["final_node"]) == {"device1"}
    why = late["error_type"].dropna().str.partition(":")
    assert set(why[0]) == {"fallback", "backup"} and set(why[2]) <= {"refused", "connection_lost"}


def test_latencies_add_up_with_the_wait_on_the_device_and_for_the_plan(trial: Trial) -> None:
    r = trial.requests.set_index("request_id")
    parts = components(trial.requests, trial.hops, trial.tier_of)
    assert np.allclose(parts.sum(axis=1) * 1e9, (r["completed_ns"] - r["scheduled_ns"]).astype(float), atol=1)
    waited = (r["dispatched_ns"] - r["issued_ns"]).astype(float)
    assert np.allclose(parts["dispatch queue"] * 1e9, waited, atol=1) and (waited >= 0).all() and (waited > 0).any()
    won = r.index[r["backup"] == "won"]
    assert (parts.loc[parts.index.difference(won), "backup wait"] == 0).all() and (parts.loc[won, "backup wait"] > 0).any()


def test_the_other_side_is_in_the_chrome_trace_and_not_in_the_waterfall(trial: Trial) -> None:
    spans = [span for span in spans_of(trial) if span.detail.get("duplicate")]
    assert {span.request_id for span in spans} <= set(trial.requests.loc[trial.requests["backup"].notna(), "request_id"])
    assert len(spans) > 5
    shown = [(request["ms"], span) for request in waterfall(trial) for span in request["spans"]]
    assert shown and all(span["to"] <= ms + 1e-6 and "duplicate" not in span["detail"] for ms, span in shown)


def test_at_most_two_are_under_way_and_the_earliest_deadline_is_next(trial: Trial) -> None:
    r = trial.requests
    edges = sorted([(int(t), 1) for t in r["dispatched_ns"]] + [(int(t), -1) for t in r["completed_ns"]])
    assert max(np.cumsum([step for _, step in edges])) <= 2
    due = r["scheduled_ns"] + (r["deadline_s"] * 1e9).round().astype("int64")
    waited = r[r["dispatched_ns"] > r["issued_ns"]]
    assert len(waited) > 3
    for i, row in waited.iterrows():
        others = r[(r["issued_ns"] < row["dispatched_ns"]) & (r["dispatched_ns"] > row["dispatched_ns"])]
        assert (due[others.index] >= due[i]).all()


def test_deadlines_are_those_of_the_seed_and_the_same_for_every_policy(trial: Trial) -> None:
    expected = deadlines_s(Load.model_validate(LOAD), generator(5, 0, "deadlines", 0))
    r = trial.requests.sort_values("request_id")
    assert np.allclose(r["deadline_s"], expected)
    in_time = (r["completed_ns"] - r["scheduled_ns"]).astype(float) / 1e9 <= r["deadline_s"]
    assert (r["deadline_met"] == in_time).all()


def test_probes_are_messages_that_the_kernel_counted_too(trial: Trial) -> None:
    probes = trial.hops[trial.hops["kind"] == "probe"]
    assert len(probes) >= 8 and probes["request_id"].str.fullmatch(r"device1-probe-\d{4}").all()
    assert set(probes.loc[probes["direction"] == "up", "payload_bytes"].dropna()) == {0, 20_000}
    checks = {check["name"]: check for check in trial.manifest["validity"]["checks"]}
    assert checks["link_bytes_error"]["passed"] and checks["order_violations"]["passed"]


def test_the_log_has_every_call_in_order(trial: Trial) -> None:
    lines = [json.loads(line) for line in (trial.path / "decisions.jsonl").read_text().splitlines()]
    kinds = pd.Series([line["kind"] for line in lines]).value_counts()
    assert lines[0]["kind"] == "policy" and kinds["decide"] == kinds["outcome"] == 80 and kinds["probe"] >= 3
    seen = next(line["observation"] for line in reversed(lines) if line["kind"] == "decide")
    row = trial.requests.set_index("request_id").loc[seen["request_id"]]
    assert seen["t_ns"] == row["dispatched_ns"] and seen["deadline_s"] == row["deadline_s"] and seen["min_accuracy"] == 0.5
    assert seen["elapsed_s"] == pytest.approx((row["dispatched_ns"] - row["scheduled_ns"]) / 1e9)
    assert set(seen["nodes"]) == {"device1", "edge1"} and seen["nodes"]["edge1"]["age_s"] > 0
    failed = [line["probe"] for line in lines if line["kind"] == "probe"][-1]
    assert failed["rtt_s"] is None and failed["duration_s"] is None  # the node is gone
    answered = next(line["outcome"] for line in lines if line["kind"] == "outcome" and line["outcome"]["plan"]["name"] == "edge")
    assert [t["dst_node"] for t in answered["transfers"]] == ["edge1", "device1"] and len(answered["computations"]) == 1
    assert answered["computations"][0] | {"queue_s": 0, "duration_s": 0} == {
        "node": "edge1", "model": "digits_branchy", "start": 0, "stop": 5, "queue_s": 0, "duration_s": 0, "load_s": 0.0}


def test_decisions_are_made_again_from_the_log_alone(trial: Trial, tmp_path: Path) -> None:
    again = command("replay-decisions", trial.path)
    assert (again.returncode, again.stderr) == (0, "") and "80 decisions, identical" in again.stdout
    other = command("replay-decisions", trial.path, "--set", "options.weight=0.9")
    assert other.returncode == 1 and "differ" in other.stdout and "backup after" in other.stdout
    fixed = replay_decisions(trial.path / "decisions.jsonl", "random")
    assert len(fixed[0].decisions) == 80 and fixed[0].differing
