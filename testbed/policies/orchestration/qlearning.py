"""Tabular Q-learning over joint actions: optimistic start, decaying exploration within a safe set, resumable, deterministic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.errors import InputError
from testbed.measurement.atomic import write_bytes_atomic
from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.oracle import BoolArray, Problem, optimum
from testbed.policies.orchestration.response import FloatArray, ResponseSource

Progress = Callable[[float, str], None]
Step = Callable[[int, int, np.random.Generator], tuple[float, int]]  # (state, action) -> (reward, next state)
EVALUATIONS = 20  # points of the evaluation curve


@dataclass(frozen=True)
class QSettings:
    """Settings of Q-learning. Learning rate and discount are recalled of the paper, not confirmed.

    Parameters
    ----------
    learning_rate: of the first visit. power: it falls with visits n of a (state, action) as learning_rate / n^power; 0 keeps it.
    discount: of the next state's value.
    epsilon, decay, epsilon_min: chance of a random action, multiplied by (1 - decay) after every epoch.
    epochs: joint actions taken.
    safe_factor: exploration only tries what is predicted within this factor of all-local; None: anything at all.
    limit_bytes: largest table.
    """

    learning_rate: float = 0.9
    power: float = 0.0
    discount: float = 0.1
    epsilon: float = 1.0
    decay: float = 1e-3
    epsilon_min: float = 0.01
    epochs: int = 10_000
    safe_factor: float | None = 1.0
    limit_bytes: int = 256_000_000


class QTable:
    """Q[state][action] with its learner's state. Starts at 0, above every reward, so each allowed action is tried.

    Raises InputError when the table would be larger than `settings.limit_bytes` (16 bytes per entry: value and visits).
    """

    def __init__(self, states: int, actions: int, settings: QSettings, seed: int = 1, allowed: BoolArray | None = None) -> None:
        needed = states * actions * 16
        if needed > settings.limit_bytes:
            raise InputError(f"needs a table of {needed / 1e6:.0f} MB ({states} states, {actions} joint actions), more than "
                             f"{settings.limit_bytes / 1e6:.0f} MB", key="qlearning",
                             remedy="use dqn, or fewer devices or conditions")
        self.settings = settings
        self.values = np.zeros((states, actions))
        self.visits = np.zeros((states, actions), np.int64)
        self.rng = np.random.default_rng(seed)
        self.epoch, self.state = 0, 0
        # ways to act per state, by index of the action
        self.choices = [np.flatnonzero(allowed[s]) if allowed is not None else np.arange(actions) for s in range(states)]
        self.started = False

    def greedy(self, state: int) -> int:
        """The allowed action of the highest value; the first among equals."""
        choices = self.choices[state]
        return int(choices[np.argmax(self.values[state, choices])])

    def best_value(self, state: int) -> float:
        """Its value."""
        return float(self.values[state, self.choices[state]].max())

    @property
    def epsilon(self) -> float:
        """The present chance of a random action."""
        s = self.settings
        return max(s.epsilon_min, s.epsilon * (1 - s.decay) ** self.epoch)

    def step(self, step: Step) -> tuple[int, int, float]:
        """One epoch: act, learn, go on; returns (state, action, reward)."""
        s, state = self.settings, self.state
        choices = self.choices[state]
        action = int(choices[self.rng.integers(len(choices))]) if self.rng.random() < self.epsilon else self.greedy(state)
        reward, following = step(state, action, self.rng)
        self.visits[state, action] += 1
        rate = s.learning_rate / self.visits[state, action] ** s.power
        target = reward + s.discount * self.best_value(following)
        self.values[state, action] += rate * (target - self.values[state, action])
        self.epoch, self.state = self.epoch + 1, following
        return state, action, reward

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write a checkpoint atomically."""
        import io

        buffer = io.BytesIO()
        text = json.dumps({**about, "epoch": self.epoch, "state": self.state, "rng": self.rng.bit_generator.state})
        np.savez_compressed(buffer, values=self.values, visits=self.visits, about=np.array(text))
        write_bytes_atomic(path, buffer.getvalue())

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; returns what was saved beside it. Raises InputError when it is not of this table."""
        with np.load(path) as found:
            about: dict[str, Any] = json.loads(str(found["about"]))
            if found["values"].shape != self.values.shape:
                raise InputError("is a checkpoint of another table", file=path, remedy="remove the file")
            self.values, self.visits = found["values"], found["visits"]
        self.epoch, self.state = about.pop("epoch"), about.pop("state")
        self.rng.bit_generator.state = about.pop("rng")
        return about


@dataclass
class Exploration:
    """What learning cost: epochs, violations of the constraint, sum and worst of the epochs' mean response times, and what the
    epochs that met the constraint took above the optimum (summed)."""

    epochs: int = 0
    violations: int = 0
    total_s: float = 0.0
    worst_s: float = 0.0
    excess_s: float = 0.0

    def add(self, mean_s: float, best_s: float, feasible: bool) -> None:
        """Count one epoch: its mean response time, the optimum's, whether the constraint was met."""
        self.epochs += 1
        self.violations += not feasible
        self.total_s += mean_s
        self.worst_s = max(self.worst_s, mean_s)
        self.excess_s += mean_s - best_s if feasible else 0.0

    @property
    def mean_s(self) -> float:
        """Mean response time while learning."""
        return self.total_s / max(1, self.epochs)


@dataclass
class Learned:
    """A learner's result: per condition the greedy joint action (None: infeasible), the evaluation curve, the cost of learning.

    curve columns: epoch, mean_s (greedy, over the conditions), gap (relative to the optimum).
    """

    actions: dict[str, tuple[int, ...] | None]
    curve: pd.DataFrame
    cost: Exploration = field(default_factory=Exploration)

    @property
    def feasible(self) -> bool:
        """Whether there is a policy at all."""
        return all(action is not None for action in self.actions.values())


def infeasible(conditions: Sequence[Condition]) -> Learned:
    """No joint action meets the constraint: there is nothing to learn, and no policy."""
    return Learned({c.key: None for c in conditions}, pd.DataFrame(columns=["epoch", "mean_s", "gap"]))


def learn(problem: Problem, conditions: Sequence[Condition], settings: QSettings, seed: int, *,
          predicted: ResponseSource | None = None, checkpoint: Path | None = None, every: int = 5000,
          on_progress: Progress = lambda share, text: None, on_epoch: Callable[[int, int], None] | None = None) -> Learned:
    """Learn a joint action per condition; conditions come independently and uniformly from epoch to epoch.

    predicted: the model of the safe set, by default the source. checkpoint: a file to go on from and to write every `every`
    epochs; an interrupted training ends as an uninterrupted one. on_epoch: is told (state, joint action) of each epoch.
    Raises InputError (table too large, penalty too small).
    """
    if not problem.feasible.any():
        return infeasible(conditions)
    for condition in conditions:
        problem.check_penalty(condition)
    factor = settings.safe_factor
    allowed = None if factor is None else np.stack([problem.safe_set(c, factor, predicted) for c in conditions])
    table = QTable(len(conditions), len(problem.joint), settings, seed, allowed)
    best = np.array([optimum(problem, c).mean_s for c in conditions])
    times = [problem.source.times_s(c, problem.joint) for c in conditions]  # (A, N) each
    expected = np.stack([t.mean(axis=1) for t in times])
    cost, curve = Exploration(), []
    about = {"settings": asdict(settings), "seed": seed, "conditions": [c.key for c in conditions]}
    if checkpoint is not None and checkpoint.is_file():
        saved = table.load(checkpoint)
        if {k: saved[k] for k in about} != about:
            raise InputError("is a checkpoint of another training", file=checkpoint, remedy="remove the file")
        cost, curve = Exploration(**saved["cost"]), saved["curve"]
    else:
        table.state = int(table.rng.integers(len(conditions)))

    def step(state: int, action: int, rng: np.random.Generator) -> tuple[float, int]:
        mean_s = float(problem.source.noisy(times[state][action], rng).mean())
        good = bool(problem.feasible[action])
        cost.add(mean_s, float(best[state]), good)
        following = int(rng.integers(len(conditions))) if len(conditions) > 1 else 0
        return (-mean_s if good else -problem.penalty_s), following

    evaluate_every = max(1, settings.epochs // EVALUATIONS)
    while table.epoch < settings.epochs:
        state, action, _ = table.step(step)
        if on_epoch is not None:
            on_epoch(state, action)
        if table.epoch % evaluate_every == 0:
            curve.append(_evaluate(table, problem, expected, best))
            on_progress(table.epoch / settings.epochs, f"Q-learning, epoch {table.epoch}")
        if checkpoint is not None and table.epoch % every == 0:
            table.save(checkpoint, {**about, "cost": asdict(cost), "curve": curve})
    chosen = {c.key: tuple(int(k) for k in problem.joint[table.greedy(i)]) for i, c in enumerate(conditions)}
    return Learned(dict(chosen), pd.DataFrame(curve, columns=["epoch", "mean_s", "gap"]), cost)


def _evaluate(table: QTable, problem: Problem, expected: FloatArray, best: FloatArray) -> tuple[int, float, float]:
    greedy = [table.greedy(i) for i in range(len(best))]
    times = np.where(problem.feasible[greedy], expected[np.arange(len(best)), greedy], problem.penalty_s)
    return table.epoch, float(times.mean()), float((times / best - 1).mean())
