"""Codecs that a scenario names: checked against the tensor that would travel, and part of a trial's identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from testbed.errors import InputError
from testbed.experiment.bundle import Recipe, pack
from testbed.experiment.content import codecs_of_policy
from testbed.experiment.trials import plan_experiment
from testbed.inference.codecs import Registry, standard_names
from testbed.schema.scenario import PlanSpec, PolicySpec

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "scenarios" / "quickstart.yaml"
LEARNED = "bottleneck:digits_branchy@1"


def split(at: int, codec: str, **more: object) -> dict[str, object]:
    """Quickstart with one policy: a split at a cut, in a codec."""
    return {"policies": [{"name": "split", "plan": "split", "at": at, "head": "device", "tail": "edge", "codec": codec, **more}]}


@pytest.mark.parametrize(("at", "codec"), [(3, "int8-channel+lz4"), (1, LEARNED), (1, f"{LEARNED}+zstd"), (0, "raw")])
def test_codecs_that_fit(at: int, codec: str) -> None:
    assert plan_experiment(QUICKSTART, split(at, codec)).trials


def test_an_image_codec_is_for_the_frame() -> None:
    assert plan_experiment(QUICKSTART, split(0, "raw", input_codec="jpeg-progressive-40")).trials
    assert plan_experiment(QUICKSTART, split(2, "raw", input_codec="jpeg")).trials  # no frame travels: it is not used


@pytest.mark.parametrize(("at", "codec", "says"), [
    (2, "jpeg-50", "cannot carry the tensor at cut 2"), (2, "uint8+zstd", "cannot carry the tensor at cut 2"),
    (2, LEARNED, "it was trained for cut 1 of digits_branchy"), (1, "jpeg-96", "no such codec"),
    (1, "bottleneck:digits_branchy@2", f"the catalogue has {LEARNED}"), (1, "bottleneck:", "no such learned codec")])
def test_codecs_that_do_not_fit_are_refused_before_anything_starts(at: int, codec: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_experiment(QUICKSTART, split(at, codec))
    assert says in str(caught.value) and "\n" not in str(caught.value) and caught.value.file


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("scenarios", "topologies", "traces", "nodes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_weights_of_a_learned_codec_are_part_of_its_trials_only(copy: Path, tmp_path: Path) -> None:
    scenario, catalogue = copy / "scenarios" / "quickstart.yaml", copy / "nodes" / "models" / "catalogue.yaml"
    policies = {"policies": [*split(1, LEARNED)["policies"], "edge-only"]}  # type: ignore[misc]
    before = plan_experiment(scenario, policies).trials
    assert [f"codec:{LEARNED}" in t.content_sha256 for t in before] == [True, False]
    document = yaml.safe_load(catalogue.read_text())
    entry = document["bottlenecks"]["digits_branchy@1"]
    pack([Recipe(t.config(), t.content_sha256, t.source, t.repeat) for t in before[:1]], tmp_path / "packed")
    assert (tmp_path / "packed" / "nodes" / "models" / entry["weights"]).is_file()  # an export has them
    weights = catalogue.parent / entry["weights"]
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(InputError, match="not those that the catalogue names"):
        plan_experiment(scenario, policies)
    import hashlib

    entry["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    catalogue.write_text(yaml.safe_dump(document))
    after = plan_experiment(scenario, policies).trials
    assert [a.config_hash == b.config_hash for a, b in zip(before, after, strict=True)] == [False, True]


def test_nodes_use_their_codecs_once_beforehand() -> None:
    codecs = Registry(ROOT / "nodes" / "models" / "catalogue.yaml")
    plan = PlanSpec.model_validate(split(1, LEARNED, input_codec="jpeg")["policies"][0])  # type: ignore[index]
    assert codecs_of_policy(plan, codecs, ["digits_branchy"]) == [LEARNED, "jpeg"]
    policy = PolicySpec.model_validate({"name": "mine", "policy": "mine.py:Mine"})
    assert codecs_of_policy(policy, codecs, ["digits_branchy"]) == [*standard_names(), LEARNED]
    assert codecs_of_policy(policy, codecs, []) == list(standard_names())
