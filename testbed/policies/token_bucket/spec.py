"""Keys of a token_bucket study: models, tokens, sequences, policies, training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue
from testbed.inference.data import dataset_sha256
from testbed.policies.token_bucket.dqn import Recipe
from testbed.schema.study import Study
from testbed.schema.topology import Strict
from testbed.schema.units import Fraction

Rate = Annotated[float, Field(ge=0.01, le=10)]
Depth = Annotated[float, Field(ge=1, le=1000)]
PolicyName = Literal["weak", "naive", "mdp", "dqn", "bound", "strong"]


class Answers(Strict):
    """Whose answers: a model of the catalogue, and the exit that answers (the last by default)."""

    model: str
    exit: str | None = None


class Images(Strict):
    """Which image comes when: independent (the default), or with a location that is kept for a while.

    `spread`: share of the images, sorted by metric, that one location shows. `reset`: probability per arrival that the
    location is drawn anew. Independent images have neither.
    """

    spread: Fraction | None = None
    reset: Fraction | None = None

    @model_validator(mode="after")
    def _both(self) -> Images:
        if (self.spread is None) != (self.reset is None):
            raise ValueError("images: needs both spread: and reset:, or neither|write for example {spread: 0.1, reset: 0.1}")
        return self

    @property
    def correlated(self) -> bool:
        """Whether an image says anything about the next."""
        return self.spread is not None and self.spread < 1 and (self.reset or 0) < 1


class Arrivals(Strict):
    """Times between arrivals: one interval, or two with the probability per unit of time of leaving each."""

    intervals: list[Annotated[int, Field(ge=1, le=1000)]] = Field([1], min_length=1, max_length=2)
    leave: list[Annotated[float, Field(gt=0, le=1)]] = Field([])

    @model_validator(mode="after")
    def _pairs(self) -> Arrivals:
        if len(self.leave) != (2 if len(self.intervals) == 2 else 0):
            raise ValueError("arrivals: two intervals: need two leave:, one interval needs none|write for example "
                             "{intervals: [1, 3], leave: [0.001, 0.0005]}")
        return self


class Size(Strict):
    """How many sequences, and how many arrivals each has."""

    sequences: int = Field(100, ge=2, le=100_000)
    length: int = Field(5000, ge=100, le=10_000_000)


class Training(Strict):
    """Network and training of the DQN; the defaults are the documented run's (`Recipe`). `only`: [rate, depth] to train for."""

    history: int = Field(96, ge=1, le=1024)
    intervals: bool = False
    phases: list[tuple[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]]] = Field([(3000, 1e-3), (1000, 1e-4)],
                                                                                             min_length=1)
    batches: int = Field(128, ge=1)
    batch: int = Field(128, ge=1)
    only: list[tuple[Rate, Depth]] = Field([])

    @property
    def recipe(self) -> Recipe:
        """The same for the trainer."""
        return Recipe(history=self.history, intervals=self.intervals, phases=tuple(self.phases), batches=self.batches,
                      batch=self.batch)


class Cameras(Strict):
    """Several cameras with one shared bucket; `rates` and `depths` are the grid of their own, over-subscribed buckets."""

    counts: list[Annotated[int, Field(ge=2, le=64)]] = Field(min_length=1)
    rate: Rate
    depth: Depth
    rates: list[Rate] = Field(min_length=1)
    depths: list[Depth] = Field(min_length=1)


class Spreads(Strict):
    """Another table at one (rate, depth): how policies compare as the correlation vanishes."""

    values: list[Fraction] = Field(min_length=1)
    reset: Fraction
    rate: Rate
    depth: Depth


class TokenBucketStudy(Study):
    """Loss of offloading policies under a token bucket, over sequences of images.

    `gain`: what MDP and DQN learn to collect from the training images: the true loss saved (`reward`, as published) or its
    expectation given the entropy (`metric`), which is the same on average and has less noise when images are few.
    """

    version: ClassVar[int] = 1

    study: Literal["token_bucket"]
    catalogue: str
    weak: Answers
    strong: Answers
    cost: Literal["top1", "top5", "rank"] = "top1"
    gain: Literal["reward", "metric"] = "reward"
    rates: list[Rate] = Field(min_length=1)
    depths: list[Depth] = Field(min_length=1)
    images: Images = Images()
    arrivals: Arrivals = Arrivals()
    policies: list[PolicyName] = Field(["weak", "naive", "mdp", "bound", "strong"], min_length=1)
    train: Size = Size(sequences=100, length=5000)
    test: Size = Size(sequences=100, length=10_000)
    dqn: Training = Training()
    cameras: Cameras | None = None
    spreads: Spreads | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TokenBucketStudy:
        if "dqn" in self.policies and max(self.rates) >= 1 and not self.dqn.only:
            raise ValueError("rates: a dqn has nothing to learn at a rate of 1 or more|remove the rate, or list dqn.only:")
        strangers = [cell for cell in self.dqn.only if cell[0] not in self.rates or cell[1] not in self.depths]
        if strangers:
            raise ValueError(f"dqn.only: {list(strangers[0])} is not among rates: and depths:|use a rate and a depth of these")
        return self

    def trains(self, rate: float, depth: float) -> bool:
        """Whether a DQN is trained for this pair."""
        return "dqn" in self.policies and (not self.dqn.only or (rate, depth) in self.dqn.only)

    def content(self) -> dict[str, str]:
        """Weights of the models, and the data set. Raises InputError naming the key."""
        catalogue = load_catalogue(Path(self.catalogue))
        dataset = catalogue[self.weak.model].dataset
        if catalogue[self.strong.model].dataset != dataset:
            raise InputError("is trained on other data than the weak model", key="strong.model", value=self.strong.model,
                             remedy=f"choose a model for {dataset}")
        found = {f"dataset:{dataset}": dataset_sha256(dataset)}
        for key, answers in (("weak", self.weak), ("strong", self.strong)):
            info = catalogue[answers.model]
            exits = [e.name for e in info.exits]
            if answers.exit is not None and answers.exit not in exits:
                raise InputError(f"model {answers.model} has no such exit", key=f"{key}.exit", value=answers.exit,
                                 remedy=f"use one of {', '.join(exits)}")
            found[f"model:{answers.model}"] = info.sha256
        return found
