"""digits_branchy: a small residual CNN of five stages with one early exit, for 1x64x64 frames of digits."""

from __future__ import annotations

from torch import Tensor, nn

from testbed.inference.staged import StagedModel


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU(inplace=False))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x + body(x): (N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = self.relu(x + self.body(x))
        return y


def _head(channels: int, side: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side * side, 10))


def build() -> StagedModel:
    """Untrained digits_branchy.

    The tensor after a stage is 4, 1.5, 0.5 and 1 times as large as the input frame (16,384 bytes), so that a split
    can cost more bytes than sending the frame, or half of them. The early exit sees its stage only through a 2x2
    average pooling: it is meant to be sure of the easy samples and unsure of the others.
    """
    stages = [
        ("stem", nn.Sequential(_conv(1, 16), _Residual(16), _conv(16, 16, 2))),  # (16, 32, 32): 65,536 bytes
        ("low", nn.Sequential(_Residual(16), _Residual(16), _conv(16, 24, 2))),  # (24, 16, 16): 24,576 bytes
        ("mid", nn.Sequential(_conv(24, 32, 2), _Residual(32))),  # (32, 8, 8): 8,192 bytes
        ("high", nn.Sequential(_conv(32, 96), _Residual(96), _Residual(96), _conv(96, 64))),  # (64, 8, 8): 16,384
        ("top", nn.Sequential(_conv(64, 128, 2), _Residual(128), _Residual(128), _head(128))),  # (10,): 40 bytes
    ]
    return StagedModel(stages, {2: ("early", _head(32))}, (1, 64, 64))
