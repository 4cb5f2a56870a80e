"""Gain and subgradient: identities, monotony, concavity, messages; against a request-by-request account."""

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.placement.gain import cost_ms, gain_ms, gain_telescoped_ms, served, subgradient
from testbed.placement.messages import exchange, message_count
from testbed.placement.problem import Problem
from tests.placement.networks import random_allocation, random_demand, random_tree

SEEDS = range(12)


def by_hand(problem: Problem, demand: np.ndarray, x: np.ndarray) -> float:
    """Cost of a slot from the definition: loops, no ranking arrays; capacity shared in proportion to demand."""
    total = 0.0
    for r in range(problem.num_types):
        task, path = problem.type_task[r], [v for v in problem.path[r] if v >= 0]
        choices = []
        for place, v in enumerate(path):
            load = sum(demand[q] for q in range(problem.num_types) if problem.type_task[q] == task and v in problem.path[q])
            for m in np.flatnonzero(problem.task == task):
                held = 1.0 if problem.pinned[v, m] else x[v, m]
                share = problem.capacity[v, m] * demand[r] / load if demand[r] else 0.0
                cost = problem.path_ms[r, place] + problem.delay_ms[v, m] + problem.alpha_ms * (100 - problem.accuracy[m])
                choices.append((cost, held * min(share, demand[r])))
        left = demand[r]
        for cost, room in sorted(choices):
            total += cost * min(left, room)
            left -= min(left, room)
        assert left <= 1e-9
    return total


@pytest.mark.parametrize("seed", SEEDS)
def test_cost_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng)
    demand, x = random_demand(rng, problem), random_allocation(rng, problem)
    assert cost_ms(problem, demand, problem.potential(demand), x) == pytest.approx(by_hand(problem, demand, x), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_forms_of_the_gain_agree_and_nothing_gains_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng)
    demand, x = random_demand(rng, problem), random_allocation(rng, problem)
    potential = problem.potential(demand)
    assert gain_ms(problem, demand, potential, x) == pytest.approx(gain_telescoped_ms(problem, demand, potential, x), rel=1e-10)
    assert gain_ms(problem, demand, potential, np.zeros_like(x)) == 0.0
    assert gain_ms(problem, demand, potential, problem.pinned.astype(float)) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_gain_is_monotone_and_submodular_in_placements(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng)
    demand = random_demand(rng, problem)
    potential = problem.potential(demand)
    small = rng.random(problem.pinned.shape) < 0.3
    large = small | (rng.random(problem.pinned.shape) < 0.3)
    g_small, g_large = (gain_ms(problem, demand, potential, a) for a in (small, large))
    assert 0 <= g_small <= g_large + 1e-9
    for v, m in np.argwhere(~large)[:20]:
        more_small, more_large = small.copy(), large.copy()
        more_small[v, m] = more_large[v, m] = True
        gained_small = gain_ms(problem, demand, potential, more_small) - g_small
        gained_large = gain_ms(problem, demand, potential, more_large) - g_large
        assert gained_small >= gained_large - 1e-7


@pytest.mark.parametrize("seed", SEEDS)
def test_subgradient_inequality(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng)
    demand = random_demand(rng, problem)
    potential = problem.potential(demand)
    y = random_allocation(rng, problem)
    g, here = subgradient(problem, demand, potential, y), gain_ms(problem, demand, potential, y)
    for _ in range(20):
        other = random_allocation(rng, problem)
        assert gain_ms(problem, demand, potential, other) <= here + float((g * (other - y)).sum()) + 1e-7


@pytest.mark.parametrize("seed", range(100, 120))
def test_messages_carry_the_same_subgradient(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng, nodes=int(rng.integers(2, 12)), tasks=3)
    demand, y = random_demand(rng, problem), random_allocation(rng, problem)
    potential = problem.potential(demand)
    local, sent = exchange(problem, demand, potential, y)
    np.testing.assert_allclose(local, subgradient(problem, demand, potential, y), rtol=1e-9, atol=1e-7)
    lengths = (problem.path >= 0).sum(axis=1)
    assert sent <= 2 * lengths[demand > 0].sum()
    assert sent == message_count(problem, demand) == sum(2 * (n - 1) for n in lengths[demand > 0])


@pytest.mark.parametrize("sharing", ["proportional", "none"])
def test_no_model_serves_more_than_its_capacity(sharing: str) -> None:
    rng = np.random.default_rng(5)
    problem = random_tree(rng, nodes=9, sharing=sharing)
    demand = random_demand(rng, problem)
    potential = problem.potential(demand)
    assert (potential <= demand[:, None] + 1e-9).all()
    n = served(problem, demand, potential, np.ones(problem.pinned.shape))
    assert n.sum(axis=1) == pytest.approx(demand)
    per_model = np.bincount(problem.options.flat.ravel(), weights=n.ravel(), minlength=problem.pinned.size)
    over = per_model > problem.capacity.ravel() * (1 + 1e-9)
    assert over.any() == (sharing == "none")  # alone, each type takes the whole model


def test_a_path_must_end_at_a_repository() -> None:
    rng = np.random.default_rng(1)
    good = random_tree(rng)
    with pytest.raises(InputError, match="repository"):
        Problem(**{**{k: getattr(good, k) for k in good.__dataclass_fields__}, "pinned": np.zeros_like(good.pinned)})
    with pytest.raises(InputError, match="smaller than what the repository holds"):
        Problem(**{**{k: getattr(good, k) for k in good.__dataclass_fields__}, "budget_bytes": np.zeros(len(good.nodes))})
