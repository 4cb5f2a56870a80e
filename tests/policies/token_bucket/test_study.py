"""The token_bucket study on the digits that ship: tables, order of the policies, keys that are refused, cached logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from testbed.errors import InputError
from testbed.experiment.studies import StudyResult, plan_study, run_study
from testbed.inference.catalogue import load_catalogue
from testbed.inference.logits import split_logits
from testbed.policies.registry import make_policy
from testbed.policies.rehearsal import made_up_context
from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.dqn import Dqn
from testbed.policies.token_bucket.engine import Loss, interval_weights, mean_interval
from testbed.policies.token_bucket.policy import TokenBucket
from testbed.policies.token_bucket.spec import Arrivals, TokenBucketStudy
from testbed.schema.scenario import PolicySpec

ROOT = Path(__file__).parents[3]
CATALOGUE = ROOT / "nodes" / "models" / "catalogue.yaml"
STUDY = f"""# Toy. Expect: order.
name: toy
study: token_bucket
catalogue: {CATALOGUE}
weak: {{model: digits_branchy, exit: early}}
strong: {{model: digits_branchy}}
gain: metric
images: {{spread: 0.2, reset: 0.1}}
rates: [0.1]
depths: [1, 3]
policies: [weak, naive, mdp, dqn, bound, strong]
train: {{sequences: 4, length: 200}}
test: {{sequences: 6, length: 400}}
dqn: {{history: 4, phases: [[3, 0.001]], batches: 2, batch: 16, only: [[0.1, 3]]}}
cameras: {{counts: [2], rate: 0.1, depth: 1, rates: [0.2], depths: [2]}}
spreads: {{values: [0.1, 1], reset: 0.1, rate: 0.1, depth: 1}}
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        (folder / "toy.yaml").write_text(STUDY)
        return run_study(folder / "toy.yaml", runs=folder / "runs")


def test_every_policy_has_a_loss_between_weak_and_strong(result: StudyResult) -> None:
    loss = result.tables["loss"]
    assert list(loss.columns) == ["r", "b", "weak", "naive", "mdp", "dqn", "bound", "strong"] and len(loss) == 2
    assert np.isnan(loss["dqn"][0]) and not np.isnan(loss["dqn"][1]), "only: limits the training"
    long = result.tables["losses_long"].set_index(["b", "policy"])
    assert (long["loss_low"] <= long["loss"]).all() and (long["loss"] <= long["loss_high"]).all()
    for b in (1, 3):
        assert long.loc[(b, "weak"), "offloaded_share"] == 0 and long.loc[(b, "strong"), "offloaded_share"] == 1
        for name in ("naive", "mdp"):
            assert long.loc[(b, name), "offloaded_share"] <= 0.1 + b / 400 + 1e-9, "tokens bound what is offloaded"


def test_the_trained_policies_are_kept_with_the_results(result: StudyResult) -> None:
    tables = json.loads((result.folder / "mdp.json").read_text())
    assert [(t["rate"], t["depth"]) for t in tables] == [(0.1, 1), (0.1, 3)]
    assert len(tables[1]["thresholds"]) == Bucket.of(0.1, 3).levels
    assert Dqn.load(result.folder / "dqn_r0.1_b3.safetensors").bucket == Bucket.of(0.1, 3)


def test_the_thresholds_are_written_for_a_running_network(result: StudyResult) -> None:
    entry, naive = yaml.safe_load((result.folder / "policy_r0.1_b3.yaml").read_text())
    context = made_up_context()
    options = {**entry["options"], "model": "base"}  # of the made-up system, with an early exit too
    policy = make_policy(PolicySpec(name=entry["name"], policy=entry["policy"], options=options), context)
    assert isinstance(policy, TokenBucket) and len(options["entropy"]) == Bucket.of(0.1, 3).levels
    finite = [h for h in options["entropy"] if h is not None]
    assert finite == sorted(finite, reverse=True), "the more tokens, the less it takes"
    assert naive["name"] == "naive" and len(set(naive["options"]["entropy"])) == 1, "one threshold"


def test_further_tables(result: StudyResult) -> None:
    assert {"periods", "spreads", "cameras", "training", "differences", "pair"} <= set(result.tables)
    assert list(result.tables["cameras"]["policy"]) == ["isolated", "hierarchical", "smart"]
    periods = result.tables["periods"]
    assert set(periods["period"]) == {"high metric", "low metric"} and set(periods["policy"]) == {"naive", "mdp", "dqn"}
    halves = periods[periods["policy"] == "mdp"]
    assert halves["arrivals"].sum() == 6 * 400
    expected = round(6 * 400 * float(result.tables["losses_long"].query("b == 3 and policy == 'mdp'")["offloaded_share"].iloc[0]))
    assert halves["offloaded"].sum() == expected
    assert any("vanishes" in f.text for f in result.findings)


def test_the_pair_is_what_the_catalogue_says(result: StudyResult) -> None:
    pair = result.tables["pair"].set_index("split")
    assert pair.loc["test", "images"] == 500
    assert 1 - pair.loc["test", "weak_loss"] == pytest.approx(0.982, abs=1e-6)
    assert 1 - pair.loc["test", "strong_loss"] == pytest.approx(0.99, abs=1e-6)


def test_the_same_seed_gives_the_same_numbers_and_networks_are_reused(result: StudyResult, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(result.folder.parents[2] / "cache"))
    (tmp_path / "toy.yaml").write_text(STUDY)
    texts: list[str] = []
    again = run_study(tmp_path / "toy.yaml", runs=tmp_path / "runs", on_progress=lambda share, text: texts.append(text))
    for name in ("loss", "differences", "cameras"):
        pd.testing.assert_frame_equal(again.tables[name], result.tables[name])
    assert not any(text.startswith("dqn for") for text in texts), "trained before"


@pytest.mark.parametrize(("key", "value", "says"), [
    ("weak.exit", "late", "early, final"), ("weak.model", "digits", "no such model"), ("strong.model", "resnet20_branchy", "other data"),
    ("images", {"spread": 0.1}, "both"), ("arrivals", {"intervals": [1, 3]}, "leave"), ("rates", [0.1, 1], "a rate of 1"),
    ("dqn.only", [[0.2, 1]], "among"), ("policies", ["best"], "policies"), ("depths", [0.5], "greater"),
])
def test_bad_keys(tmp_path: Path, key: str, value: object, says: str) -> None:
    (tmp_path / "toy.yaml").write_text(STUDY.replace(", only: [[0.1, 3]]", ""))
    with pytest.raises(InputError, match=says):
        if plan_study(tmp_path / "toy.yaml", {key: value}).spec:
            run_study(tmp_path / "toy.yaml", {key: value}, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_logits_are_computed_once(tmp_path: Path) -> None:
    catalogue = load_catalogue(CATALOGUE)
    calls: list[int] = []
    first = split_logits(catalogue, "digits_branchy", "calibration", tmp_path, lambda done, of: calls.append(done))
    assert list(first.exits) == ["early", "final"] and first.exits["early"].shape == (300, 10) and calls
    calls.clear()
    again = split_logits(catalogue, "digits_branchy", "calibration", tmp_path, lambda done, of: calls.append(done))
    assert not calls
    np.testing.assert_array_equal(first.exits["final"], again.exits["final"])
    next(tmp_path.iterdir()).write_bytes(b"torn")
    np.testing.assert_array_equal(split_logits(catalogue, "digits_branchy", "calibration", tmp_path).exits["final"], first.exits["final"])


def test_the_interval_covers_the_choice_of_images() -> None:
    """Many sequences of few images: the spread over sequences alone would be far too sure."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        images = rng.random(40) < 0.3  # losses of 40 images; true mean 0.3
        drawn = rng.integers(40, size=(50, 400))
        by_image = np.bincount(drawn.ravel(), images[drawn].ravel().astype(float), minlength=40) / drawn.size * 40
        _, low, high = Loss(images[drawn].mean(1), by_image).interval()
        held += low <= 0.3 <= high
    assert held >= 0.88 * 200


def test_arrival_shares_give_the_mean_interval() -> None:
    arrivals = Arrivals(intervals=[1, 3], leave=[0.001, 0.0005])
    assert np.dot(interval_weights(arrivals), [1, 3]) == pytest.approx(mean_interval(arrivals))
    assert interval_weights(Arrivals(intervals=[2])) == [1.0] and mean_interval(Arrivals(intervals=[2])) == 2


def test_the_shipped_studies_differ_as_their_names_say(testbed_data: Path) -> None:
    specs = {name: plan_study(ROOT / "scenarios" / f"{name}.yaml").spec for name in
             ("token_bucket", "token_bucket_correlated", "token_bucket_arrivals", "token_bucket_both")}
    for name, spec in specs.items():
        assert isinstance(spec, TokenBucketStudy)
        assert spec.images.correlated == (name in ("token_bucket_correlated", "token_bucket_both"))
        assert (len(spec.arrivals.intervals) == 2) == (name in ("token_bucket_arrivals", "token_bucket_both"))
