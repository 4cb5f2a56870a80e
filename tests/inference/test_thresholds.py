"""Thresholds from logits: the accounting identity, monotony, both ends, and agreement with the rule that nodes apply."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from testbed.cli import main
from testbed.inference.catalogue import ExitInfo, ModelInfo, StageInfo
from testbed.inference.exits import ExitRule
from testbed.inference.thresholds import THRESHOLDS, threshold_table

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 4, 500)
LOGITS = {name: (RNG.normal(0, 1, (500, 4)) + strength * np.eye(4)[LABELS]).astype(np.float32)
          for name, strength in (("edge", 1.0), ("fog", 2.0), ("final", 3.0))}


def _info() -> ModelInfo:
    stages = tuple(StageInfo(name=f"s{i}", shape=(4,), size_bytes=16, macs=100 * 10**i, reference_time_s=0.001) for i in range(3))
    exits = tuple(ExitInfo(name=n, after=i, accuracy=0.5, parameters=0, macs=m, reference_time_s=0.0)
                  for i, (n, m) in enumerate((("edge", 1), ("fog", 2), ("final", 0))))
    return ModelInfo(name="m", builder="x.y:z", dataset="digits", input_shape=(4,), classes=4, weights="w", sha256="0" * 64, seed=1,
                     recipe={}, parameters=0, reference={}, stages=stages, exits=exits)


@pytest.mark.parametrize("kind", ["max_probability", "entropy"])
def test_global_accuracy_is_the_sum_of_its_parts(kind: str) -> None:
    for row in threshold_table(_info(), LOGITS, LABELS, THRESHOLDS, kind):  # type: ignore[arg-type]
        early = 0.0 if row.accuracy_early is None else row.accuracy_early
        late = 0.0 if row.accuracy_escalated is None else row.accuracy_escalated
        assert row.accuracy == pytest.approx(row.early_share * early + (1 - row.early_share) * late, abs=1e-12)
        assert sum(row.exit_shares.values()) == pytest.approx(1) and row.early_share == pytest.approx(1 - row.exit_shares["final"])


def test_fewer_leave_as_the_threshold_rises_all_at_zero_none_above_one() -> None:
    rows = threshold_table(_info(), LOGITS, LABELS)
    shares = [row.early_share for row in rows]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 5
    first, last = rows[0], rows[-1]
    assert first.exit_shares["edge"] == 1 and first.accuracy_escalated is None and first.mean_macs == 101
    assert last.early_share == 0 and last.accuracy_early is None and last.mean_macs == pytest.approx(100 + 1 + 1000 + 2 + 10_000)
    assert last.accuracy == (LOGITS["final"].argmax(1) == LABELS).mean()


@pytest.mark.parametrize(("kind", "threshold"), [("max_probability", 0.8), ("entropy", 0.3)])
def test_it_decides_as_nodes_do(kind: str, threshold: float) -> None:
    """Sample by sample with the rule that a worker applies."""
    rule = ExitRule(kind, threshold)  # type: ignore[arg-type]
    left = {"edge": 0, "fog": 0, "final": 0}
    right = 0
    for i, label in enumerate(LABELS):
        name = next((n for n in ("edge", "fog") if rule.fires(LOGITS[n][i:i + 1])), "final")
        left[name] += 1
        right += int(LOGITS[name][i].argmax() == label)
    row, = threshold_table(_info(), LOGITS, LABELS, [threshold], kind)  # type: ignore[arg-type]
    assert {n: round(s * 500) for n, s in row.exit_shares.items()} == left and round(row.accuracy * 500) == right


def test_the_command_agrees_with_the_catalogue(tmp_path: Path) -> None:
    file = tmp_path / "exits.csv"
    assert main(["models", "exits", "digits_branchy", "--thresholds", "0,0.8,1.01", "--csv", str(file)]) == 0
    zero, middle, above = csv.DictReader(file.open())
    assert float(zero["accuracy"]) == 0.982 and float(above["accuracy"]) == 0.99, "the catalogue's accuracies of both exits"
    assert 0 < float(middle["early_share"]) < 1 and above["accuracy_early"] == ""


@pytest.mark.parametrize(("words", "message"), [(["digits_branchy", "--thresholds", "a"], "--thresholds"),
                                                (["digits_branchy", "--rule", "x"], "--rule"),
                                                (["digits_branchy", "--split", "x"], "split"), (["absent"], "no such model")])
def test_wrong_input_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "exits", *words]) == 2 and message in capsys.readouterr().err
