"""Trials: sweep x policies x repeats, a hash that follows content and nothing else, interleaved repeats, resume."""

import shutil
from pathlib import Path

import pytest
import yaml

from testbed.errors import EmulationError, InputError
from testbed.experiment.store import COMPLETE, TrialFolder
from testbed.experiment.studies import plan_study
from testbed.experiment.trials import plan_experiment
from testbed.schema.study import study_kind

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "scenarios" / "quickstart.yaml"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An editable copy of the shipped content."""
    for name in ("scenarios", "topologies", "traces", "nodes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path / "scenarios" / "quickstart.yaml"


def hashes(path: Path, **overrides: object) -> dict[str, str]:
    return {t.policy.name: t.config_hash for t in plan_experiment(path, overrides).trials}


def test_every_policy_sweep_point_and_repeat_is_one_trial_and_repeats_are_interleaved() -> None:
    experiment = plan_experiment(QUICKSTART, {"repeats": 3}, {"load.rate_per_s": [1, 2]})
    assert len(experiment.trials) == 5 * 2 * 3
    assert [t.repeat for t in experiment.trials] == [0] * 10 + [1] * 10 + [2] * 10
    assert len({(t.config_hash, t.repeat) for t in experiment.trials}) == 30


def test_a_change_to_one_policy_changes_only_its_own_trials() -> None:
    before, after = hashes(QUICKSTART), hashes(QUICKSTART, **{"policies.early-exit.threshold": 0.9})
    assert {name for name in before if before[name] != after[name]} == {"early-exit"}


def test_the_hash_follows_content_not_place_words_or_number_of_repeats(copy: Path) -> None:
    before = hashes(QUICKSTART)
    assert hashes(copy) == before, "the same files elsewhere are the same experiment"
    assert hashes(copy, description="other words", repeats=7) == before
    assert hashes(copy, seed=99) != before
    trace = copy.parents[1] / "traces" / "synthetic-lte-driving.up"
    lines = trace.read_text().splitlines()
    trace.write_text("\n".join(lines[:-1]) + "\n")
    changed = hashes(copy)
    assert all(changed[name] != before[name] for name in before), "a changed trace is another experiment"


def test_every_shipped_scenario_and_topology_is_valid(testbed_data: Path) -> None:
    for path in sorted((ROOT / "scenarios").glob("*.yaml")):
        assert plan_experiment(path).trials if study_kind(path) is None else plan_study(path).config_hash, path


@pytest.mark.parametrize(("key", "value", "says"), [
    ("model", "resnet", "digits_branchy"), ("dataset", "cifar9", "digits"),
    ("topology.tiers.device.compute", "pocket-calculator", "raspberry-pi-4"),
    ("topology.links.device-edge.up.trace", "../traces/none.up", "no such file"),
    ("policies.split.at", 17, "no such split point"), ("policies.split.at", "conv9", "stem"),
    ("policies.split.codec", "mp3", "fp16"), ("policies.early-exit.exit", "late", "early"),
])
def test_what_the_content_does_not_have_is_refused_in_one_line(key: str, value: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_experiment(QUICKSTART, {key: value})
    text = str(caught.value)
    assert says in text and "\n" not in text and ("quickstart.yaml" in text or "none.up" in text), text


def test_weights_that_are_not_those_of_the_catalogue_are_refused_when_loaded(copy: Path) -> None:
    from testbed.inference.catalogue import load_catalogue, load_model

    weights = next((copy.parents[1] / "nodes" / "models").glob("digits_branchy.*safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match="weights"):
        load_model(load_catalogue(weights.parent / "catalogue.yaml"), "digits_branchy")


def test_only_whole_trials_count_as_complete(tmp_path: Path) -> None:
    trial = plan_experiment(QUICKSTART).trials[0]
    folder = TrialFolder.of(tmp_path, trial)
    assert not folder.is_complete
    with folder.lock():
        folder.begin(trial)
        (folder.path / "requests.csv").write_text("a,b\n1,2\n")
        assert not folder.is_complete, "running is not complete"
        (folder.path / "manifest.json").write_text("{}")
        folder.end(trial, COMPLETE, verdict="VALID")
    assert folder.is_complete and folder.verdict == "VALID"
    (folder.path / "requests.csv").write_text("a,b\n")
    assert not folder.is_complete, "a table that was cut short is redone"


def test_two_runs_do_not_share_a_trial(tmp_path: Path) -> None:
    folder = TrialFolder.of(tmp_path, plan_experiment(QUICKSTART).trials[0])
    with folder.lock(), pytest.raises(EmulationError, match="another"), folder.lock():
        pass


def test_the_resolved_configuration_of_a_trial_is_complete_and_plain() -> None:
    config = plan_experiment(QUICKSTART).trials[3].config()
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config["policies"][0]["plan"] == "split" and config["topology"]["tiers"][0]["count"] == 2


def test_a_list_of_traces_is_one_trace_as_long_as_all() -> None:
    from testbed.experiment.content import direction_trace

    files = [str(ROOT / "traces" / f"synthetic-lte-{name}.up") for name in ("driving", "walking")]
    both, one, two = (direction_trace(plan_experiment(QUICKSTART, {"topology.links.device-edge.up.trace": value})
                                      .trials[0].scenario.topology.links[0].direction("up"))
                      for value in (files, files[0], files[1]))
    assert both.duration_ns == one.duration_ns + two.duration_ns
    assert both.total_bits == one.total_bits + two.total_bits
    assert both.name == "synthetic-lte-driving.up+synthetic-lte-walking.up"


def test_another_policys_file_is_not_part_of_a_trials_hash(copy: Path) -> None:
    mine = copy.parent / "mine.py"
    mine.write_text("from testbed.policies.static import Fixed\nfrom testbed.policies import Policy\n\n"
                    "class Mine(Policy):\n    def decide(self, observation):\n        raise NotImplementedError\n")
    alone = hashes(copy, policies=["edge-only"])
    both = hashes(copy, policies=["edge-only", {"name": "mine", "policy": f"{mine}:Mine"}])
    assert both["edge-only"] == alone["edge-only"]
    mine.write_text(mine.read_text() + "# another policy\n")
    after = hashes(copy, policies=["edge-only", {"name": "mine", "policy": f"{mine}:Mine"}])
    assert after["edge-only"] == alone["edge-only"] and after["mine"] != both["mine"]
