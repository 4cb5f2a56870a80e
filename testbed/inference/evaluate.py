"""Accuracy and calibration of the exits of a model, from its logits over a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.inference.data import Dataset
from testbed.inference.exits import softmax
from testbed.inference.staged import StagedModel

Logits = NDArray[np.float32]
CURVE_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)  # of the catalogue's exit curves
_BINS = 15


def exit_logits(model: StagedModel, data: Dataset, batch: int = 250,
                progress: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Logits]:
    """Logits (N, classes) of every exit, by name, for all samples of a data set; `progress` gets samples done and in all."""
    model.eval()
    found: dict[str, list[Logits]] = {}
    with torch.inference_mode():
        for begin in range(0, len(data), batch):
            x = torch.from_numpy(np.ascontiguousarray(data.x[begin:begin + batch]))
            for name, logits in model.all_exits(x).items():
                found.setdefault(name, []).append(logits.numpy())
            progress(min(begin + batch, len(data)), len(data))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def accuracy(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Share of samples whose largest logit is that of the label."""
    return float((logits.argmax(1) == labels).mean())


def expected_calibration_error(logits: Logits, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean |accuracy - confidence| over 15 bins of equal width of the largest softmax probability, weighted by their samples.

    Source: Guo, Pleiss, Sun and Weinberger, 2017, "On Calibration of Modern Neural Networks", section 2, equation 3.
    """
    probabilities = softmax(logits / np.float32(temperature))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
            for b in range(_BINS) if (bins == b).any()]
    return float(sum(gaps))


def negative_log_likelihood(logits: Logits, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats of softmax(logits / temperature)."""
    scaled = logits.astype(np.float64) / temperature
    peak = scaled.max(1, keepdims=True)
    log_sum = np.log(np.exp(scaled - peak).sum(1)) + peak[:, 0]
    return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: Logits, labels: NDArray[np.int64]) -> float:
    """The temperature in 0.05..20 with the least negative log-likelihood (Guo et al., 2017, section 4.2)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t))),
                            bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class ExitScore:
    """One exit: accuracy and calibration error on the test split, before and after dividing by the temperature.

    `accuracy_2000` is the accuracy on the first 2,000 test samples (on all of them where there are fewer): quick to check.
    """

    accuracy: float
    accuracy_2000: float
    temperature: float
    ece: float
    ece_calibrated: float


def score_exits(calibration: Mapping[str, Logits], calibration_labels: NDArray[np.int64], test: Mapping[str, Logits],
                test_labels: NDArray[np.int64]) -> dict[str, ExitScore]:
    """Accuracy and calibration of each exit; the temperature is fitted on the calibration split only."""
    scores = {}
    for name, logits in test.items():
        temperature = fit_temperature(calibration[name], calibration_labels)
        scores[name] = ExitScore(
            accuracy(logits, test_labels), accuracy(logits[:2000], test_labels[:2000]), temperature,
            expected_calibration_error(logits, test_labels),
            expected_calibration_error(logits, test_labels, temperature))
    return scores


def leave_at(logits: Mapping[str, Logits], labels: NDArray[np.int64], threshold: float) -> dict[str, Any]:
    """Shares and accuracy when each sample leaves at the first exit with max probability >= threshold, or at the last.

    Returns `share` by exit, `exit_accuracy` of those that leave there (None where none do), and `accuracy` over all.
    """
    answer, left = np.full(len(labels), -1), np.ones(len(labels), bool)
    shares: dict[str, float] = {}
    accuracies: dict[str, float | None] = {}
    last = list(logits)[-1]
    for name, values in logits.items():
        leaves = left & ((softmax(values).max(1) >= threshold) | (name == last))
        answer[leaves], shares[name] = values.argmax(1)[leaves], float(leaves.mean())
        accuracies[name] = float((answer[leaves] == labels[leaves]).mean()) if leaves.any() else None
        left &= ~leaves
    return {"threshold": threshold, "share": shares, "exit_accuracy": accuracies, "accuracy": float((answer == labels).mean())}


def exit_curve(logits: Mapping[str, Logits], labels: NDArray[np.int64],
               thresholds: Sequence[float] = CURVE_THRESHOLDS) -> dict[str, Any]:
    """How samples leave at each threshold, as the catalogue keeps it: columns with one value per threshold.

    Parameters: logits (N, classes) of every exit by name, in the order of the exits; labels (N,).
    """
    rows = [leave_at(logits, labels, threshold) for threshold in thresholds]
    return {"samples": len(labels), "threshold": [float(t) for t in thresholds],
            "accuracy": [_rounded(row["accuracy"]) for row in rows],
            "share": {name: [_rounded(row["share"][name]) for row in rows] for name in logits},
            "exit_accuracy": {name: [_rounded(row["exit_accuracy"][name]) for row in rows] for name in logits}}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
