"""A gymnasium environment of orchestration: one epoch is an episode, the agent decides device after device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.oracle import BoolArray, Problem, optimum
from testbed.policies.orchestration.qlearning import Exploration
from testbed.policies.orchestration.response import ResponseSource

Observation = npt.NDArray[np.float32]


class OrchestrationEnv(gymnasium.Env[Observation, np.int64]):  # type: ignore[misc]
    """Joint action of N devices in N steps. Version 1; Shahhosseini et al., arXiv 2202.10541, joint form factorised here.

    The joint space has |A|^N actions; deciding device after device with the earlier decisions in view needs |A| outputs and has
    the same optimum, because the last step's reward is that of the whole joint action.

    | observation | range | meaning |
    |---|---|---|
    | 3 (N + 2) | 0 to 1 | utilisation, memory, link of devices, edge, cloud |
    | N | 0 or 1 | whose turn it is |
    | N x actions | 0 or 1 | what was decided |
    | 2 | 0 to 1 | share of devices decided; mean accuracy of these |
    | actions | 0 or 1 | what the safe set allows now |

    Reward: 0 until the last device, then -mean response time / all-local response time (-penalty over it when the constraint is
    violated). An action outside the safe set is replaced by the first allowed one; `info["action"]` is what was done. With
    `safe_factor` None nothing is replaced. The episode ends after N steps.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, problem: Problem, conditions: Sequence[Condition], safe_factor: float | None = 1.0,
                 predicted: ResponseSource | None = None) -> None:
        self.problem, self.conditions = problem, tuple(conditions)
        n, count = problem.devices, len(problem.actions)
        self.size = 3 * (n + 2) + n + n * count + 2 + count
        self.observation_space = spaces.Box(0.0, 1.0, (self.size,), np.float32)
        self.action_space = spaces.Discrete(count)
        self.safe = [np.ones(len(problem.joint), bool) if safe_factor is None else problem.safe_set(c, safe_factor, predicted)
                     for c in self.conditions]
        self._expected = [problem.mean_s(c) for c in self.conditions]
        self._best = [optimum(problem, c).mean_s for c in self.conditions]
        self._scale = [float(e[problem.index((problem.best_local,) * n)]) for e in self._expected]
        self._accuracy = np.array(problem.accuracy)[np.array(problem.actions.model)]
        self.cost = Exploration()
        self.current, self.chosen = 0, []  # type: tuple[int, list[int]]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """A new epoch, in a random condition or `options["condition"]` (its place in the sequence)."""
        super().reset(seed=seed)
        fixed = (options or {}).get("condition")
        self.current = int(self.np_random.integers(len(self.conditions))) if fixed is None else int(fixed)
        self.chosen = []
        return self._observe(), {}

    def allowed(self) -> BoolArray:
        """(actions,) what the next device may do so that the joint action can still end in the safe set."""
        n, count = self.problem.devices, len(self.problem.actions)
        rest: Any = self.safe[self.current].reshape((count,) * n)[tuple(self.chosen)]
        found: BoolArray = rest.reshape(count, -1).any(axis=1)
        return found

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide for the next device."""
        allowed, asked = self.allowed(), int(action)
        done = asked if allowed[asked] else int(np.argmax(allowed))
        self.chosen.append(done)
        info: dict[str, Any] = {"action": done}
        last, reward = len(self.chosen) == self.problem.devices, 0.0
        if last:
            reward = self._finish()
        return self._observe(), reward, last, False, info

    def _finish(self) -> float:
        problem, i = self.problem, self.current
        index = problem.index(self.chosen)
        mean_s = float(self._expected[i][index])
        if problem.source.noise:
            joint = problem.joint[index:index + 1]
            mean_s = float(problem.source.measure_s(self.conditions[i], joint, self.np_random).mean())
        good = bool(problem.feasible[index])
        self.cost.add(mean_s, self._best[i], good)
        return -(mean_s if good else problem.penalty_s) / self._scale[i]

    def _observe(self) -> Observation:
        n, count, made = self.problem.devices, len(self.problem.actions), len(self.chosen)
        turn = np.zeros(n, np.float32)
        decided = np.zeros((n, count), np.float32)
        decided[np.arange(made), self.chosen] = 1
        mask: BoolArray = np.ones(count, bool)
        if made < n:
            turn[made] = 1
            mask = self.allowed()
        accuracy = float(self._accuracy[self.chosen].mean()) if made else 0.0
        parts = (self.conditions[self.current].features(), turn, decided.ravel(), (made / n, accuracy), mask)
        return np.concatenate([np.asarray(part, np.float32) for part in parts])
