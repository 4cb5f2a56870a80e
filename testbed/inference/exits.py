"""Exit rules: when the logits of an early exit may be the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

RuleKind = Literal["max_probability", "entropy", "none", "always"]
KINDS: tuple[RuleKind, ...] = ("max_probability", "entropy", "none", "always")


@dataclass(frozen=True)
class ExitRule:
    """When an exit answers.

    - ``max_probability``: the largest softmax probability is at least `threshold` (BranchyNet's complement).
    - ``entropy``: the softmax entropy, divided by log(classes) so that it lies in 0..1, is at most `threshold`
      (BranchyNet, Teerapittayanon et al. 2016, section III, normalised as in DDNN, 2017). With `upper`, also where it is above
      that: samples so hard that going on is not expected to help (Chakrabarti et al. 2021: their metric falls for the hardest).
    - ``always``: the last exit within the step's stages answers, whatever it says (a fallback's "deepest exit").
    - ``none``: only the final exit answers.

    With `calibrated`, probabilities are those of the logits divided by the exit's temperature (Guo et al., 2017).
    """

    kind: RuleKind = "none"
    threshold: float = 0.0
    calibrated: bool = False
    upper: float | None = None

    @classmethod
    def parse(cls, value: object) -> ExitRule:
        """From JSON: None, or {"kind": ..., "threshold": ..., "calibrated": ..., "upper": ...}. Raises ValueError."""
        if value is None:
            return cls()
        if not isinstance(value, Mapping) or not set(value) <= {"kind", "threshold", "calibrated", "upper"}:
            raise ValueError("an exit rule is null or an object of kind, threshold, calibrated and upper")
        kind, threshold = value.get("kind", "max_probability"), value.get("threshold", 0.0)
        if kind not in KINDS:
            raise ValueError(f"exit rule kind is one of {', '.join(KINDS)}, got {kind!r:.60}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1e9:
            raise ValueError("exit rule threshold is a number of at least 0")
        calibrated = value.get("calibrated", False)
        if not isinstance(calibrated, bool):
            raise ValueError("exit rule calibrated is true or false")
        upper = value.get("upper")
        if upper is None:
            return cls(cast(RuleKind, kind), float(threshold), calibrated)
        if kind != "entropy" or isinstance(upper, bool) or not isinstance(upper, int | float) or not threshold <= upper <= 1e9:
            raise ValueError("exit rule upper goes with kind entropy and is a number of at least the threshold")
        return cls("entropy", float(threshold), calibrated, float(upper))

    def to_json(self) -> dict[str, Any] | None:
        """The JSON that `parse` reads."""
        if self.kind == "none":
            return None
        return {"kind": self.kind, "threshold": self.threshold, **({"calibrated": True} if self.calibrated else {}),
                **({} if self.upper is None else {"upper": self.upper})}

    def fires(self, logits: NDArray[np.float32], temperature: float = 1.0) -> bool:
        """Whether an exit with these logits (1, classes) and this temperature answers; `always` is decided by the place."""
        logits = self.scaled(logits, temperature)
        if self.kind == "max_probability":
            return max_probability(logits) >= self.threshold
        if self.kind == "entropy":
            h = normalised_entropy(logits)
            return h <= self.threshold or (self.upper is not None and h > self.upper)
        return False

    def scaled(self, logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
        """Logits as this rule looks at them: divided by the exit's temperature, or as they are."""
        return logits / np.float32(temperature) if self.calibrated else logits


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (N, classes) of logits (N, classes), in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exp = np.exp(shifted)
    probabilities: NDArray[np.float64] = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities


def max_probability(logits: NDArray[np.float32]) -> float:
    """Largest softmax probability of the first row."""
    return float(softmax(logits)[0].max())


def normalised_entropy(logits: NDArray[np.float32]) -> float:
    """Entropy of the first row's softmax over log(classes): 0 is certain, 1 is uniform."""
    p = softmax(logits)[0]
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(len(p)))
