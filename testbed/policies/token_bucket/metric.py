"""The offloading metric: expected loss saved, given the entropy of the weak model's calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from testbed.inference.evaluate import fit_temperature
from testbed.inference.exits import softmax

Cost = Literal["top1", "top5", "rank"]
TABLE_POINTS = 1000
BANDWIDTHS = tuple(2.0**-k for k in range(8, 3, -1))  # of the range of the entropy
RANK_CAP = 10

FloatArray = npt.NDArray[np.float64]
Threshold = float | tuple[float, float] | None  # entropies that are offloaded: above h, above h and up to an upper end, none


def cost(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], kind: Cost = "top1") -> FloatArray:
    """Cost (N,) of answering with these logits (N, classes): top-1 error, top-5 error, or rank of the label (at most 10).

    The rank of a label is 1 plus the number of classes with a larger logit.
    """
    own = logits[np.arange(len(labels)), labels]
    rank = 1 + (logits > own[:, None]).sum(1)
    if kind == "rank":
        return np.asarray(np.minimum(rank, RANK_CAP), float)
    return np.asarray(rank > (1 if kind == "top1" else 5), float)


def entropy(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> FloatArray:
    """Entropy (N,) in nats of softmax(logits / temperature), logits (N, classes)."""
    p = softmax(np.asarray(logits, np.float32) / np.float32(temperature))
    return np.asarray(-(p * np.log(np.maximum(p, 1e-300))).sum(1), float)


@dataclass(frozen=True)
class Metric:
    """m(h) = E[R | h]: the look-up table of a kernel regression of the loss saved R on the entropy h.

    `temperature` divides the weak logits. `entropies`, `values` (TABLE_POINTS,): the table, linear in between, constant
    outside. Source: the reference code of both papers (repositories edgeml.mdp and edgeml-dqn).
    """

    temperature: float
    bandwidth: float
    entropies: FloatArray
    values: FloatArray

    @classmethod
    def fit(cls, weak_logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], reward: npt.ArrayLike) -> Metric:
        """From training images: logits (N, classes) of the weak model, labels (N,), loss saved by offloading (N,).

        The temperature minimises the cross-entropy. The bandwidth, of range(h) x 2^-8 ... 2^-4, is the one that predicts the
        odd images best from the even ones; then all images are used.
        """
        temperature = fit_temperature(weak_logits, labels)
        h, r = entropy(weak_logits, temperature), np.asarray(reward, float)
        span = float(np.ptp(h)) or 1.0
        points = np.linspace(float(h.min()), float(h.max()), TABLE_POINTS)
        errors = [float(np.square(np.interp(h[1::2], points, regress(h[::2], r[::2], points, span * b)) - r[1::2]).mean())
                  for b in BANDWIDTHS]
        bandwidth = span * BANDWIDTHS[int(np.argmin(errors))]
        return cls(temperature, bandwidth, points, regress(h, r, points, bandwidth))

    def __call__(self, weak_logits: npt.NDArray[np.floating]) -> FloatArray:
        """The metric (N,) of images by the logits (N, classes) of the weak model."""
        return np.interp(entropy(weak_logits, self.temperature), self.entropies, self.values)

    def entropy_at(self, thresholds: npt.NDArray[np.floating]) -> list[Threshold]:
        """Entropies where the metric is at or above each threshold: above h, or above h and up to an upper end; None: nowhere.

        Ends lie between points of the table, where the metric crosses the threshold; 0 when it begins above it. A metric that
        falls below the threshold in between and rises again counts as above it there.
        """
        found: list[Threshold] = []
        for threshold in np.asarray(thresholds, float):
            above = np.flatnonzero(self.values >= threshold)
            if not len(above):
                found.append(None)
                continue
            first, last = int(above[0]), int(above[-1])
            low = 0.0 if first == 0 else self._crossing(first - 1, threshold)
            if last == len(self.values) - 1:
                found.append(low)
            else:
                found.append((low, self._crossing(last, threshold)))
        return found

    def _crossing(self, before: int, threshold: float) -> float:
        (h, h_next), (m, m_next) = self.entropies[before:before + 2], self.values[before:before + 2]
        return float(h + (h_next - h) * (threshold - m) / (m_next - m))


def regress(h: FloatArray, reward: FloatArray, at: FloatArray, bandwidth: float) -> FloatArray:
    """Nadaraya-Watson regression with the kernel exp(-(distance/bandwidth)^2 / 2); h, reward (N,), at (K,), result (K,).

    Where no image is within reach of the kernel, the nearest image answers.
    """
    result = np.empty(len(at))
    for begin in range(0, len(at), 50):  # (50, N) at a time
        square = np.square((at[begin:begin + 50, None] - h[None, :]) / bandwidth) / 2
        weight = np.exp(square.min(1, keepdims=True) - square)  # the nearest image has weight 1
        result[begin:begin + 50] = weight @ reward / weight.sum(1)
    return result
