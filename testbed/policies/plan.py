"""Plans: which node runs which stages of which model, how the input travels, and when an exit may answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ExitRule:
    """An early exit may answer when its confidence passes the threshold.

    `max_probability`: largest softmax probability >= threshold. `entropy`: softmax entropy divided by log(classes),
    between 0 and 1, <= threshold (the normalised entropy of DDNN, ICDCS 2017). `always`: the last exit within the step's
    stages answers, whatever it says. `calibrated`: of the logits divided by the exit's temperature in the catalogue. `upper`:
    with `entropy`, the exit answers above it too.
    """

    kind: str
    threshold: float
    calibrated: bool = False
    upper: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of a plan: `node` runs stages `start` (inclusive) to `stop` (exclusive) of `model`.

    `codec` says how this step's input travels to it when the step before ran on another node (or, for the first
    step, when it is not the device's own).
    """

    node: str
    model: str
    start: int
    stop: int
    codec: str = "raw"
    exit: ExitRule | None = None


@dataclass(frozen=True)
class Plan:
    """An ordered list of steps; `fallback` is run on the device when a remote step fails.

    `backup` is started on the device when no answer has come `backup_after_s` after the decision; whichever answers first
    is the answer, the other is counted as a duplicate.
    """

    name: str
    steps: tuple[Step, ...]
    fallback: tuple[Step, ...] = ()
    retries: int = 0
    backup: tuple[Step, ...] = ()
    backup_after_s: float | None = None

    def wire(self) -> list[dict[str, Any]]:
        """The steps as JSON-ready mappings, the form that nodes understand."""
        return [asdict(step) for step in self.steps]

    def fallback_wire(self) -> list[dict[str, Any]]:
        """The fallback steps in the same form."""
        return [asdict(step) for step in self.fallback]

    def backup_wire(self) -> list[dict[str, Any]]:
        """The backup steps in the same form."""
        return [asdict(step) for step in self.backup]

    @property
    def label(self) -> str:
        """`device1[0:2]>edge1[2:5]`: what the `plan` column shows."""
        return ">".join(f"{s.node}[{s.start}:{s.stop}]" for s in self.steps)

    @property
    def split_point(self) -> int | None:
        """First stage that runs on another node than the first; None when there is no cut."""
        first = self.steps[0]
        return next((s.start for s in self.steps[1:] if s.node != first.node and s.model == first.model), None)
