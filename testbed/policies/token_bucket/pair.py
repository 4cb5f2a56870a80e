"""A weak and a strong model over the same images: what each costs, what offloading saves, and the metric that predicts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.inference.catalogue import Catalogue, load_catalogue
from testbed.inference.data import Split
from testbed.inference.logits import SplitLogits, split_logits
from testbed.policies.token_bucket.metric import Metric, cost
from testbed.policies.token_bucket.spec import Answers, TokenBucketStudy

FloatArray = npt.NDArray[np.float64]
# policies are trained on the first, which the models have not been trained on, and judged on the second
SPLITS: tuple[Split, ...] = ("calibration", "test")


@dataclass(frozen=True)
class Images:
    """Images of one split, all (N,): metric, cost of the weak and of the strong answer."""

    metric: FloatArray
    weak: FloatArray
    strong: FloatArray

    @property
    def reward(self) -> FloatArray:
        """Loss saved by offloading, R = cost of the weak answer - cost of the strong one."""
        return self.weak - self.strong

    def __len__(self) -> int:
        return len(self.metric)


@dataclass(frozen=True)
class Pair:
    """The metric is fitted on `train`, policies are trained on `train`, and judged on `test`: no image is in both."""

    metric: Metric
    train: Images
    test: Images


def load_pair(spec: TokenBucketStudy, progress: Callable[[float, str], None] = lambda share, text: None) -> Pair:
    """Logits of both models over both splits (cached), the metric, the costs. Raises InputError, MissingToolError."""
    catalogue = load_catalogue(Path(spec.catalogue))
    parts = []
    for i, (answers, split) in enumerate((a, s) for s in SPLITS for a in (spec.weak, spec.strong)):
        begin = i / 4
        parts.append(_logits(catalogue, answers, split,
                             lambda done, of, begin=begin, name=answers.model, split=split:  # type: ignore[misc]
                             progress(begin + done / of / 4, f"{name} on the {split} split")))
    (weak, labels), (strong, _), (weak_test, labels_test), (strong_test, _) = parts
    return pair_of(weak, strong, labels, weak_test, strong_test, labels_test, spec)


def pair_of(weak: npt.NDArray[np.float32], strong: npt.NDArray[np.float32], labels: npt.NDArray[np.int64],
            weak_test: npt.NDArray[np.float32], strong_test: npt.NDArray[np.float32], labels_test: npt.NDArray[np.int64],
            spec: TokenBucketStudy) -> Pair:
    """From logits (N, classes) and labels (N,) of the training and of the test images."""
    costs = [cost(logits, y, spec.cost) for logits, y in ((weak, labels), (strong, labels), (weak_test, labels_test),
                                                           (strong_test, labels_test))]
    metric = Metric.fit(weak, labels, costs[0] - costs[1])
    return Pair(metric, Images(metric(weak), costs[0], costs[1]), Images(metric(weak_test), costs[2], costs[3]))


def _logits(catalogue: Catalogue, answers: Answers, split: Split,
            progress: Callable[[int, int], None]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    found: SplitLogits = split_logits(catalogue, answers.model, split, progress=progress)
    return found.exits[answers.exit or list(found.exits)[-1]], found.labels
