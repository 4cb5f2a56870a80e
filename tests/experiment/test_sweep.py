"""Sweeps: which points, in which order, side by side, killed and resumed, and what resume refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.errors import InputError
from testbed.experiment.estimate import Estimate
from testbed.experiment.runner import run_experiment
from testbed.experiment.store import TrialFolder, run_folder
from testbed.experiment.trials import plan_experiment
from tests.running import ROOT, command

FAKE = [sys.executable, str(Path(__file__).with_name("fake_trial.py"))]
SCENARIO: dict[str, Any] = {
    "name": "grid", "model": "digits_branchy", "dataset": "digits",
    "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"),
    "topology": {
        "tiers": [{"name": "device", "count": 1, "runtime": "process"}, {"name": "edge", "count": 1, "runtime": "process"}],
        "links": [{"between": ["device", "edge"], "up": {"trace": "lte.up", "delay": "2ms"}, "down": {"rate": "20mbit"}}],
    },
    "policies": ["edge-only"], "repeats": 3, "load": {"requests_per_device": 20, "warmup_requests": 0, "rate_per_s": 10},
    "sweep": {"load.rate_per_s": [10, 20, 40], "load.deadline": ["50ms", "100ms", "200ms"]},
}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A 3 x 3 sweep with 3 repeats, and its trace beside it."""
    shutil.copy(ROOT / "traces" / "synthetic-lte-static.up", tmp_path / "lte.up")
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(SCENARIO, sort_keys=False))
    return file


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the fake trials note: `began RUN_ID NS` and `ended RUN_ID NS`."""
    file = tmp_path / "fake.log"
    file.touch()
    monkeypatch.setenv("FAKE_TRIAL_LOG", str(file))
    return file


def noted(log: Path, what: str) -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith(what)]


def points(path: Path, overrides: dict[str, Any] | None = None, sweep: dict[str, list[Any]] | None = None) -> list[tuple[Any, ...]]:
    """(rate, deadline) of every trial of repeat 0, in order."""
    return [(t.scenario.load.rate_per_s, t.scenario.load.deadline) for t in plan_experiment(path, overrides, sweep).trials
            if t.repeat == 0]


def test_axes_are_crossed_and_a_list_is_taken_point_by_point(scenario: Path) -> None:
    assert points(scenario) == [(r, d) for r in (10, 20, 40) for d in (0.05, 0.1, 0.2)]
    listed = [{"load.rate_per_s": 10, "load.deadline": "50ms"}, {"load.rate_per_s": 40, "load.deadline": "200ms"}]
    scenario.write_text(yaml.safe_dump({**SCENARIO, "sweep": listed}))
    assert points(scenario) == [(10, 0.05), (40, 0.2)]
    assert points(scenario, sweep={"seed": [1, 2]}) == [(10, 0.05)] * 2 + [(40, 0.2)] * 2, "a list is crossed with --set axes"
    assert points(scenario, {"load.deadline": "1s"}) == [(10, 1.0), (40, 1.0)]


def test_an_override_of_a_swept_key_takes_it_out_of_the_sweep(scenario: Path) -> None:
    assert points(scenario, {"load.rate_per_s": 5}) == [(5, d) for d in (0.05, 0.1, 0.2)]
    assert points(scenario, {"load.deadline": "1s"}, {"load.rate_per_s": [1, 2]}) == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize(("sweep", "says"), [
    ({"load.rate_per_s": 4}, "list of values"), ([4], "point 1"), ([], "no points"), ("fast", "mapping"),
    ([{"load.rate": 4}], "rate"), ({"load.rate_per_s": []}, "no values"),
])
def test_a_sweep_of_another_shape_is_refused(scenario: Path, sweep: Any, says: str) -> None:
    scenario.write_text(yaml.safe_dump({**SCENARIO, "sweep": sweep}))
    with pytest.raises(InputError, match=says) as caught:
        plan_experiment(scenario)
    assert "\n" not in str(caught.value)


def test_every_round_of_repeats_has_every_point_once(scenario: Path) -> None:
    trials = plan_experiment(scenario).trials
    assert len(trials) == 27 and [t.repeat for t in trials] == [0] * 9 + [1] * 9 + [2] * 9
    for repeat in range(3):
        assert len({t.config_hash for t in trials if t.repeat == repeat}) == 9


@pytest.mark.net
@pytest.mark.parametrize("jobs", [2])
def test_a_sweep_killed_half_way_is_resumed_without_running_a_complete_trial_again(
        scenario: Path, tmp_path: Path, log: Path, jobs: int) -> None:
    words = [sys.executable, str(Path(__file__).with_name("fake_sweep.py")), str(scenario), str(tmp_path / "runs"), str(jobs)]
    runner = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(noted(log, "ended")) < 12:
        assert runner.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    time.sleep(1)  # the kernel ends the trials of the dead runner
    run = tmp_path / "runs" / "grid"
    experiment = plan_experiment(scenario)
    complete = {t.run_id for t in experiment.trials if TrialFolder.of(run, t).is_complete}
    assert 12 - jobs <= len(complete) < 27
    assert complete <= set(noted(log, "ended")), "a trial that did not end is not complete"
    kept = {p: p.stat().st_mtime_ns for t in experiment.trials if t.run_id in complete
            for p in TrialFolder.of(run, t).path.iterdir()}
    begun_before = len(noted(log, "began"))

    results = run_experiment(experiment, tmp_path / "runs", jobs=jobs, program=FAKE)

    assert [r.error for r in results] == [None] * 27 and [r.trial for r in results] == list(experiment.trials)
    assert {r.trial.run_id for r in results if r.skipped} == complete
    assert Counter(noted(log, "began")[begun_before:]) == Counter({t.run_id for t in experiment.trials} - complete)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert all(TrialFolder.of(run, t).is_complete for t in experiment.trials)


@pytest.mark.net
def test_jobs_run_side_by_side_and_never_more_of_them(scenario: Path, tmp_path: Path, log: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRIAL_S", "1.0")
    experiment = plan_experiment(scenario, {"load.deadline": "1s"})
    events: Counter[str] = Counter()
    results = run_experiment(experiment, tmp_path / "runs", jobs=3, program=FAKE,
                             on_progress=lambda trial, event: events.update([event["event"]]))
    assert len(results) == 9 and all(r.verdict == "VALID" for r in results)
    assert events == {"phase": 9, "complete": 9}
    spans = {name: [int(line.split()[2]) for line in log.read_text().splitlines() if name == line.split()[1]]
             for name in noted(log, "began")}
    together = [sum(begin <= at < end for begin, end in spans.values()) for at, _ in spans.values()]
    assert max(together) == 3, together


@pytest.mark.net
def test_a_trial_that_fails_does_not_stop_the_others_and_is_redone(scenario: Path, tmp_path: Path, log: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = plan_experiment(scenario, {"load.deadline": "1s", "load.rate_per_s": 1, "repeats": 1,
                                            "policies": ["edge-only", "device-only"]})
    monkeypatch.setenv("FAKE_TRIAL_FAILS", "edge-only")
    first = run_experiment(experiment, tmp_path / "runs", jobs=2, program=FAKE)
    assert [r.error is None for r in first] == [False, True]
    monkeypatch.delenv("FAKE_TRIAL_FAILS")
    assert [r.skipped for r in run_experiment(experiment, tmp_path / "runs", program=FAKE)] == [False, True]


@pytest.mark.net
def test_changed_content_is_refused_and_fresh_starts_anew_beside_the_old(scenario: Path, tmp_path: Path, log: Path) -> None:
    short = {"load.deadline": "1s", "load.rate_per_s": 1, "repeats": 1}
    runs = tmp_path / "runs"
    run_experiment(plan_experiment(scenario, short), runs, program=FAKE)
    old = {p: p.read_bytes() for p in (runs / "grid").rglob("*") if p.is_file()}
    trace = tmp_path / "lte.up"
    text = trace.read_text()
    trace.write_text("".join(text.splitlines(keepends=True)[:-1]))
    changed = plan_experiment(scenario, short)
    for call in (lambda: run_experiment(changed, runs, program=FAKE),
                 lambda: run_experiment(plan_experiment(scenario, {**short, "repeats": 2}), runs, program=FAKE)):
        with pytest.raises(InputError, match=r"lte\.up.*has changed.*--fresh.*grid\.2"):
            call()
    assert len(noted(log, "began")) == 1, "refused before anything ran"

    assert [r.skipped for r in run_experiment(changed, runs, resume=False, program=FAKE)] == [False]
    assert {p: p.read_bytes() for p in old} == old
    assert run_folder(runs, "grid") == runs / "grid.2"
    assert [r.skipped for r in run_experiment(changed, runs, program=FAKE)] == [True], "the newest folder is gone on with"
    trace.write_text(text)
    with pytest.raises(InputError, match="has changed"):
        run_experiment(plan_experiment(scenario, short), runs, program=FAKE)


def test_weights_and_profiles_are_part_of_the_hash(scenario: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "nodes", tmp_path / "nodes")
    profile = {"topology.tiers.edge.compute": "edge-server", "catalogue": str(tmp_path / "nodes/models/catalogue.yaml")}

    def hashed(**more: Any) -> str:
        return plan_experiment(scenario, {**profile, **more}).trials[0].config_hash

    before = hashed()
    assert hashed(catalogue=SCENARIO["catalogue"]) == before, "where the catalogue lies does not matter"
    file = tmp_path / "nodes" / "profiles" / "edge-server.yaml"
    file.write_text(file.read_text() + "# another profile\n")
    assert hashed() != before
    before, catalogue = hashed(), tmp_path / "nodes" / "models" / "catalogue.yaml"
    sha256 = plan_experiment(scenario, profile).trials[0].content_sha256["model:digits_branchy"]
    catalogue.write_text(catalogue.read_text().replace(sha256, "a" * 64))
    assert hashed() != before


def test_fresh_folders_are_numbered_and_never_another_scenarios(tmp_path: Path) -> None:
    assert run_folder(tmp_path, "a") == run_folder(tmp_path, "a", fresh=True) == tmp_path / "a"
    (tmp_path / "a-2").mkdir()
    assert run_folder(tmp_path, "a", fresh=True) == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert run_folder(tmp_path, "a") == tmp_path / "a" and run_folder(tmp_path, "a", fresh=True) == tmp_path / "a.2"
    (tmp_path / "a.9").mkdir()
    assert run_folder(tmp_path, "a") == tmp_path / "a.9" and run_folder(tmp_path, "a", fresh=True) == tmp_path / "a.10"


def test_estimates_learn_from_finished_trials(scenario: Path) -> None:
    """Load 20 requests: 2 s at 10/s, 1 s at 20/s, 0.5 s at 40/s; what is not load is 5 s where it was measured."""
    trials = {t.scenario.load.rate_per_s: t for t in plan_experiment(scenario, {"load.deadline": "1s", "repeats": 1}).trials}
    estimate = Estimate()
    assert estimate.duration_s(trials[10]) > estimate.duration_s(trials[40])
    estimate.learn(trials[10], 7.0)
    assert estimate.duration_s(trials[10]) == 7.0
    assert estimate.duration_s(trials[20]) == pytest.approx(6.0) and estimate.duration_s(trials[40]) == pytest.approx(5.5)


@pytest.mark.net
def test_a_dry_run_lists_trials_marks_complete_ones_and_says_how_long(scenario: Path, tmp_path: Path, log: Path) -> None:
    runs = tmp_path / "runs"
    fixed = ["--set", "load.deadline=1s", "--set", "load.rate_per_s=10,20"]
    before = command("run", scenario, "--runs", runs, *fixed, "--dry-run")
    assert before.returncode == 0 and "6 trials, 0 already complete" in before.stdout and not runs.exists()
    experiment = plan_experiment(scenario, {"load.deadline": "1s"}, {"load.rate_per_s": [10, 20]})
    assert [line.split()[0] for line in before.stdout.splitlines()[:-1]] == [t.run_id for t in experiment.trials]
    run_experiment(plan_experiment(scenario, {"load.deadline": "1s", "load.rate_per_s": 10, "repeats": 1}), runs, program=FAKE)
    status = next(runs.rglob("status.json"))
    status.write_text(json.dumps({**json.loads(status.read_text()), "duration_s": 1002.0}))
    after = command("run", scenario, "--runs", runs, *fixed, "--dry-run")
    assert after.stdout.count("(complete)") == 1
    # two more at 10/s as measured, three at 20/s with one second less of load: 2 * 1002 + 3 * 1001 s
    assert "6 trials, 1 already complete, about 83.5 min" in after.stdout
    assert "about 27.8 min" in command("run", scenario, "--runs", runs, *fixed, "--dry-run", "--jobs", "3").stdout
