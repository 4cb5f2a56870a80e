"""A ladder of MobileNet-like classifiers for 32x32 images, from very small to large, in float32 and int8.

Depthwise-separable convolutions and width multipliers as in MobileNets (Howard et al., 2017, arXiv:1704.04861, sections
3.1 and 3.3), fewer layers and smaller strides for 32x32 images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from testbed.inference.staged import StagedModel

_STAGES: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (  # name, (channels at width 1, stride) per layer
    ("stem", ((64, 1),)), ("low", ((128, 2), (128, 1))), ("mid", ((256, 2), (256, 1))),
    ("high", ((512, 2), (512, 1), (512, 1))), ("top", ((1024, 2),)),
)


@dataclass(frozen=True)
class Width:
    """One rung: width multiplier and the stride of the first convolution."""

    multiplier: float
    stem_stride: int = 1

    def channels(self, at_full_width: int) -> int:
        """Channels rounded up to a multiple of 8."""
        return max(8, -(-int(at_full_width * self.multiplier) // 8) * 8)


LADDER = {"mobilenet_012s2": Width(0.125, 2), "mobilenet_025s2": Width(0.25, 2), "mobilenet_025": Width(0.25),
          "mobilenet_050": Width(0.5), "mobilenet_100": Width(1.0)}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), nn.ReLU())


def _float(width: Width) -> StagedModel:
    stages: list[tuple[str, nn.Module]] = []
    inputs = width.channels(32)
    for name, layers in _STAGES:
        parts: list[nn.Module] = [_conv(3, inputs, 3, width.stem_stride)] if not stages else []
        for full_width, stride in layers:
            outputs = width.channels(full_width)
            parts += [_conv(inputs, inputs, 3, stride, groups=inputs), _conv(inputs, outputs, 1)]
            inputs = outputs
        if name == "top":
            parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]
        stages.append((name, nn.Sequential(*parts)))
    return StagedModel(stages, {}, (3, 32, 32))


def builder_of(name: str) -> Callable[[], StagedModel]:
    """The builder of a rung of the ladder; raises KeyError for another name."""
    width = LADDER[name]
    return lambda: _float(width)


mobilenet_012s2 = builder_of("mobilenet_012s2")
mobilenet_025s2 = builder_of("mobilenet_025s2")
mobilenet_025 = builder_of("mobilenet_025")
mobilenet_050 = builder_of("mobilenet_050")
mobilenet_100 = builder_of("mobilenet_100")


def _int8(name: str) -> Callable[[], StagedModel]:
    def build() -> StagedModel:
        from testbed.inference.quantise import quantise

        return quantise(_float(LADDER[name]).eval(), torch.rand(2, 3, 32, 32))
    return build


mobilenet_012s2_int8 = _int8("mobilenet_012s2")
mobilenet_025s2_int8 = _int8("mobilenet_025s2")
mobilenet_025_int8 = _int8("mobilenet_025")
mobilenet_050_int8 = _int8("mobilenet_050")
mobilenet_100_int8 = _int8("mobilenet_100")
