"""Deep Q-network for offloading under a token bucket: the values of all token levels at once, by fitted Q iteration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from testbed.errors import InputError
from testbed.measurement.atomic import write_bytes_atomic
from testbed.policies.token_bucket.bucket import BoolArray, Bucket, spend_by_level
from testbed.policies.token_bucket.rules import Rule

SLOPE = 0.2
FORMAT = "testbed-token-bucket-dqn-1"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained. The defaults are those of the documented run of the reference code.

    Parameters
    ----------
    history: metrics read: the current one and those before it.
    intervals: also read as many of the times between arrivals up to the current one.
    layers, width: hidden layers and their width.
    phases: (iterations, learning rate), one after the other.
    batches, batch: mini-batches per iteration and their size; an iteration draws batches*batch transitions.
    discount: per arrival.
    """

    history: int = 96
    intervals: bool = False
    layers: int = 5
    width: int = 64
    phases: tuple[tuple[int, float], ...] = ((3000, 1e-3), (1000, 1e-4))
    batches: int = 128
    batch: int = 128
    discount: float = 0.9999

    @property
    def iterations(self) -> int:
        """Of all phases."""
        return sum(count for count, _ in self.phases)

    def rate_at(self, iteration: int) -> float:
        """Learning rate of an iteration."""
        for count, rate in self.phases:
            if iteration < count:
                return rate
            iteration -= count
        return self.phases[-1][1]


@dataclass(frozen=True)
class Transitions:
    """Training sequences, all (S, T): metric, true reward, and the time from each arrival to the next."""

    metric: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    interval: npt.NDArray[np.int64]


class QNetwork(nn.Module):
    """Metrics (B, inputs) -> values (B, 2(M+1)-Q-P): keeping the token for n = Q..M, then spending it for n = P..M.

    Inputs are z-scored with `mean` and `scale` (inputs,), which are part of the saved network.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, bucket: Bucket, recipe: Recipe) -> None:
        super().__init__()
        inputs = recipe.history * (2 if recipe.intervals else 1)
        widths = [inputs, *[recipe.width] * recipe.layers, 2 * (bucket.depth + 1) - bucket.refill - bucket.token]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        for layer in self.linear:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Values (B, outputs) of normalised inputs (B, inputs)."""
        for layer in self.linear[:-1]:
            x = nn.functional.leaky_relu(layer(x), SLOPE)
        out: Tensor = self.linear[-1](x)
        return out


class TargetOperator:
    """Right sides of the Bellman equation for every level and both actions, from the next state's values.

    y(n, 0) = d max_a Q'(n', a) with n' = min(M, n + Q I); y(n, 1) = R + d max_a Q'(n'', a) with n'' = min(M, n - P + Q I).
    The bucket is a known map, so one transition of the images teaches all levels; no token state is sampled.
    """

    def __init__(self, bucket: Bucket, discount: float) -> None:
        self.bucket, self.discount = bucket, discount
        self.keep = torch.arange(bucket.refill, bucket.depth + 1)
        self.spend = torch.arange(bucket.token, bucket.depth + 1)

    def best(self, values: Tensor) -> Tensor:
        """max_a Q(n, a), (B, M-Q+1) for n = Q..M, from the network's output (B, outputs)."""
        stay, go = self.split(values)
        first = self.bucket.token - self.bucket.refill
        return torch.cat((stay[:, :first], torch.maximum(stay[:, first:], go)), 1)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of keeping (B, M-Q+1) and of spending (B, M-P+1)."""
        return values[:, :len(self.keep)], values[:, len(self.keep):]

    def __call__(self, following: Tensor, reward: Tensor, interval: Tensor) -> Tensor:
        """Targets (B, outputs) from the values that follow (B, outputs), rewards (B,) and intervals (B,)."""
        best = self.best(following)
        gain = (interval * self.bucket.refill)[:, None]
        stay = best.gather(1, (self.keep + gain).clamp(max=self.bucket.depth) - self.bucket.refill)
        go = best.gather(1, (self.spend - self.bucket.token + gain).clamp(max=self.bucket.depth) - self.bucket.refill)
        return torch.cat((self.discount * stay, reward[:, None] + self.discount * go), 1)


class Dqn(Rule):
    """Offloads iff a token is there and spending it is worth at least as much as keeping it."""

    name: ClassVar[str] = "dqn"

    def __init__(self, bucket: Bucket, recipe: Recipe, network: QNetwork, curve: list[dict[str, float]] | None = None) -> None:
        self.bucket, self.recipe, self.network = bucket, recipe, network
        self.curve = curve or []

    def offloads(self, bucket: Bucket, metric: FloatArray, intervals: npt.NDArray[np.integer]) -> BoolArray:
        """Decisions (S, T)."""
        if bucket != self.bucket:
            raise InputError("is not the bucket that this network was trained for", key="bucket", value=bucket,
                             remedy="train one for it: a network holds the values of its own token levels")
        between = np.broadcast_to(intervals, metric.shape)
        padded = _padded(metric.astype(np.float32), between, self.recipe, self.network)
        chunk = max(1, 40_000 // len(metric))
        parts, level = [], None
        with torch.inference_mode():
            for begin in range(0, metric.shape[1], chunk):
                end = min(begin + chunk, metric.shape[1])
                allowed = self._allowed(padded, begin, end)
                part, level = spend_by_level(bucket, allowed, between[:, begin:end], level)
                parts.append(part)
        return np.concatenate(parts, axis=1)

    def _allowed(self, padded: Tensor, begin: int, end: int) -> BoolArray:
        """Decisions (S, end-begin, L) for every level from P."""
        history = self.recipe.history
        windows = padded[:, :, begin:end + history - 1].unfold(2, history, 1)  # (S, channels, t, history)
        x = windows.permute(0, 2, 1, 3).reshape(-1, padded.shape[1] * history)
        stay, go = TargetOperator(self.bucket, 1.0).split(self.network(x))
        return (go >= stay[:, self.bucket.token - self.bucket.refill:]).numpy().reshape(len(padded), end - begin, -1)

    def save(self, path: Path) -> Path:
        """Write weights, bucket, recipe and curve as one safetensors file."""
        return write_bytes_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of that file."""
        from safetensors.torch import save

        head = {"format": FORMAT, "bucket": json.dumps(asdict(self.bucket)), "recipe": json.dumps(asdict(self.recipe)),
                "curve": json.dumps(self.curve)}
        return save({k: v.contiguous() for k, v in self.network.state_dict().items()}, head)

    @classmethod
    def load(cls, path: Path) -> Dqn:
        """Read such a file. Raises InputError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                head = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            if head.get("format") != FORMAT:
                raise InputError("is no token-bucket network", file=path, remedy="give a file that a token_bucket study wrote")
            fields = json.loads(head["recipe"])
            recipe = Recipe(**{**fields, "phases": tuple((int(n), float(rate)) for n, rate in fields["phases"])})
            bucket = Bucket(**json.loads(head["bucket"]))
            network = QNetwork(bucket, recipe)
            network.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot be read ({error})", file=path, remedy="train it again") from None
        return cls(bucket, recipe, network.eval(), json.loads(head.get("curve", "[]")))


def _padded(metric: npt.NDArray[np.float32], interval: npt.NDArray[np.integer], recipe: Recipe, network: QNetwork) -> Tensor:
    """Normalised inputs (S, channels, T + history - 1); before the first arrival stands the mean.

    The second channel is the time from the arrival before to this one.
    """
    history = recipe.history
    channels = [metric]
    if recipe.intervals:
        channels.append(np.concatenate((np.full((len(metric), 1), np.nan), interval[:, :-1]), axis=1).astype(np.float32))
    stacked = np.stack([(c - float(network.mean[i * history])) / float(network.scale[i * history])
                        for i, c in enumerate(channels)], axis=1)
    return torch.from_numpy(np.pad(np.nan_to_num(stacked), ((0, 0), (0, 0), (history - 1, 0))))


def train(bucket: Bucket, data: Transitions, recipe: Recipe, seed: int, *,
          progress: Callable[[int, int], None] = lambda done, of: None,
          evaluate: Callable[[Dqn], float] | None = None, every: int = 100, checkpoint: Path | None = None) -> Dqn:
    """Fitted Q iteration: each iteration draws transitions, makes their targets with the current network, fits them once.

    The mean of the whole target matrix is subtracted: choices depend on differences only, and values then stay near zero at
    any discount. With `evaluate`, its value is noted every `every` iterations in the curve. With `checkpoint`, training
    goes on from that file where it was stopped, and removes it at the end. Same seed and number of threads, same network.

    Raises InputError for a rate of 1 or more, where every image has a token and there is nothing to learn.
    """
    if bucket.refill >= bucket.token:
        raise InputError("leaves nothing to learn: every image has a token", key="rate", value=bucket.rate,
                         remedy="use a rate below 1")
    torch.manual_seed(seed)
    network = QNetwork(bucket, recipe)
    _fit_scale(network, data, recipe)
    padded = _padded(data.metric, data.interval, recipe, network)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate_at(0), fused=True)
    model, first = Dqn(bucket, recipe, network), 0
    if checkpoint is not None and checkpoint.is_file():
        first = _restore(checkpoint, model, optimiser)
    operator, count = TargetOperator(bucket, recipe.discount), recipe.batches * recipe.batch
    with _one_thread():
        for iteration in range(first, recipe.iterations):
            if iteration > first and iteration % every == 0:
                _note(model, iteration, evaluate)
                if checkpoint is not None:
                    _store(checkpoint, model, optimiser, iteration)
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate_at(iteration)
            x, target = _draw(network, padded, data, operator, recipe, count, np.random.default_rng((seed, iteration)))
            for begin in range(0, count, recipe.batch):
                loss = nn.functional.mse_loss(network(x[begin:begin + recipe.batch]), target[begin:begin + recipe.batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            progress(iteration + 1, recipe.iterations)
    network.eval()
    _note(model, recipe.iterations, evaluate)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return model


def _draw(network: QNetwork, padded: Tensor, data: Transitions, operator: TargetOperator, recipe: Recipe, count: int,
          rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, inputs) of drawn transitions and their targets (count, outputs) around mean zero."""
    sequences, length = data.metric.shape
    s, t = rng.integers(sequences, size=count), rng.integers(length - 1, size=count)
    at = torch.from_numpy(t)[:, None] + torch.arange(recipe.history + 1)
    window = padded[torch.from_numpy(s)[:, None], :, at]  # (count, history + 1, channels)
    window = window.transpose(1, 2)
    x, following = window[:, :, :-1].reshape(count, -1), window[:, :, 1:].reshape(count, -1)
    with torch.no_grad():
        target = operator(network(following), torch.from_numpy(data.reward[s, t]), torch.from_numpy(data.interval[s, t]))
        return x, target - target.mean()


def _fit_scale(network: QNetwork, data: Transitions, recipe: Recipe) -> None:
    channels: list[npt.NDArray[Any]] = [data.metric, data.interval]
    for i, values in enumerate(channels[:2 if recipe.intervals else 1]):
        place = slice(i * recipe.history, (i + 1) * recipe.history)
        network.mean[place] = float(values.mean())
        network.scale[place] = float(values.std()) or 1.0


def _note(model: Dqn, iteration: int, evaluate: Callable[[Dqn], float] | None) -> None:
    if evaluate is not None:
        model.network.eval()
        model.curve.append({"iteration": iteration, "value": evaluate(model)})
        model.network.train()


def _store(path: Path, model: Dqn, optimiser: torch.optim.Optimizer, iteration: int) -> None:
    from safetensors.torch import save

    tensors = {f"net.{k}": v for k, v in model.network.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    write_bytes_atomic(path, save(tensors, {"iteration": str(iteration), "curve": json.dumps(model.curve)}))


def _restore(path: Path, model: Dqn, optimiser: torch.optim.Optimizer) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            head = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        model.network.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"is no checkpoint of this training ({error})", file=path, remedy="remove the file") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    model.curve[:] = json.loads(head["curve"])
    return int(head["iteration"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """These layers are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_finite(model: Dqn) -> bool:
    """Whether all weights are numbers: training did not diverge."""
    return all(math.isfinite(float(p.abs().sum())) for p in model.network.parameters())
