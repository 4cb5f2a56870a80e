"""The analytic run: sequences of images through every policy at every (rate, depth), with intervals over the sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from testbed.policies.token_bucket import sequences as seq
from testbed.policies.token_bucket.bucket import BoolArray, Bucket, IntArray
from testbed.policies.token_bucket.dqn import Dqn, Transitions, train
from testbed.policies.token_bucket.mdp import Choices, Thresholds, solve
from testbed.policies.token_bucket.pair import Images, Pair
from testbed.policies.token_bucket.rules import Always, LowerBound, Mdp, Naive, Never, Rule, quantile_threshold
from testbed.policies.token_bucket.spec import Arrivals, TokenBucketStudy
from testbed.policies.token_bucket.spec import Images as ImageSource
from testbed.schema.data import cache_folder

CONFIDENCE = 0.95
VALIDATION = (20, 2000)  # sequences and arrivals of the evaluation curve, from training images

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Stream:
    """Sequences of arrivals: which image (S, T), and the time to the next arrival, (S, T) or (1, 1)."""

    images: Images
    index: IntArray
    interval: IntArray

    @property
    def metric(self) -> FloatArray:
        """(S, T)"""
        return self.images.metric[self.index]

    @property
    def reward(self) -> FloatArray:
        """(S, T)"""
        return self.images.reward[self.index]

    def loss(self, offload: BoolArray) -> Loss:
        """What the decisions (S, T) cost."""
        cost = np.where(offload, self.images.strong[self.index], self.images.weak[self.index])
        by_image = np.bincount(self.index.ravel(), cost.ravel(), minlength=len(self.images)) / cost.size * len(self.images)
        return Loss(cost.mean(1), by_image)


@dataclass(frozen=True)
class Loss:
    """Mean loss of each sequence (S,), and the contribution of each image (N,); both have the same mean."""

    by_sequence: FloatArray
    by_image: FloatArray

    @property
    def mean(self) -> float:
        """Mean loss per arrival."""
        return float(self.by_sequence.mean())

    def __sub__(self, other: Loss) -> Loss:
        return Loss(self.by_sequence - other.by_sequence, self.by_image - other.by_image)

    def interval(self) -> tuple[float, float, float]:
        """Mean with its 95% interval: sequences are a sample, and so are the images that they are drawn from.

        The variances of both means are added; the decisions per image are taken as given (delta method).
        """
        variance = sum(float(v.var(ddof=1)) / len(v) for v in (self.by_sequence, self.by_image))
        half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * variance**0.5
        return self.mean, self.mean - half, self.mean + half


@dataclass(frozen=True)
class Cell:
    """One (rate, depth): loss and decisions (S, T), by policy."""

    rate: float
    depth: float
    bucket: Bucket
    loss: Mapping[str, Loss]
    offload: Mapping[str, BoolArray]
    rules: Mapping[str, Rule] = field(default_factory=dict)


def difference(cell: Cell, a: str, b: str) -> tuple[float, float, float]:
    """Loss of `a` minus loss of `b` on the same sequences, with its 95% interval."""
    return (cell.loss[a] - cell.loss[b]).interval()


def make_stream(images: Images, source: ImageSource, arrivals: Arrivals, sequences: int, length: int,
                seed: tuple[int, ...]) -> Stream:
    """Sequences of one kind; images and intervals have random numbers of their own."""
    rng, rng_time = np.random.default_rng((*seed, 0)), np.random.default_rng((*seed, 1))
    if source.spread is None or source.reset is None:
        index = seq.independent(len(images), sequences, length, rng)
    else:
        index = seq.location_reset(images.metric, source.spread, source.reset, sequences, length, rng)
    if len(arrivals.intervals) == 1:
        interval = seq.periodic(arrivals.intervals[0])
    else:
        first, second = arrivals.intervals
        interval = seq.markov_modulated((first, second), (arrivals.leave[0], arrivals.leave[1]), sequences, length, rng_time)
    return Stream(images, index, interval)


def mean_interval(arrivals: Arrivals) -> float:
    """Mean time between arrivals."""
    if len(arrivals.intervals) == 1:
        return float(arrivals.intervals[0])
    return seq.mean_interval((arrivals.intervals[0], arrivals.intervals[1]), (arrivals.leave[0], arrivals.leave[1]))


def interval_weights(arrivals: Arrivals) -> list[float]:
    """Share of the arrivals that each interval follows."""
    if len(arrivals.intervals) == 1:
        return [1.0]
    first, second = arrivals.intervals
    share = (second - mean_interval(arrivals)) / (second - first) if second != first else 0.5
    return [share, 1 - share]


class Comparison:
    """All policies of a study on one source of images; trained on the training images, judged on the test images."""

    def __init__(self, spec: TokenBucketStudy, pair: Pair, source: ImageSource, progress: Progress) -> None:
        self.spec, self.pair, self.source, self._progress = spec, pair, source, progress
        self.gain = pair.train.reward if spec.gain == "reward" else pair.train.metric
        self.choices = Choices.of(pair.train.metric, self.gain)
        # the same seeds whatever the source, so that only the order of the images differs
        self.test = make_stream(pair.test, source, spec.arrivals, spec.test.sequences, spec.test.length, (spec.seed, 2))
        self._train: Transitions | None = None

    def cells(self, pairs: list[tuple[float, float]]) -> Iterator[Cell]:
        """One cell per (rate, depth)."""
        for i, (rate, depth) in enumerate(pairs):
            yield self.cell(rate, depth, lambda share, text, i=i:  # type: ignore[misc]
                            self._progress((i + share) / len(pairs), text))

    def cell(self, rate: float, depth: float, progress: Progress) -> Cell:
        """Every policy at one rate and depth, on the same sequences."""
        bucket = Bucket.of(rate, depth)
        progress(0.0, f"policies at r={rate:g}, b={depth:g}")
        loss: dict[str, Loss] = {}
        decisions: dict[str, BoolArray] = {}
        rules: dict[str, Rule] = {}
        for name in self.spec.policies:
            if name == "dqn" and not self.spec.trains(rate, depth):
                continue
            rule = self._rule(name, bucket, progress)
            offload = rule.offloads(bucket, self.test.metric, self.test.interval)
            loss[name], decisions[name], rules[name] = self.test.loss(offload), offload, rule
        return Cell(rate, depth, bucket, loss, decisions, rules)

    def thresholds(self, bucket: Bucket) -> Thresholds:
        """MDP thresholds for this study's arrivals."""
        return solve(bucket, self.choices, self.spec.arrivals.intervals, interval_weights(self.spec.arrivals))

    def _rule(self, name: str, bucket: Bucket, progress: Progress) -> Rule:
        if name == "weak":
            return Never()
        if name == "strong":
            return Always()
        if name == "mdp":
            return Mdp(self.thresholds(bucket))
        if name == "dqn":
            return self._dqn(bucket, progress)
        # the bound offloads the right share of the images that it is judged on: other policies may offload as many of them
        images = self.pair.train if name == "naive" else self.pair.test
        threshold = quantile_threshold(images.metric, bucket.rate, mean_interval(self.spec.arrivals))
        return Naive(threshold) if name == "naive" else LowerBound(threshold)

    def _dqn(self, bucket: Bucket, progress: Progress) -> Dqn:
        """Trained for these sequences, or the one that was trained for them before."""
        data, recipe = self._transitions(), self.spec.dqn.recipe
        about = hashlib.sha256(json.dumps([asdict(bucket), asdict(recipe), self.spec.seed], sort_keys=True).encode())
        for values in (data.metric, data.reward, np.ascontiguousarray(data.interval)):
            about.update(np.ascontiguousarray(values).tobytes())
        kept = cache_folder("policies") / f"token-bucket-{about.hexdigest()[:16]}.safetensors"
        if kept.is_file():
            return Dqn.load(kept)
        judge = make_stream(self.pair.train, self.source, self.spec.arrivals, *VALIDATION, (self.spec.seed, 3))
        text = f"dqn for r={bucket.rate:g}, b={bucket.tokens:g}"
        model = train(bucket, data, recipe, self.spec.seed, every=max(1, recipe.iterations // 20),
                      progress=lambda done, of: progress(done / of, text), checkpoint=_checkpoint(kept),
                      evaluate=lambda dqn: float(judge.loss(dqn.offloads(bucket, judge.metric, judge.interval)).mean))
        model.save(kept)
        return model

    def _transitions(self) -> Transitions:
        if self._train is None:
            stream = make_stream(self.pair.train, self.source, self.spec.arrivals, self.spec.train.sequences,
                                 self.spec.train.length, (self.spec.seed, 1))
            self._train = Transitions(stream.metric.astype(np.float32), self.gain[stream.index].astype(np.float32),
                                      np.broadcast_to(stream.interval, stream.index.shape))
        return self._train


def _checkpoint(path: Path) -> Path:
    return path.with_suffix(".checkpoint")
