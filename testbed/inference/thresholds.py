"""What a threshold of the early exits gives, computed from logits: shares, accuracies, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.inference.catalogue import ModelInfo
from testbed.inference.exits import RuleKind, softmax

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)


@dataclass(frozen=True)
class ThresholdRow:
    """One threshold. Accuracies are shares of the samples named; None where there are none.

    `early_share` leave at any early exit, `exit_shares` at each; `accuracy_early` is that of their early answers,
    `accuracy_early_final` that of the final exit on the same samples, `accuracy_escalated` that of the final exit on the
    others, `accuracy` that of all answers together. `mean_macs` counts the stages and exit heads that ran.
    """

    threshold: float
    early_share: float
    exit_shares: Mapping[str, float]
    accuracy_early: float | None
    accuracy_early_final: float | None
    accuracy_escalated: float | None
    accuracy: float
    mean_macs: float


def threshold_table(info: ModelInfo, logits: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int64],
                    thresholds: Sequence[float] = THRESHOLDS, kind: RuleKind = "max_probability") -> list[ThresholdRow]:
    """One row per threshold, for logits (N, classes) of every exit of the model: a sample leaves at the first exit that
    answers, as in `testbed.inference.exits.ExitRule`."""
    score = {}
    for name, values in logits.items():
        p = softmax(values)
        score[name] = p.max(1) if kind == "max_probability" else \
            -(p * np.log(np.maximum(p, 1e-300))).sum(1) / np.log(p.shape[1])
    final = info.exits[-1].name
    final_right = logits[final].argmax(1) == labels
    cost, spent = {}, 0
    for index, stage in enumerate(info.stages):
        spent += stage.macs
        if index in info.exit_after:
            spent += info.exit_after[index].macs
            cost[info.exit_after[index].name] = spent
    rows = []
    for threshold in thresholds:
        left, answer = np.ones(len(labels), bool), np.full(len(labels), -1, np.int64)
        shares, macs = {}, 0.0
        for item in info.exits:
            fires = score[item.name] >= threshold if kind == "max_probability" else score[item.name] <= threshold
            leaves = left & (fires | (item.name == final))
            answer[leaves] = logits[item.name].argmax(1)[leaves]
            shares[item.name], macs = float(leaves.mean()), macs + cost[item.name] * float(leaves.mean())
            left &= ~leaves
            if item.name == final:
                escalated = leaves
        early, right = ~escalated, answer == labels
        rows.append(ThresholdRow(threshold, float(early.mean()), shares, _share(right, early), _share(final_right, early),
                                 _share(right, escalated), float(right.mean()), macs))
    return rows


def _share(right: NDArray[np.bool_], of: NDArray[np.bool_]) -> float | None:
    return float(right[of].mean()) if of.any() else None
