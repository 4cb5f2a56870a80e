"""How each shipped model is trained: data set, phases, optimiser, augmentation, precision and storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser with a one-cycle learning rate.

    Attributes
    ----------
    sizes: (pixels, epochs) in order; images are resized to that side, so that early epochs are cheap. Side 0: as they are.
    loss_weights: exit name -> weight of its cross-entropy.
    trains: the parts whose parameters are trained; the rest is frozen, in evaluation mode, and computed without gradients.
    optimiser: stochastic gradient descent with Nesterov momentum 0.9, or AdamW.
    """

    sizes: tuple[tuple[int, int], ...]
    loss_weights: Mapping[str, float]
    trains: Literal["all", "stages", "exits"] = "all"
    batch_size: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    optimiser: Literal["sgd", "adamw"] = "sgd"

    @property
    def epochs(self) -> int:
        """Epochs of this phase."""
        return sum(epochs for _, epochs in self.sizes)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    augment: `shift`: the whole batch is moved by up to 4 pixels; `crop-flip`: each image is mirrored or not, and cut out
        of a frame with 4 pixels of border.
    bfloat16: mixed precision, where the processor computes it natively; float32 elsewhere.
    threads: of torch. With one thread the same seed gives the same weights on the same machine and torch.
    fold: batch normalisation is folded into the convolutions and linear layers before it after the first phase.
    storage: how the weights are stored: fp32, fp16 (matrices; vectors stay fp32), or int8 with a scale per output channel.
    weights: file name, when it is not the model's.
    also: further catalogue entries that take their part of the same weights: name -> builder.
    int8: name and builder of the catalogue entry of the quantised form, if there is one.
    """

    dataset: str
    builder: str
    phases: tuple[Phase, ...]
    augment: Literal["shift", "crop-flip"] = "crop-flip"
    bfloat16: bool = False
    threads: int = 2
    fold: bool = False
    training_builder: str | None = None
    storage: Literal["fp32", "fp16", "int8"] = "fp16"
    weights: str | None = None
    also: Mapping[str, str] = field(default_factory=dict)
    int8: tuple[str, str] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on, apart from the seed and the data."""
        return {"phases": [asdict(phase) for phase in self.phases], "augment": self.augment, "bfloat16": self.bfloat16,
                "threads": self.threads, "fold": self.fold}


_ZOO = "testbed.inference.zoo"


def _mobilenet(name: str, sizes: tuple[tuple[int, int], ...]) -> Recipe:
    return Recipe("cifar10", f"{_ZOO}.mobilenet:{name}", (Phase(sizes, {"final": 1.0}, learning_rate=0.2, weight_decay=2e-4),),
                  int8=(f"{name}_int8", f"{_ZOO}.mobilenet:{name}_int8"))


RECIPES: Mapping[str, Recipe] = {
    "digits_branchy": Recipe(
        "digits", f"{_ZOO}.digits:build",
        (Phase(((0, 16),), {"early": 0.75, "final": 1.0}, batch_size=32, learning_rate=3e-3, weight_decay=1e-2,
               optimiser="adamw"),), augment="shift", threads=1, storage="fp32"),
    "vgg16_ddnn_repo": Recipe(
        "cifar10", f"{_ZOO}.vgg:build_repo",
        # trunk; then everything frozen and the exits trained on it, as in the DDNN repository (three equal weights there)
        (Phase(((16, 4), (24, 4), (32, 3)), {"final": 1.0}, "stages", learning_rate=0.06),
         Phase(((32, 6),), {"edge": 1.0, "fog": 1.0}, "exits", learning_rate=1e-3, weight_decay=0.05, optimiser="adamw")),
        bfloat16=True, fold=True, training_builder=f"{_ZOO}.vgg:build_training", storage="int8",
        weights="vgg16_ddnn.safetensors", also={"vgg16_ddnn_paper": f"{_ZOO}.vgg:build_paper"}),
    "mobilenet_012s2": _mobilenet("mobilenet_012s2", ((32, 16),)),
    "mobilenet_025s2": _mobilenet("mobilenet_025s2", ((32, 16),)),
    "mobilenet_025": _mobilenet("mobilenet_025", ((24, 5), (32, 5))),
    "mobilenet_050": _mobilenet("mobilenet_050", ((16, 3), (24, 3), (32, 3))),
    "mobilenet_100": _mobilenet("mobilenet_100", ((16, 4), (24, 3), (32, 2))),
    "resnet20_branchy": Recipe(
        "cifar10", f"{_ZOO}.resnet:build",
        (Phase(((24, 4), (32, 6)), {"first": 0.5, "second": 0.5, "final": 1.0}, learning_rate=0.15),), bfloat16=True),
}
