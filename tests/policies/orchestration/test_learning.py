"""Learning: Q* of a toy in closed form, exhaustive optimum, determinism, checkpoints, safe sets, infeasible, the table guard, DQN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.policies.orchestration import dqn
from testbed.policies.orchestration.conditions import Condition, Node, all_links, preset
from testbed.policies.orchestration.models import MOBILENET_V1, accuracies
from testbed.policies.orchestration.oracle import Constraint, Problem, optimum
from testbed.policies.orchestration.qlearning import QSettings, QTable, learn
from testbed.policies.orchestration.response import Actions, Contention, Platform
from testbed.policies.orchestration.saved import Saved, entry_of, read

LADDER, ACTIONS = MOBILENET_V1, Actions.faithful(8)


def problem(devices: int, constraint: str, noise: float = 0.0) -> Problem:
    model = Contention(Platform(), LADDER, ACTIONS, noise)
    return Problem(devices, LADDER, ACTIONS, accuracies(LADDER, "top5"), model, Constraint.parse(constraint))


def test_q_learning_reaches_the_closed_form_of_a_two_state_toy() -> None:
    """Action a leads to state a; rewards -1, -2 in state 0 and -3, -0.5 in state 1; discount 0.5.

    In state 1 staying is best: V(1) = -0.5 / (1 - 0.5) = -1. V(0) = max(-1 + V(0)/2, -2 + V(1)/2) = max(-2, -2.5) = -2.
    """
    reward = np.array([[-1.0, -2.0], [-3.0, -0.5]])
    table = QTable(2, 2, QSettings(discount=0.5, learning_rate=0.5, epsilon=0.5, decay=0, epsilon_min=0.5), seed=3)
    for _ in range(2000):
        table.step(lambda s, a, rng: (reward[s, a], a))
    assert table.values == pytest.approx(np.array([[-2.0, -2.5], [-4.0, -1.0]]), abs=1e-6)


@pytest.mark.parametrize("constraint", ["min", "80%", "85%", "89%", "max"])
def test_three_devices_learn_the_exhaustive_optimum(constraint: str) -> None:
    p, conditions = problem(3, constraint), [preset("EXP-A", 3), preset("EXP-C", 3)]
    found = learn(p, conditions, QSettings(epochs=20_000), seed=1)
    for condition in conditions:
        action = found.actions[condition.key]
        assert action is not None and p.feasible[p.index(action)]
        assert p.mean_s(condition)[p.index(action)] == pytest.approx(optimum(p, condition).mean_s)
    assert found.curve["gap"].iloc[-1] == pytest.approx(0, abs=1e-9)


def test_learning_without_a_safe_set_ends_at_the_same_optimum_but_violates_on_the_way() -> None:
    p, condition = problem(3, "89%"), preset("EXP-A", 3)
    safe = learn(p, [condition], QSettings(), seed=1)
    free = learn(p, [condition], QSettings(safe_factor=None), seed=1)
    best = optimum(p, condition).mean_s
    for found in (safe, free):
        assert p.mean_s(condition)[p.index(found.actions[condition.key] or ())] == pytest.approx(best)
    assert safe.cost.violations == 0 < free.cost.violations
    local = p.mean_s(condition)[0]
    assert safe.cost.worst_s <= local + 1e-9 < free.cost.worst_s
    assert safe.cost.total_s == pytest.approx(safe.cost.epochs * best + safe.cost.excess_s)


def test_what_is_infeasible_gets_no_policy() -> None:
    found = learn(problem(2, "95%"), [preset("EXP-A", 2)], QSettings(), seed=1)
    assert not found.feasible and list(found.actions.values()) == [None]
    assert not dqn.learn(problem(2, "95%"), [preset("EXP-A", 2)], dqn.DqnSettings(), seed=1).feasible


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    traces = []
    for seed in (1, 1, 2):
        trace: list[tuple[int, int]] = []
        learn(problem(2, "85%", noise=0.1), list(all_links(2))[:4], QSettings(epochs=1500), seed,
              on_epoch=lambda s, a, trace=trace: trace.append((s, a)))  # type: ignore[misc]
        traces.append(trace)
    assert traces[0] == traces[1] != traces[2] and len(traces[0]) == 1500


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    p, conditions, settings = problem(2, "85%", noise=0.1), list(all_links(2))[:3], QSettings(epochs=2000)
    whole = learn(p, conditions, settings, 1)
    file, seen = tmp_path / "c.npz", 0

    def stop(state: int, action: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 1300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(p, conditions, settings, 1, checkpoint=file, every=500, on_epoch=stop)
    again = learn(p, conditions, settings, 1, checkpoint=file, every=500)
    assert again.actions == whole.actions and again.cost == whole.cost
    assert again.curve.equals(whole.curve)
    with pytest.raises(InputError, match="another training"):
        learn(p, conditions, settings, 2, checkpoint=file)


def test_a_table_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs a table of 2 MB.*use dqn"):
        QTable(10, 10_000, QSettings(limit_bytes=1_500_000))
    QTable(10, 10_000, QSettings(limit_bytes=1_600_000))


def test_the_environment_conforms_to_gymnasium_and_its_return_is_the_reward_of_the_joint_action() -> None:
    from gymnasium.utils.env_checker import check_env

    from testbed.policies.orchestration.environment import OrchestrationEnv

    conditions = [preset("EXP-A", 2), Condition((Node(busy=8), Node(weak=True)))]
    p = problem(2, "80%")
    check_env(OrchestrationEnv(p, conditions), skip_render_check=True)
    for i, condition in enumerate(conditions):
        free = OrchestrationEnv(p, conditions, safe_factor=None)
        for index in range(0, 100, 7):
            free.reset(options={"condition": i})
            rewards = [float(free.step(k)[1]) for k in p.joint[index]]
            assert rewards[0] == 0
            assert rewards[1] == pytest.approx(p.rewards(condition)[index] / p.mean_s(condition)[0])


def test_whatever_is_asked_the_safe_environment_stays_in_the_safe_set() -> None:
    from testbed.policies.orchestration.environment import OrchestrationEnv

    p, condition = problem(3, "89%"), preset("EXP-A", 3)
    env, rng = OrchestrationEnv(p, [condition]), np.random.default_rng(1)
    safe = p.safe_set(condition, 1.0)
    for _ in range(300):
        env.reset()
        for _ in range(3):
            env.step(np.int64(rng.integers(10)))
        assert safe[p.index(env.chosen)]
    assert env.cost.violations == 0 and env.cost.epochs == 300


def test_dqn_learns_two_devices_resumes_and_is_deterministic(tmp_path: Path) -> None:
    p, conditions = problem(2, "89%"), [preset("EXP-A", 2)]
    settings = dqn.DqnSettings(steps=1600, chunks=4, width=32, buffer=2000)
    found = dqn.learn(p, conditions, settings, 1, checkpoint=tmp_path)
    assert found.curve["gap"].min() <= 0.05
    action = found.actions[conditions[0].key]
    assert action is not None and p.feasible[p.index(action)]
    again = dqn.learn(p, conditions, settings, 1, checkpoint=tmp_path)  # nothing is left to do
    assert again.actions == found.actions and again.curve.equals(found.curve) and again.cost == found.cost
    assert dqn.learn(p, conditions, settings, 1).curve.equals(found.curve)
    with pytest.raises(InputError, match="another training"):
        dqn.learn(p, conditions, replace(settings, width=16), 1, checkpoint=tmp_path)


def test_saved_policies_are_read_back_and_say_what_they_lack(tmp_path: Path) -> None:
    condition, names = preset("EXP-A", 2), ACTIONS.names(LADDER)
    entries = []
    for constraint in ("89%", "95%"):
        learned = learn(problem(2, constraint), [condition], QSettings(epochs=500), 1)
        entries.append(entry_of(constraint, "qlearning", learned, names, QSettings(epochs=500), 1))
    saved = Saved("two", 2, tuple(v.name for v in LADDER), "analytic", tuple(entries))
    saved.write(tmp_path / "two.json")
    back = read(tmp_path / "two.json")
    assert back == saved
    assert back.action("89%", condition) == saved.action("89%", condition) and len(back.entry("89%").curve) == 20
    for constraint, asked, words in (("95%", condition, "infeasible"), ("80%", condition, "not trained for this constraint"),
                                     ("89%", preset("EXP-D", 2), "not trained for this condition")):
        with pytest.raises(InputError, match=words):
            back.action(constraint, asked)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="no orchestration policy"):
        read(tmp_path / "bad.json")
