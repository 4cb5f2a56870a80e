"""resnet20_branchy: a CIFAR ResNet-20 with two early exits, trained jointly.

ResNet for CIFAR-10 as in He et al., 2016 (arXiv:1512.03385, section 4.2) with 16, 32, 64 channels and three blocks each;
exits and the weighted joint loss as in BranchyNet (Teerapittayanon, McDanel and Kung, 2016, arXiv:1709.01686, section III).
"""

from __future__ import annotations

from torch import Tensor, nn

from testbed.inference.staged import StagedModel


class _Residual(nn.Module):
    """Two 3x3 convolutions and a skip; a 1x1 convolution on the skip where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.relu(self.body(x) + self.skip(x))
        return y


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def build() -> StagedModel:
    """Stages stem, wide (32x32x16), middle (16x16x32), narrow (8x8x64), classifier; exits after wide and after middle."""
    def group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1),
                             _Residual(outputs, outputs, 1))

    stages: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())),
        ("wide", group(16, 16, 1)), ("middle", group(16, 32, 2)), ("narrow", group(32, 64, 2)),
        ("classifier", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))),
    ]
    return StagedModel(stages, {1: ("first", _head(16)), 2: ("second", _head(32))}, (3, 32, 32))
