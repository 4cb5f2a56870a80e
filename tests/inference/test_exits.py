"""Exit rules against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.inference.exits import ExitRule, max_probability, normalised_entropy, softmax


def logits_of(*p: float) -> np.ndarray:
    return np.log(np.array([p], np.float32))


def test_confidence_measures() -> None:
    logits = logits_of(0.7, 0.2, 0.1)
    assert np.allclose(softmax(logits), [[0.7, 0.2, 0.1]], atol=1e-6)
    assert max_probability(logits) == pytest.approx(0.7, abs=1e-6)
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    assert normalised_entropy(logits) == pytest.approx(entropy, abs=1e-6)
    assert normalised_entropy(np.zeros((1, 10), np.float32)) == pytest.approx(1)
    assert normalised_entropy(np.array([[1e4, 0, 0]], np.float32)) == pytest.approx(0)


@pytest.mark.parametrize(("kind", "threshold", "fires"), [
    ("max_probability", 0.69, True), ("max_probability", 0.71, False), ("max_probability", 0.0, True),
    ("entropy", 0.74, True), ("entropy", 0.70, False), ("none", 0.0, False)])
def test_rules(kind: str, threshold: float, fires: bool) -> None:
    rule = ExitRule.parse({"kind": kind, "threshold": threshold})
    assert rule.fires(logits_of(0.7, 0.2, 0.1)) is fires
    assert ExitRule.parse(rule.to_json()).kind == kind


@pytest.mark.parametrize("value", ["max", {"kind": "luck"}, {"threshold": -1}, {"threshold": "0.8"}, {"treshold": 1},
                                   {"kind": ["none"]}, {"threshold": True}, {"threshold": float("nan")}])
def test_wrong_rules_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="exit rule"):
        ExitRule.parse(value)


def test_a_calibrated_rule_looks_at_logits_divided_by_the_temperature() -> None:
    logits = logits_of(0.7, 0.2, 0.1)
    sharp = logits * np.float32(3)  # an over-confident exit whose temperature is 3
    plain, calibrated = ExitRule("max_probability", 0.8), ExitRule("max_probability", 0.8, calibrated=True)
    assert plain.fires(sharp, 3.0) and not calibrated.fires(sharp, 3.0)
    assert ExitRule("max_probability", 0.7 - 1e-5, calibrated=True).fires(sharp, 3.0)  # 0.7 again, and not more
    assert not ExitRule("max_probability", 0.7 + 1e-5, calibrated=True).fires(sharp, 3.0)
    assert ExitRule.parse(calibrated.to_json()) == calibrated and ExitRule.parse(plain.to_json()) == plain
    with pytest.raises(ValueError, match="calibrated"):
        ExitRule.parse({"kind": "entropy", "threshold": 0.1, "calibrated": "yes"})


def test_an_upper_end_keeps_what_is_too_hard() -> None:
    rule = ExitRule.parse({"kind": "entropy", "threshold": 0.3, "upper": 0.8, "calibrated": True})
    assert ExitRule.parse(rule.to_json()) == rule
    assert ExitRule.parse({"kind": "entropy", "threshold": 0.3, "upper": None}) == ExitRule("entropy", 0.3)
    certain, unsure, hopeless = logits_of(0.98, 0.01, 0.01), logits_of(0.7, 0.2, 0.1), logits_of(0.34, 0.33, 0.33)
    assert [rule.fires(logits) for logits in (certain, unsure, hopeless)] == [True, False, True]
    assert not rule.fires(certain, temperature=3.0), "entropy 0.75 once calibrated"
    for wrong in ({"kind": "entropy", "threshold": 0.3, "upper": 0.2}, {"kind": "max_probability", "threshold": 0.3, "upper": 0.8},
                  {"kind": "entropy", "threshold": 0.3, "upper": "high"}):
        with pytest.raises(ValueError, match="upper"):
            ExitRule.parse(wrong)
