"""DQN of stable-baselines3 on the factorised environment: seeded, in chunks that a checkpoint can go on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from testbed.errors import InputError, MissingToolError
from testbed.measurement.atomic import write_text_atomic
from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.oracle import Problem, optimum
from testbed.policies.orchestration.qlearning import Exploration, Learned, infeasible
from testbed.policies.orchestration.response import ResponseSource

if TYPE_CHECKING:
    from testbed.policies.orchestration.environment import OrchestrationEnv

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class DqnSettings:
    """Settings of the DQN: two hidden layers, replay buffer, mini-batches of 64.

    Parameters
    ----------
    steps: decisions, one per device and epoch. chunks: parts of the training; the network is evaluated and saved after each.
    width: of the hidden layers. learning_rate, batch, buffer, target_every: of the optimiser and the replay buffer, in steps.
    explore_share: of the steps over which the chance of a random action falls to epsilon_min.
    safe_factor: see `QSettings`.
    """

    steps: int = 20_000
    chunks: int = 10
    width: int = 128
    learning_rate: float = 1e-3
    batch: int = 64
    buffer: int = 50_000
    target_every: int = 500
    explore_share: float = 0.5
    epsilon_min: float = 0.02
    safe_factor: float | None = 1.0


def learn(problem: Problem, conditions: Sequence[Condition], settings: DqnSettings, seed: int, *,
          predicted: ResponseSource | None = None, checkpoint: Path | None = None,
          on_progress: Progress = lambda share, text: None) -> Learned:
    """Train, and read off the greedy joint action of each condition.

    The discount is 1 within an epoch and 0 across epochs: conditions are exogenous, so nothing is lost. checkpoint: a folder to
    go on from and to write to after every chunk; each chunk is seeded by its number. The policy is the best of the chunks'
    evaluations on the expected response times.
    Raises MissingToolError without the extra `rl`, InputError when the checkpoint is of another training.
    """
    if not problem.feasible.any():
        return infeasible(conditions)
    dqn = _dqn_class()
    from testbed.policies.orchestration.environment import OrchestrationEnv

    for condition in conditions:
        problem.check_penalty(condition)
    env = OrchestrationEnv(problem, conditions, settings.safe_factor, predicted)
    best = np.array([optimum(problem, c).mean_s for c in conditions])
    about = {"settings": asdict(settings), "seed": seed, "conditions": [c.key for c in conditions]}
    start, curve, chosen = 0, [], {}  # type: tuple[int, list[tuple[int, float, float]], dict[str, tuple[int, ...]]]
    model: Any = None
    if checkpoint is not None and (checkpoint / "state.json").is_file():
        saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if {k: saved.get(k) for k in about} != about:
            raise InputError("is a checkpoint of another training", file=checkpoint, remedy="remove the folder")
        start, curve = saved["chunk"], [(int(e), m, g) for e, m, g in saved["curve"]]
        chosen = {key: tuple(action) for key, action in saved["actions"].items()}
        env.cost = Exploration(**saved["cost"])
        model = dqn.load(checkpoint / f"model{start}.zip", env=env, device="cpu")
        model.load_replay_buffer(checkpoint / f"replay{start}.pkl")
    if model is None:
        model = dqn("MlpPolicy", env, learning_rate=settings.learning_rate, buffer_size=settings.buffer,
                    learning_starts=min(1000, settings.steps // 4), batch_size=settings.batch, gamma=1.0, train_freq=4,
                    gradient_steps=2, target_update_interval=settings.target_every, seed=seed, device="cpu",
                    exploration_fraction=settings.explore_share, exploration_final_eps=settings.epsilon_min,
                    policy_kwargs={"net_arch": [settings.width, settings.width]})
    size = settings.steps // settings.chunks
    for chunk in range(start, settings.chunks):
        model.set_random_seed(seed + 1000 * chunk)
        model.set_env(env, force_reset=True)
        # exploration falls over all chunks, so it is set per chunk and kept within it
        share = min(1.0, chunk / max(1.0, settings.explore_share * settings.chunks))
        epsilon = 1.0 + share * (settings.epsilon_min - 1.0)
        model.exploration_schedule = lambda _, epsilon=epsilon: epsilon
        model.learn(size, reset_num_timesteps=chunk == 0, progress_bar=False)
        found = {c.key: greedy(model, env, i) for i, c in enumerate(conditions)}
        times = np.array([problem.mean_s(c)[problem.index(found[c.key])] if problem.feasible[problem.index(found[c.key])]
                          else problem.penalty_s for c in conditions])
        if not curve or times.mean() < min(mean for _, mean, _ in curve):
            chosen = found
        curve.append(((chunk + 1) * size, float(times.mean()), float((times / best - 1).mean())))
        on_progress((chunk + 1) / settings.chunks, f"DQN, step {(chunk + 1) * size}")
        if checkpoint is not None:
            _save(checkpoint, model, chunk + 1,
                  {**about, "chunk": chunk + 1, "curve": curve, "actions": chosen, "cost": asdict(env.cost)})
    return Learned(dict(chosen), pd.DataFrame(curve, columns=["epoch", "mean_s", "gap"]), env.cost)


def greedy(model: Any, env: OrchestrationEnv, condition: int) -> tuple[int, ...]:
    """The joint action that the network prefers, device after device, in the condition of this place."""
    observation, _ = env.reset(options={"condition": condition})
    for _ in range(env.problem.devices - 1):
        observation = _decide(model, env, observation)
    action, _ = model.predict(observation, deterministic=True)
    allowed = env.allowed()
    env.chosen.append(int(action) if allowed[int(action)] else int(np.argmax(allowed)))
    return tuple(env.chosen)


def _decide(model: Any, env: OrchestrationEnv, observation: Any) -> Any:
    action, _ = model.predict(observation, deterministic=True)
    return env.step(action)[0]


def _save(folder: Path, model: Any, chunk: int, state: dict[str, Any]) -> None:
    """The network and its replay buffer first, then the state that points to them; the chunk before is removed last."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / f"model{chunk}.zip")
    model.save_replay_buffer(folder / f"replay{chunk}.pkl")
    write_text_atomic(folder / "state.json", json.dumps(state))
    for name in (f"model{chunk - 1}.zip", f"replay{chunk - 1}.pkl"):
        (folder / name).unlink(missing_ok=True)


def _dqn_class() -> Any:
    try:
        from stable_baselines3 import DQN
    except ImportError:
        raise MissingToolError("DQN needs gymnasium and stable-baselines3",
                               remedy="install the extra: pip install -c constraints.txt 'testbed[rl]'") from None
    return DQN


def fingerprint(problem: Problem, conditions: Sequence[Condition], settings: DqnSettings, seed: int) -> str:
    """Names a training by all that it depends on; 16 hexadecimal digits."""
    about = (problem.devices, problem.ladder, problem.actions, problem.accuracy, problem.source, problem.constraint,
             problem.penalty_s, [c.key for c in conditions], settings, seed)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]
