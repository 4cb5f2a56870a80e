"""One step of a plan on one tensor: stage by stage, with exits asked on the way; the same whether computed or looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from testbed.inference.exits import ExitRule

if TYPE_CHECKING:
    from torch import Tensor

    from testbed.inference.catalogue import ModelInfo
    from testbed.inference.staged import StagedModel


class StageRun(Protocol):
    """Where one tensor stands on its way through a model."""

    def advance(self, index: int) -> None:
        """Pass stage `index`; the stages come in order."""

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits (N, classes) of the exit after stage `index`, the last one that was passed."""

    def tensor(self) -> NDArray[np.float32]:
        """The tensor (N, ...) behind the last stage that was passed."""


@dataclass(frozen=True)
class StepOutput:
    """What came of a step: logits (N, classes) when `exit_id` is set, else the tensor after stage `stop` - 1.

    `heads` are the stages whose exit heads were asked. `memo_hit` is whether the output came from a store of outputs;
    None where there is no store.
    """

    output: NDArray[np.float32]
    exit_id: str | None
    stop: int
    heads: tuple[int, ...]
    memo_hit: bool | None = None


def run_step(run: StageRun, info: ModelInfo, start: int, stop: int, rule: ExitRule, final_answers: bool,
             memo_hit: bool | None = None) -> StepOutput:
    """Pass stages start..stop-1 until an exit answers.

    `final_answers`: whether the final exit answers in any case; it does not where a stronger model stands behind this
    one in the plan, and the rule decides at the final exit too.
    """
    exit_after = info.exit_after
    answers = -1  # the stage whose exit answers without being asked
    if rule.kind == "always":
        answers = max(i for i in exit_after if start <= i < stop)
    elif final_answers:
        answers = info.num_stages - 1
    heads: list[int] = []
    for index in range(start, stop):
        run.advance(index)
        if index not in exit_after or (index != answers and rule.kind in ("none", "always")):
            continue
        heads.append(index)
        logits = run.logits(index)
        if index == answers or rule.fires(logits, exit_after[index].temperature):
            return StepOutput(logits, exit_after[index].name, index + 1, tuple(heads), memo_hit)
    return StepOutput(run.tensor(), None, stop, tuple(heads), memo_hit)


class TorchRun:
    """Computes the stages of a model on this machine, for an input (N, ...).

    Stages are computed when something is asked of them, several in one call: a model may then skip what only a cut needs.
    """

    def __init__(self, model: StagedModel, tensor: NDArray[np.float32]) -> None:
        import torch

        self._torch, self._model = torch, model
        self._x = torch.from_numpy(tensor if tensor.flags.writeable else tensor.copy())
        self._begin: int | None = None  # first stage that was passed and is not computed yet
        self._end = 0

    def advance(self, index: int) -> None:
        """Pass stage `index`."""
        self._begin = index if self._begin is None else self._begin
        self._end = index + 1

    def logits(self, index: int) -> NDArray[np.float32]:
        """Compute the exit head after stage `index`."""
        with self._torch.inference_mode():
            logits: NDArray[np.float32] = self._model.exit_logits(index, self._current()).numpy()
        return logits

    def tensor(self) -> NDArray[np.float32]:
        """The tensor so far."""
        with self._torch.inference_mode():
            x: NDArray[np.float32] = self._current().numpy()
        return x

    def _current(self) -> Tensor:
        if self._begin is not None:
            self._x, self._begin = self._model.run(self._x, self._begin, self._end), None
        return self._x
