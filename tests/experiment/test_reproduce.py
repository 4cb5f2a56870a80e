"""Reruns from a manifest, archives that carry their content, and bundles that are the same experiment elsewhere."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.errors import InputError
from testbed.experiment.bundle import Recipe, pack, plan_again, replace_strings, unzip, zip_folder
from testbed.experiment.rerun import compare_requests, environment_differences
from testbed.experiment.trials import plan_experiment
from testbed.measurement.records import REQUESTS
from tests.running import ROOT, command, logs, trial_folders

POLICY = """from testbed.policies import Plan, Policy, Step


class Mine(Policy):
    def __init__(self, context):
        self.context = context

    def decide(self, observation):
        return Plan(name="mine", steps=(Step(node=self.context.nodes["edge"], model=self.context.model, start=0, stop=5),))
"""
SCENARIO: dict[str, Any] = {
    "name": "small", "model": "digits_branchy", "dataset": "digits", "seed": 5, "repeats": 2, "description": "a small one",
    "topology": {
        "tiers": [{"name": "device", "count": 1, "runtime": "process"},
                  {"name": "edge", "count": 1, "runtime": "process", "compute": "edge-server"}],
        "links": [{"between": ["device", "edge"], "up": {"trace": "lte.up", "delay": "2ms"}, "down": {"rate": "20mbit"}}],
    },
    "policies": ["edge-only"], "calibration": {"mode": "off"},
    "load": {"requests_per_device": 6, "warmup_requests": 1, "rate_per_s": 10},
}


def project(folder: Path, **more: Any) -> Path:
    """A project of its own: scenario, trace, catalogue with weights, profiles; returns the scenario file."""
    shutil.copytree(ROOT / "nodes", folder / "nodes")
    shutil.copy(ROOT / "traces" / "synthetic-lte-static.up", folder / "lte.up")
    (folder / "mine.py").write_text(POLICY)
    (folder / "small.yaml").write_text(yaml.safe_dump({**SCENARIO, **more}))
    return folder / "small.yaml"


@pytest.mark.parametrize("policies", [["edge-only"], [{"name": "mine", "policy": "mine.py:Mine"}]])
def test_a_bundle_is_the_same_experiment_after_its_project_is_gone(tmp_path: Path, policies: list[Any]) -> None:
    (tmp_path / "a").mkdir()
    file = project(tmp_path / "a", policies=policies)
    trial = plan_experiment(file).trials[1]
    recipe = Recipe.of_trial(trial)
    pack([recipe], tmp_path / "content")
    unzip(zip_folder(tmp_path / "content"), tmp_path / "elsewhere" / "content")
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "content")
    again, back = plan_again(recipe, tmp_path / "elsewhere" / "scenario.yaml", tmp_path / "elsewhere" / "content")
    assert again.config_hash == trial.config_hash and again.repeat == trial.repeat == 1
    assert str(tmp_path / "a") not in json.dumps(again.config()), "nothing points to the old place"
    # with the places mapped back it is the old configuration, but for the catalogue, which the old one found by itself
    old = replace_strings(again.config(), back)
    assert {k: v for k, v in old.items() if k != "catalogue"} == {k: v for k, v in trial.config().items() if k != "catalogue"}
    with pytest.raises(InputError, match=r"(lte\.up|catalogue).*not on this machine"):
        plan_again(recipe, tmp_path / "elsewhere" / "scenario.yaml")


def test_what_has_changed_since_the_trial_is_not_packed(tmp_path: Path) -> None:
    file = project(tmp_path)
    recipe = Recipe.of_trial(plan_experiment(file).trials[0])
    trace = tmp_path / "lte.up"
    trace.write_text("".join(trace.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"lte\.up.*not what it was"):
        pack([recipe], tmp_path / "content")


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x.csv").write_text("1,2\n")
        (tmp_path / name / "y").write_bytes(b"\0" * 1000)
    assert zip_folder(tmp_path / "a") == zip_folder(tmp_path / "b")


def test_differences_are_named_and_moments_are_not_differences() -> None:
    then = {"host": {"kernel": "6.1", "cpu_model": "A", "load_1min": 0.1}, "versions": {"torch": "2.1", "numpy": "2.0"},
            "files": {"model:x": "aa", "lte.up": "bb"}, "config_hash": "1", "started_utc": "a",
            "links": [{"name": "l", "backend": "netem"}]}
    now = {"host": {"kernel": "6.2", "cpu_model": "A", "load_1min": 9.0}, "versions": {"torch": "2.1"},
           "files": {"model:x": "aa", "lte.up": "cc"}, "config_hash": "1", "started_utc": "b",
           "links": [{"name": "l", "backend": "tap"}]}
    assert {(d.kind, d.name, d.then, d.now) for d in environment_differences(then, now)} == {
        ("host", "kernel", "6.1", "6.2"), ("versions", "numpy", "2.0", None), ("files", "lte.up", "bb", "cc"),
        ("backend of link", "l", "netem", "tap")}
    assert environment_differences(then, then) == []


def write_requests(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    lines = [",".join(REQUESTS.names)]
    lines += [",".join(str(row.get(name, "")) for name in REQUESTS.names) for row in rows]
    (folder / "requests.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_times_may_differ_and_nothing_else(tmp_path: Path) -> None:
    base = {"run_id": "r", "status": "ok", "prediction": 3, "scheduled_ns": 1, "completed_ns": 5, "deadline_met": True}
    a = write_requests(tmp_path / "a", [{**base, "request_id": "d-0"}, {**base, "request_id": "d-1"}])
    later = write_requests(tmp_path / "b", [{**base, "request_id": "d-1", "completed_ns": 9, "deadline_met": False},
                                            {**base, "request_id": "d-0"}])
    other = write_requests(tmp_path / "c", [{**base, "request_id": "d-0"}, {**base, "request_id": "d-1", "prediction": ""}])
    fewer = write_requests(tmp_path / "d", [{**base, "request_id": "d-0"}])
    renamed = write_requests(tmp_path / "e", [{**base, "request_id": "d-0"}, {**base, "request_id": "d-2"}])
    assert compare_requests(a, later).reproduced
    assert {c.name for c in compare_requests(a, later).columns if c.differing} == {"completed_ns", "deadline_met"}
    assert not compare_requests(a, other).reproduced
    assert [(c.name, c.differing) for c in compare_requests(a, other).columns if c.differing] == [("prediction", 1)]
    assert not compare_requests(a, fewer).reproduced and not compare_requests(a, renamed).reproduced


@pytest.mark.net
def test_a_trial_is_repeated_from_its_manifest_here_and_from_its_archive_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = project(tmp_path / "a", repeats=1)
    done = command("run", file, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path)
    trial, = trial_folders(tmp_path / "runs")

    here = command("rerun", trial / "manifest.json", "--runs", tmp_path / "reruns")
    assert here.returncode == 0, here.stdout + here.stderr + logs(tmp_path)
    assert "reproduced: 7 requests" in here.stdout and "the same here" in here.stdout

    packed = command("export", tmp_path / "runs" / "small", "-o", tmp_path / "small.zip")
    assert packed.returncode == 0 and "1 trials" in packed.stdout, packed.stderr
    shutil.rmtree(tmp_path / "a")
    missing = command("rerun", trial, "--runs", tmp_path / "reruns")
    assert missing.returncode == 2 and "--content" in missing.stderr, missing.stderr
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = tmp_path / "unpacked" / "small"
    readme = (unpacked / "README.md").read_text()
    for column in REQUESTS.columns:
        assert f"`{column.name}`" in readme and column.meaning in readme, column.name
    assert (unpacked / "report.html").is_file() and trial.parent.name in readme and "a small one" in readme
    again = command("rerun", unpacked / trial.relative_to(tmp_path / "runs" / "small"), "--runs", tmp_path / "reruns")
    assert again.returncode == 0, again.stdout + again.stderr + logs(tmp_path)
    assert "reproduced: 7 requests" in again.stdout
    # a prediction that was tampered with does not pass
    requests = trial / "requests.csv"
    header, first, *rest = requests.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("prediction")] = "99"
    unpacked_trial = unpacked / trial.relative_to(tmp_path / "runs" / "small")
    (unpacked_trial / "requests.csv").write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    assert not compare_requests(unpacked_trial, trial_folders(tmp_path / "reruns")[0]).reproduced
