"""The policy `orchestrated`: devices take their parts of one joint decision, conform, and refuse what was not trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testbed.errors import InputError
from testbed.experiment.studies import plan_study
from testbed.inference.catalogue import load_catalogue
from testbed.measurement.study import StudyOutcome
from testbed.policies.check import check_policy
from testbed.policies.knowledge import Context, ModelInfo
from testbed.policies.orchestration.conditions import links
from testbed.policies.orchestration.models import MOBILENET_V1
from testbed.policies.orchestration.oracle import optimum
from testbed.policies.orchestration.policy import Orchestrated
from testbed.policies.orchestration.qlearning import Exploration
from testbed.policies.orchestration.response import Actions, Contention, Platform
from testbed.policies.orchestration.saved import Entry, Saved, read
from testbed.policies.orchestration.spec import OrchestrationStudy
from testbed.policies.orchestration.study import run
from testbed.policies.rehearsal import made_up_context
from tests.running import ROOT

ACTIONS = Actions.faithful(8)
SHIPPED = ROOT / "nodes" / "policies" / "orchestration_cifar10.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    regular, weak = links([False] * 3, False).key, links([True, False, False], False).key
    actions = {regular: ("edge:large", "device:small", "cloud:large"), weak: ("device:base", "edge:large", "cloud:large")}
    file = tmp_path / "p.json"
    Saved("three", 3, ("large", "base", "small"), "analytic",
          (Entry("80%", "qlearning", actions), Entry("99%", "qlearning", dict.fromkeys(actions)))).write(file)
    return file


def context(device: str) -> Context:
    made = made_up_context()
    return Context(device, {**made.nodes, "device": device}, made.tiers, made.models, made.model, 0.5, 1, made.compute)


def test_devices_take_their_parts_of_one_decision(saved: Path) -> None:
    plans = [Orchestrated(context(f"device{i}"), str(saved), "80%").plans()[0] for i in (1, 2, 3)]
    assert [plan.label for plan in plans] == ["edge1[0:6]", "device2[0:6]", "cloud1[0:6]"]
    assert [plan.steps[0].model for plan in plans] == ["large", "small", "large"]
    weak = Orchestrated(context("device1"), str(saved), "80%", weak=["device1"])
    assert weak.plans()[0].label == "device1[0:6]" and weak.joint == ("device:base", "edge:large", "cloud:large")


def test_it_conforms(saved: Path) -> None:
    report = check_policy(Orchestrated, {"saved": str(saved), "constraint": "80%"})
    assert report.ok, str(report)


def test_what_was_not_trained_is_refused(saved: Path) -> None:
    for options, words in (({"constraint": "70%"}, "not trained for this constraint"), ({"constraint": "99%"}, "infeasible"),
                           ({"constraint": "80%", "weak": ["edge"]}, "not trained for this condition")):
        with pytest.raises(InputError, match=words):
            Orchestrated(context("device1"), str(saved), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device4"):
        Orchestrated(context("device4"), str(saved), "80%")
    with pytest.raises(ValueError, match="weak"):
        Orchestrated(context("device1"), str(saved), "80%", weak=["device9"])
    with pytest.raises(ValueError, match="constraint"):
        Orchestrated(context("device1"), str(saved))
    few = Context("device1", {"device": "device1", "edge": "edge1", "cloud": "cloud1"}, ("device", "edge", "cloud"),
                  {"base": made_up_context().models["base"]}, "base", 0.5, 1)
    with pytest.raises(ValueError, match="large"):
        Orchestrated(few, str(saved), "80%")


def test_the_shipped_policies_are_optimal_for_the_shipped_study_and_meet_their_constraints() -> None:
    spec = plan_study(ROOT / "scenarios" / "orchestration_cifar10.yaml").spec
    assert isinstance(spec, OrchestrationStudy)
    trained, states = read(SHIPPED), spec.states(3)
    assert set(spec.constraints) == {e.constraint for e in trained.entries} and len(set(states.values())) == 16
    catalogue = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")
    for constraint in spec.constraints:
        problem = spec.problem(3, constraint)
        names = problem.actions.names(problem.ladder)
        assert Exploration(**trained.entry(constraint).cost).violations == 0  # type: ignore[arg-type]
        for condition in states.values():
            joint = trained.action(constraint, condition)
            index = problem.index([names.index(part) for part in joint])
            assert problem.mean_s(condition)[index] == pytest.approx(optimum(problem, condition).mean_s)
            mean = sum(catalogue[part.partition(":")[2]].exits[-1].accuracy for part in joint) / 3
            assert constraint in ("min", "max") or mean > float(constraint[:-1]) / 100
            assert constraint != "max" or set(part.partition(":")[2] for part in joint) == {"resnet20_branchy"}


def outcome(**more: object) -> StudyOutcome:
    platform = {"overhead": "20ms", "request": "60KB", "access_rate": "50mbit", "uplink_rate": "100mbit", "access_delay": "2ms",
                "uplink_delay": "10ms", "weak_delay": "20ms"}
    return run(OrchestrationStudy.model_validate({
        "name": "s", "study": "orchestration", "devices": [1, 3], "conditions": ["EXP-A", "EXP-D"], "platform": platform,
        "constraints": ["min", "89%", "95%"], "qlearning": {"devices": [2]}, "save": 2, "repeats": 2,
        "margin": {"devices": 2, "constraint": "85%", "noise": 0.1, "visits": 2}, **more}), lambda share, text: None)


def test_a_small_study_sees_its_shapes_and_reports_the_infeasible_constraint() -> None:
    found = outcome()
    assert all(f.holds for f in found.findings), [f for f in found.findings if not f.holds]
    assert any("95% is infeasible" in f.text for f in found.findings)
    decisions = found.tables["decisions"].set_index(["conditions", "devices", "constraint"])
    assert not decisions.loc[("EXP-A", 3, "95%"), "feasible"] and decisions.loc[("EXP-A", 3, "95%"), "decision"] == ""
    margin = found.tables["margin"]
    assert margin["conditions"].tolist() == ["EXP-A", "EXP-D", "all"]
    assert (margin["margin_low"] <= margin["margin"]).all() and (margin["margin"] <= margin["margin_high"]).all()
    assert b'"95%"' in found.files["policies.json"]


def test_dqn_in_a_study_goes_on_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    more = {"margin": None, "save": None, "qlearning": None, "devices": [2], "constraints": ["89%"], "conditions": ["EXP-A"],
            "dqn": {"devices": [2], "steps": 400, "chunks": 2, "width": 16}}
    first, again = outcome(**more), outcome(**more)
    assert first.tables["learned"].equals(again.tables["learned"])
    assert len(list((tmp_path / "testbed" / "policies").iterdir())) == 1


@pytest.mark.parametrize(("changes", "words"), [
    ({"conditions": ["EXP-Z"]}, "no set of conditions"), ({"constraints": ["plenty"]}, "no accuracy constraint"),
    ({"models": ["a"]}, "go together"), ({"save": 5}, "no Q-learning"), ({"devices": [6]}, "less than or equal to 5")])
def test_bad_keys_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        outcome(**changes)


def test_its_models_are_those_of_the_whole_joint_decision(saved: Path) -> None:
    policy = Orchestrated(context("device2"), str(saved), "80%")
    assert policy.models() == ("large", "small")
    assert all(isinstance(policy.context.models[name], ModelInfo) for name in policy.models())
    assert list(policy.scores()) == ["1 edge:large", "2 device:small", "3 cloud:large"]


def probes(folder: Path, weak: bool) -> list[str]:
    """Requests of trials in which devices keep to one action each, at the times of the contention model."""
    names, model = ACTIONS.names(MOBILENET_V1), Contention(Platform(), MOBILENET_V1, ACTIONS)
    condition, files = links([weak] * 2, weak), []
    for i, joint in enumerate([[k, k] for k in range(10)] + [[8, 9], [9, 0]]):
        times = model.times_s(condition, np.array([joint]))[0]
        rows = [(f"t{i}", f"device{j + 1}", f"device{j + 1}" if k < 8 else ("edge1", "cloud1")[k - 8], names[k].partition(":")[2],
                 "ok", "measure", 0, round(1e9 * times[j])) for j, k in enumerate(joint)]
        files.append(str(folder / f"{weak}{i}.csv"))
        pd.DataFrame(rows, columns=["policy", "device", "final_node", "model", "status", "phase", "scheduled_ns",
                                    "completed_ns"]).to_csv(files[-1], index=False)
    return files


def test_a_study_on_probes_of_the_contention_model_finds_what_the_model_says(tmp_path: Path) -> None:
    more = {"margin": None, "qlearning": None, "save": None}
    fitted = outcome(platform=None, probes=probes(tmp_path, False), weak_probes=probes(tmp_path, True), **more).tables["optimum"]
    exact = outcome(**more).tables["optimum"]
    assert fitted["optimum_ms"].to_numpy() == pytest.approx(exact["optimum_ms"].to_numpy(), nan_ok=True, rel=1e-6)


def test_probes_must_be_there_and_cover_the_conditions(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    text = "name: s\nstudy: orchestration\ndevices: [2]\nconstraints: [min]\n"
    file.write_text(text + f"conditions: [EXP-A]\nprobes: {probes(tmp_path, False)}\n")
    assert len(plan_study(file).content) == 12
    for keys, words in ((f"conditions: [EXP-D]\nprobes: {probes(tmp_path, False)}", "no probe has seen"),
                        ("conditions: [EXP-A]\nprobes: [missing.csv]", "missing.csv"), ("conditions: [EXP-A]", "two sources")):
        file.write_text(text + keys + "\n")
        with pytest.raises(InputError, match=words):
            plan_study(file)
