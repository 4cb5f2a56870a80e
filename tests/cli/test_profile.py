"""`testbed profile`: what it writes is a compute profile whose times are those that it measured."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from testbed.experiment.trials import plan_experiment
from testbed.inference.catalogue import load_catalogue
from testbed.inference.compute import load_profile
from testbed.inference.regressors import load_regressors
from testbed.schema.units import parse_duration_s
from tests.running import QUICKSTART, ROOT, command

INFO = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")["digits_branchy"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("profile") / "here.yaml"
    done = command("profile", "digits_branchy", "--repeats", "20", "--pause", "1ms", "-o", file)
    assert done.returncode == 0, done.stdout + done.stderr
    return file, done.stdout


def test_the_profile_is_what_was_measured(written: tuple[Path, str]) -> None:
    data = yaml.safe_load(written[0].read_text())
    medians = {}
    for key, spread in data["table"]["digits_branchy"].items():
        p5, median, p95 = (parse_duration_s(spread[k]) for k in ("p5", "median", "p95"))
        assert 0 < p5 <= median <= p95 and spread["cv"] >= 0
        medians[key] = median
    assert list(medians) == ["0:1", "1:2", "2:3", "3:4", "4:5"]
    profile = load_profile(str(written[0]), ROOT / "nodes" / "profiles")
    early = parse_duration_s(data["heads"]["digits_branchy"]["early"]["median"])
    assert profile.service_time_s(INFO, 0, 5, (4,)) == pytest.approx(sum(medians.values()))  # the final exit has no head
    assert profile.service_time_s(INFO, 1, 3, (2,)) == pytest.approx(medians["1:2"] + medians["2:3"] + early)
    assert re.search(r"Measured on \d{4}-\d\d-\d\d .* one thread, torch .*, 20 passes .* pause 1ms", data["source"])


def test_the_table_names_every_stage_and_head(written: tuple[Path, str]) -> None:
    assert all(s.name in written[1] for s in INFO.stages) and "exit early" in written[1] and "all stages" in written[1]


def test_a_scenario_uses_it_by_a_path_relative_to_itself(written: tuple[Path, str], tmp_path: Path) -> None:
    scenario = yaml.safe_load(QUICKSTART.read_text())
    topology = yaml.safe_load((ROOT / "topologies" / "lte_three_tier.yaml").read_text())
    for link in topology["links"]:
        link.clear()
    topology["links"] = [{"between": ["device", "edge"]}, {"between": ["edge", "cloud"]}]
    topology["tiers"][0]["compute"] = {"profile": "profiles/here.yaml", "outputs": "memoised"}
    topology["tiers"][1]["compute"] = "profiles/here.yaml"
    (tmp_path / "profiles").mkdir()
    shutil.copy(written[0], tmp_path / "profiles")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(scenario | {
        "topology": topology, "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml")}))
    done = command("validate", tmp_path / "mine.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "profiles" / "here.yaml").unlink()
    done = command("validate", tmp_path / "mine.yaml")
    assert done.returncode == 2 and "there is no such compute profile" in done.stderr


@pytest.mark.parametrize(("words", "message"), [
    (["nope"], "there is no such model"), (["digits_branchy", "--pause", "5"], "has no unit"),
    (["digits_branchy", "-o", "here.txt"], "not the name of a profile file")])
def test_what_is_wrong_is_refused_before_anything_is_measured(words: list[str], message: str) -> None:
    done = command("profile", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_an_existing_file_is_kept(written: tuple[Path, str]) -> None:
    before = written[0].read_text()
    done = command("profile", "digits_branchy", "-o", written[0])
    assert done.returncode == 2 and "exists" in done.stderr and written[0].read_text() == before


def test_memoised_outputs_need_a_profile() -> None:
    done = command("validate", QUICKSTART, "--set", "topology.tiers.edge.compute={outputs: memoised}")
    assert done.returncode == 2 and "needs a profile" in done.stderr


def test_regressors_are_written_shown_and_used_by_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    done = command("profile", "digits_branchy", "--repeats", "20", "--regressors", file, "--sweep-passes", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("convolution", "depthwise convolution", "linear", "pooling", "normalisation", "activation"):
        assert re.search(rf"{kind} +(linear|logarithmic) +60 +18 +\d+\.\d% +\d+\.\d%", done.stdout), done.stdout
    assert "8-bit layers" in done.stdout
    stages = load_regressors(file).stages
    assert len(stages["digits_branchy"]) == 5 and all(s > 0 for s in stages["digits_branchy"]) and "vgg16_ddnn_paper" in stages

    scenario = yaml.safe_load(QUICKSTART.read_text())
    scenario["policies"] = [{"name": "predicted", "policy": "neurosurgeon", "options": {"regression": "here.json", "slowdown": {"device": 10}}}]
    scenario |= {"topology": str(ROOT / "topologies" / "lte_three_tier.yaml"), "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(scenario))
    done = command("validate", tmp_path / "mine.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    trial = plan_experiment(tmp_path / "mine.yaml").trials[0]
    assert str(file) in trial.content_sha256  # the file's content is part of what was asked
    file.unlink()
    done = command("validate", tmp_path / "mine.yaml")
    assert done.returncode == 2 and "here.json" in done.stderr and "Traceback" not in done.stderr
    done = command("profile", "digits_branchy", "--regressors", tmp_path / "here.yaml")
    assert done.returncode == 2 and "let it end in .json" in done.stderr
