"""The Ray engine: the same sweep on a local cluster of two workers gives the same results as without it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from testbed.experiment import ray_engine
from testbed.experiment.bundle import Recipe, pack, zip_folder
from testbed.experiment.rerun import compare_requests
from testbed.experiment.trials import plan_experiment
from tests.experiment.test_reproduce import project
from tests.running import ROOT, command, logs, trial_folders

SWEEP = {"sweep": {"load.rate_per_s": [10, 20]}, "repeats": 1}


def test_without_ray_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    file = project(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "ray.py").write_text("raise ImportError('hidden by a test')\n")
    done = subprocess.run([sys.executable, "-m", "testbed", "run", str(file), "--engine", "ray"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": f"{hidden}:{ROOT}"}, timeout=120, check=False)
    assert done.returncode == 3 and "testbed[ray]" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_jobs_do_not_go_with_ray(tmp_path: Path) -> None:
    done = command("run", project(tmp_path), "--engine", "ray", "--jobs", "2")
    assert done.returncode == 2 and "--jobs" in done.stderr


def test_a_worker_with_other_content_refuses(tmp_path: Path) -> None:
    recipe = Recipe.of_trial(plan_experiment(project(tmp_path)).trials[0])
    pack([recipe], tmp_path / "content")
    fields = {"config": recipe.config, "files": recipe.files, "source": str(recipe.source), "repeat": recipe.repeat}
    answer = ray_engine.Worker().run(zip_folder(tmp_path / "content"), fields, "0" * 12)
    assert "another experiment" in answer["error"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster with two workers, in processes of its own that end with the test."""
    pytest.importorskip("ray", reason="Ray is not installed: .venv/bin/pip install -c constraints.txt ray")
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("ray_cluster.py"))], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=tmp_path_factory.mktemp("ray"))
    assert process.stdin is not None and process.stdout is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(60)


@pytest.mark.net
@pytest.mark.timeout(900)
def test_two_workers_give_the_same_results_as_this_process(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    (tmp_path / "a").mkdir()
    file = project(tmp_path / "a", **SWEEP)
    spread = command("run", file, "--runs", tmp_path / "ray", "--engine", "ray", timeout_s=600)
    assert spread.returncode == 0 and "2 run" in spread.stdout, spread.stdout + spread.stderr + logs(tmp_path)
    alone = command("run", file, "--runs", tmp_path / "here", "--jobs", "2", timeout_s=600)
    assert alone.returncode == 0, alone.stdout + alone.stderr + logs(tmp_path)

    theirs, ours = ([f.relative_to(tmp_path / where / "small") for f in trial_folders(tmp_path / where)] for where in ("ray", "here"))
    assert theirs == ours and len(ours) == 2
    workers = set()
    for name in ours:
        a, b = (tmp_path / where / "small" / name for where in ("ray", "here"))
        assert compare_requests(b, a).reproduced, name
        one, other = (json.loads((f / "manifest.json").read_text()) for f in (a, b))
        for key in ("config", "files", "source", "sweep_point", "run_id", "config_hash"):
            assert one[key] == other[key], key
        assert "testbed-ray-" not in (a / "manifest.json").read_text(), "a folder of the worker is named"
        assert one["links"][0]["up"]["trace"] == other["links"][0]["up"]["trace"]
        workers.add(one["worker"])
    assert len(workers) == 2, "both workers ran trials"
    table = [set(pd.read_csv(tmp_path / where / "small" / "table.csv").columns) for where in ("ray", "here")]
    assert table[0] and len(table[0] ^ table[1]) <= len(table[0]) // 4  # metrics that need an event may be absent in one

    # resume across engines: what Ray made is complete for this process
    again = command("run", file, "--runs", tmp_path / "ray")
    assert "0 run, 2 already complete" in again.stdout, again.stdout + again.stderr
