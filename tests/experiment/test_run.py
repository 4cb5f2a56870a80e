"""A real run, end to end: arithmetic that must hold, reproducibility, bounds from physics, tables that join."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from testbed.measurement.components import UNACCOUNTED, components
from testbed.measurement.trial import Trial, load_trial
from testbed.traces import load_trace
from tests.running import run_short, trial_folders

pytestmark = [pytest.mark.net, pytest.mark.container]

# columns of `requests` that are instants or durations, or follow from them
TIMES = ["scheduled_ns", "issued_ns", "dispatched_ns", "completed_ns", "deadline_met", "decision_duration_s"]
PLANS = ["device-only", "edge-only", "cloud-only", "split", "early-exit"]


@pytest.fixture(scope="module")
def trials(short_run: tuple[Path, str]) -> dict[str, Trial]:
    return {t.policy: t for t in map(load_trial, trial_folders(short_run[0]))}


def test_all_plans_ran_and_every_request_was_answered(trials: dict[str, Trial], short_run: tuple[Path, str]) -> None:
    assert sorted(trials) == sorted(PLANS)
    for trial in trials.values():
        assert len(trial.requests) == 2 * 28
        assert (trial.requests["status"] == "ok").all(), trial.requests[["status", "error_type"]].value_counts()
        assert trial.requests["request_id"].is_unique
        assert trial.requests["correct"].mean() > 0.9
    for plan in PLANS:
        assert re.search(rf"^\W*{plan}\b", short_run[1], re.MULTILINE), short_run[1]
    assert "report.html" in short_run[1] and re.search(r"\b(VALID|INVALID)\b", short_run[1])


def test_hops_add_up_to_the_latency_within_a_millisecond(trials: dict[str, Trial]) -> None:
    for trial in trials.values():
        rest = components(trial.requests, trial.hops, trial.tier_of)[UNACCOUNTED]
        assert rest.abs().quantile(0.95) < 1e-3, (trial.policy, rest.describe())


def test_kernel_bytes_agree_with_messages(trials: dict[str, Trial]) -> None:
    for trial in trials.values():
        check = next(c for c in trial.manifest["validity"]["checks"] if c["name"] == "link_bytes_error")
        if trial.policy == "device-only":
            continue  # nothing travels
        assert check["value"] is not None and check["value"] <= 0.03, check


def test_a_request_never_beats_the_link(trials: dict[str, Trial]) -> None:
    """Cloud-only: at least 2 x (10 + 20) ms of delay, and no more bytes than the trace allowed in the meantime."""
    trial = trials["cloud-only"]
    latency_s = (trial.requests["completed_ns"] - trial.requests["scheduled_ns"]) / 1e9
    assert latency_s.min() >= 0.060
    start_ns = trial.manifest["clock"]["start_ns"]
    spec = next(link for link in trial.manifest["links"] if link["name"] == "device1-edge1")["up"]
    trace = load_trace(spec["trace"]["path"])
    up = trial.hops[(trial.hops["direction"] == "up") & (trial.hops["src_node"] == "device1")]
    assert len(up) == 28
    for hop in up.itertuples():
        begin = hop.send_start_ns - start_ns + spec["trace"]["offset_ns"]
        end = hop.recv_last_ns - start_ns + spec["trace"]["offset_ns"] - int(0.030 * 1e9)
        step_ns = int(spec["step_s"] * 1e9)
        allowed_bits = trace.bits_between(begin - begin % step_ns, end) + 2 * 1500 * 8
        assert allowed_bits >= hop.payload_bytes * 8, (hop.request_id, allowed_bits / 8, hop.payload_bytes)


def test_plans_use_the_tiers_that_they_name(trials: dict[str, Trial]) -> None:
    used = {name: set(t.requests["tiers_used"]) for name, t in trials.items()}
    assert used["device-only"] == {"device"} and used["edge-only"] == {"edge"} and used["cloud-only"] == {"cloud"}
    assert used["split"] == {"device+edge"}
    assert used["early-exit"] <= {"edge", "edge+cloud"} and "edge" in used["early-exit"]
    requests = trials["early-exit"].requests
    early = requests["exit_id"] == "early"
    assert (requests.loc[early, "exit_confidence"] >= 0.8).all()
    assert (requests.loc[~early, "final_node"] == "cloud1").all()


def test_all_plans_met_the_same_arrivals_and_samples(trials: dict[str, Trial]) -> None:
    reference = trials["device-only"]
    for trial in trials.values():
        for device in ("device1", "device2"):
            ours, theirs = (t.requests[t.requests["device"] == device].sort_values("request_id") for t in (trial, reference))
            assert list(ours["sample_index"]) == list(theirs["sample_index"])
            offsets = [list(r["scheduled_ns"] - t.manifest["clock"]["start_ns"])
                       for r, t in ((ours, trial), (theirs, reference))]
            assert offsets[0] == offsets[1]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(short_run: tuple[Path, str], tmp_path: Path) -> None:
    """Every column of `requests` that is not a time is byte-identical, whatever the machine did meanwhile."""
    only = ["--set", "policies=[{name: early-exit, plan: early-exit, threshold: 0.8, head: edge, tail: cloud}]"]
    run_short(tmp_path / "again", *only)
    run_short(tmp_path / "other", *only, "--set", "seed=8")
    first = next(t for t in trial_folders(short_run[0]) if load_trial(t).policy == "early-exit")
    again, other = (trial_folders(tmp_path / name)[0] for name in ("again", "other"))
    assert first.relative_to(short_run[0]) == again.relative_to(tmp_path / "again"), "the same configuration hash"

    def columns(folder: Path) -> str:
        table = pd.read_csv(folder / "requests.csv", dtype=str).sort_values("request_id")
        return table.drop(columns=TIMES).to_csv(index=False)

    assert columns(first) == columns(again)
    assert columns(first) != columns(other)


def test_manifest_says_what_ran(trials: dict[str, Trial]) -> None:
    manifest = trials["split"].manifest
    assert {n["runtime"] for n in manifest["nodes"]} == {"container"}
    assert all(link["backend"] in ("tap", "netem") for link in manifest["links"])
    assert {"torch", "mininet", "python"} <= set(manifest["versions"])
    for row in manifest["calibration"]["links"]:
        assert row["measured_rate_bps"] == pytest.approx(row["asked_rate_bps"], rel=0.05)
        assert row["measured_rtt_s"] == pytest.approx(row["asked_rtt_s"], abs=0.003)
    assert len(manifest["files"]) >= 5 and all(re.fullmatch("[0-9a-f]{64}", h) for h in manifest["files"].values())
    assert json.loads(json.dumps(manifest["config"])) == manifest["config"]


def test_a_second_run_skips_what_is_complete(short_run: tuple[Path, str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in short_run[0].rglob("requests.csv")}
    again = run_short(short_run[0])
    assert "0 run, 5 already complete" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in short_run[0].rglob("requests.csv")} == before
