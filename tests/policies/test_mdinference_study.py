"""MDInference's simulation: late shares against the normal tail, vectorised choices against the pure rule, monotone in the deadline."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.experiment.studies import plan_study
from testbed.policies.mdinference_study import RULES, MDInferenceStudy, Normal, choices, findings_of, run, simulate
from testbed.policies.selection import Variant, fast_enough, most_accurate
from tests.running import ROOT

MODELS: list[dict[str, Any]] = [
    {"name": "a", "accuracy": 0.4, "time": {"mean": "5ms", "deviation": "1ms"}},
    {"name": "b", "accuracy": 0.7, "time": {"mean": "20ms", "deviation": "4ms"}},
    {"name": "c", "accuracy": 0.8, "time": {"mean": "60ms", "deviation": "6ms"}},
    {"name": "d", "accuracy": 0.8, "time": {"mean": "90ms"}}]  # as accurate as c, slower


def study(**more: Any) -> MDInferenceStudy:
    return MDInferenceStudy.model_validate({
        "name": "s", "study": "mdinference", "networks": {"near": {"mean": "50ms", "deviation": "25ms"}}, "models": MODELS,
        "device_accuracy": 0.3, "sla": {"first": "0ms", "last": "400ms", "step": "20ms"}, "requests": 5000, **more})


def test_the_late_share_of_a_single_model_is_the_tail_of_the_truncated_normal() -> None:
    """2 n + t > SLA, n normal given n > 0, t constant: closed form; binomial tolerance of four standard errors."""
    spec = study(models=[{"name": "only", "accuracy": 0.7, "time": {"mean": "20ms"}}], requests=40_000)
    normal = NormalDist(0.05, 0.025)
    table = simulate(spec, spec.networks["near"], np.random.default_rng(1))
    for policy in (*RULES, "only"):
        for row in table[table["policy"] == policy].to_dict("records"):
            edge_s = max(0.0, (row["sla_ms"] / 1e3 - 0.02) / 2)
            expected = (1 - normal.cdf(edge_s)) / (1 - normal.cdf(0.0))
            error = max(1e-9, (expected * (1 - expected) / 40_000) ** 0.5)
            assert row["late_share"] == pytest.approx(expected, abs=4 * error + 1e-6)
            assert row["accuracy"] == pytest.approx(0.3 * row["late_share"] + 0.7 * (1 - row["late_share"]))


def test_draws_are_above_zero_and_have_the_moments_of_the_truncated_normal() -> None:
    mean, sd = 0.03, 0.03
    values = Normal.model_validate({"mean": f"{mean}s", "deviation": f"{sd}s"}).draw(200_000, np.random.default_rng(2))
    standard = NormalDist()
    ratio = standard.pdf(-mean / sd) / (1 - standard.cdf(-mean / sd))  # inverse Mills ratio
    assert values.min() > 0
    assert values.mean() == pytest.approx(mean + sd * ratio, rel=0.005)


def test_the_vectorised_choice_is_the_pure_rule_for_every_request() -> None:
    spec = study(gamma=1.5)
    upload_s = spec.networks["near"].draw(300, np.random.default_rng(3))
    luck = np.random.default_rng(4).random(300)
    variants = [Variant("cloud", m.name, False, m.accuracy, m.time.mean, m.time.deviation) for m in spec.models]
    for sla_s in (0.01, 0.1, 0.15, 0.2, 0.3):
        found = choices(spec, upload_s, sla_s, luck)
        for i, n in enumerate(upload_s):
            seen = [replace(v, network_s=2 * float(n)) for v in variants]
            eligible = fast_enough(seen, sla_s, 1.5)
            assert seen[found["mdinference"][i]] == most_accurate(eligible)
            assert seen[found["random"][i]] in eligible and seen[found["weighted"][i]] in eligible


def test_random_choices_have_their_probabilities() -> None:
    spec = study(models=[{**m, "time": {"mean": "10ms"}} for m in MODELS[:3]], requests=100)
    luck = (np.arange(30_000) + 0.5) / 30_000  # evenly spread, so that shares are exact
    found = choices(spec, np.full(30_000, 0.001), 1.0, luck)
    shares = {rule: np.bincount(found[rule], minlength=3) / 30_000 for rule in ("random", "weighted")}
    assert shares["random"] == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert shares["weighted"] == pytest.approx([0.4 / 1.9, 0.7 / 1.9, 0.8 / 1.9], abs=1e-4)


def test_chosen_accuracy_never_falls_with_the_deadline_for_any_request() -> None:
    spec = study()
    upload_s = spec.networks["near"].draw(2000, np.random.default_rng(5))
    accuracy = np.array([m.accuracy for m in spec.models])
    used = np.stack([accuracy[choices(spec, upload_s, s, upload_s)["mdinference"]] for s in np.arange(0.0, 0.6, 0.02)])
    assert (np.diff(used, axis=0) >= 0).all() and used[0].max() == 0.4 and used[-1].min() == 0.8


def test_a_seed_fixes_every_number_and_findings_can_fail() -> None:
    one, same, other = (run(study(seed=s), lambda share, text: None).tables["sla"] for s in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)
    assert all(f.holds for f in findings_of(one, study()))
    spoilt = one.assign(cloud_accuracy=one["cloud_accuracy"].where(one["sla_ms"] < 300, 0.1), late_share=1.0,
                        accuracy=one["accuracy"].where(one["policy"] != "mdinference", 0.3))
    spoilt.loc[spoilt["policy"] == "naive", "late_share"] = 0.5
    assert [f.holds for f in findings_of(spoilt, study())] == [False] * 3


@pytest.mark.parametrize(("change", "says"), [
    ({"sla.first": "1s"}, "before first"), ({"models": [MODELS[0], MODELS[0]]}, "names of their own"),
    ({"networks": {"x": {"mean": "0ms"}}}, "mean above 0"), ({"networks": {}}, "networks"), ({"requests": 5}, "requests"),
])
def test_bad_keys_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_study(ROOT / "scenarios" / "mdinference.yaml", change)
