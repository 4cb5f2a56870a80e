"""StagedModel: an ordered list of stages, any of which may have an exit head, that can be cut between stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FINAL_EXIT = "final"


class StagedModel(nn.Module):
    """A classifier as a chain of stages. What crosses a cut is exactly one tensor: the output of the stage before it.

    Parameters
    ----------
    stages: (name, module) in order; each maps one tensor (N, ...) to one tensor (N, ...), the last one to logits (N, classes).
    exits: stage index -> (exit name, head); the head maps that stage's output to logits (N, classes). The exit after
        the last stage always exists, is called ``final`` and has no head of its own.
    input_shape: shape of one sample, without the batch dimension.
    """

    def __init__(self, stages: Sequence[tuple[str, nn.Module]], exits: Mapping[int, tuple[str, nn.Module]],
                 input_shape: tuple[int, ...]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("a staged model needs at least one stage")
        names = [name for name, _ in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        last = len(stages) - 1
        if any(not 0 <= index < last for index in exits):
            raise ValueError(f"exits go after stages 0 to {last - 1}; the final exit is there by itself")
        self.stage_names: tuple[str, ...] = tuple(names)
        self.input_shape = tuple(input_shape)
        self.exits: dict[int, str] = {i: exits[i][0] for i in sorted(exits)} | {last: FINAL_EXIT}
        self.stages = nn.ModuleList([module for _, module in stages])
        self.heads = nn.ModuleDict({str(i): exits[i][1] for i in sorted(exits)})

    @property
    def num_stages(self) -> int:
        """Number of stages; cuts go from 0 (before the first) to this number (after the last)."""
        return len(self.stages)

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Stages start..stop-1 of input x (N, ...), which is the output of stage start-1 (or a sample batch)."""
        if not 0 <= start <= stop <= self.num_stages:
            raise ValueError(f"stages {start}:{stop} are not within 0:{self.num_stages}")
        for stage in self.stages[start:stop]:
            x = stage(x)
        return x

    def exit_logits(self, index: int, x: Tensor) -> Tensor:
        """Logits (N, classes) of the exit after stage `index`, from that stage's output x."""
        if index not in self.exits:
            raise ValueError(f"there is no exit after stage {index}; exits are after {sorted(self.exits)}")
        if index == self.num_stages - 1:
            return x
        logits: Tensor = self.heads[str(index)](x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of the whole model for samples x (N, *input_shape)."""
        return self.run(x, 0, self.num_stages)

    def all_exits(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of every exit, by name, in one pass: for training and evaluation."""
        found = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.exits:
                found[self.exits[index]] = self.exit_logits(index, x)
        return found


def stage_shapes(model: StagedModel) -> list[tuple[int, ...]]:
    """Output shape of each stage for one sample, without the batch dimension."""
    x = torch.zeros(2, *model.input_shape)
    shapes = []
    with torch.inference_mode():
        for stage in model.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    return shapes


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products in one call of `module`, layers and functions alike."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention as one fused operation is not counted
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            module(*(x.clone() for x in inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
