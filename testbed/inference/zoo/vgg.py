"""vgg16_ddnn: VGG16 for 32x32 images, cut by blocks, with the exits of the DDNN that ran over Kafka-ML.

Source: Torres, Martin, Rubio and Diaz, DDNN over Kafka-ML; layers as in the shipped SavedModel of ertis-research/DDNN:
convolutions of VGG16 (3x3, same, ReLU, 2x2 max-pool), edge branch Dense 128 and fog branch Dense 256, 128 behind a
flattened block output, cloud branch Dense 1024, 512, 256, 128. The text of the paper names only the edge exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from testbed.inference.staged import StagedModel

BLOCKS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _dense(sizes: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """Flatten, then linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        hidden = i + 2 < len(sizes)
        layers.append(nn.Linear(inputs, outputs))
        if hidden:
            layers += [nn.BatchNorm1d(outputs)] if batch_norm else []
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _block(inputs: int, widths: Sequence[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers.append(nn.Conv2d(inputs, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU())
        inputs = width
    # all sides are even at 32 pixels; rounding up lets training begin with smaller images
    return nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True))


def _build(exits: Sequence[str], batch_norm: bool = False) -> StagedModel:
    inputs = (3, *(block[-1] for block in BLOCKS))
    stages: list[tuple[str, nn.Module]] = [
        (f"block{i + 1}", _block(inputs[i], widths, batch_norm)) for i, widths in enumerate(BLOCKS)]
    stages.append(("classifier", _dense((512, 1024, 512, 256, 128, 10), batch_norm)))
    # the branches have no batch normalisation: the trunk that they are trained on is finished and frozen
    branches = {"edge": (0, _dense((64 * 16 * 16, 128, 10), False)), "fog": (1, _dense((128 * 8 * 8, 256, 128, 10), False))}
    return StagedModel(stages, {branches[name][0]: (name, branches[name][1]) for name in exits}, (3, 32, 32))


def build_paper() -> StagedModel:
    """Exits as in the paper's text: edge (after block1) and final."""
    return _build(("edge",))


def build_repo() -> StagedModel:
    """Exits as in the published model: edge (after block1), fog (after block2) and final."""
    return _build(("edge", "fog"))


def build_training() -> StagedModel:
    """`build_repo` with batch normalisation in the trunk; `fold_batch_norms` brings it to the shipped form."""
    return _build(("edge", "fog"), batch_norm=True)
