"""INFIDA on instances small enough to enumerate, or to solve exactly as a linear program; refresh, limits, learning."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from testbed.placement.base import check
from testbed.placement.engine import run
from testbed.placement.gain import gain_ms, subgradient
from testbed.placement.infida import Infida, MirrorAscent
from testbed.placement.offline import OfflineInfida, average_fractions
from testbed.placement.problem import Problem
from testbed.placement.rounding import depround
from tests.placement.networks import random_demand, random_tree

SLOTS = 400


def best_fraction(problem: Problem, demand: np.ndarray) -> float:
    """max G(y) over fractional y in the budgets, as a linear program: variables y and f_k <= min(r, Z_k(y)) per type."""
    v, m = problem.pinned.shape
    types, width = problem.options.cost_ms.shape
    step, potential = np.diff(problem.options.cost_ms, axis=1), problem.potential(demand)
    n_y, n_f = v * m, types * (width - 1)
    rows, limits = [], []
    for r in range(types):
        for k in range(width - 1):
            row = np.zeros(n_y + n_f)
            row[n_y + r * (width - 1) + k] = 1
            np.add.at(row, problem.options.flat[r, :k + 1], -potential[r, :k + 1])  # f - Z <= 0
            rows.append(row)
            limits.append(0.0)
    for node in range(v):
        row = np.zeros(n_y + n_f)
        row[node * m:(node + 1) * m] = problem.size_bytes[node] * ~problem.pinned[node]
        rows.append(row)
        limits.append(problem.free_bytes[node])
    bounds = [(1, 1) if p else (0, 1 if c else 0) for p, c in zip(problem.pinned.ravel(), problem.choosable.ravel(), strict=True)]
    bounds += [(0, demand[r]) for r in range(types) for _ in range(width - 1)]
    found = linprog(-np.concatenate([np.zeros(n_y), step.ravel()]), A_ub=np.array(rows), b_ub=limits, bounds=bounds)
    fixed = replace(problem, budget_bytes=(problem.size_bytes * problem.pinned).sum(axis=1))
    z = np.where(problem.pinned, 1.0, 0.0).ravel()[problem.options.flat] * potential
    base = (step * np.minimum(np.cumsum(z, axis=1), demand[:, None])[:, :-1]).sum()
    assert found.status == 0 and fixed.free_bytes.max() == pytest.approx(0, abs=1e-6)
    return float(-found.fun - base)


@pytest.mark.parametrize("seed", range(4))
def test_the_average_reaches_the_exact_optimum_of_the_relaxation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng, nodes=4)
    demand = random_demand(rng, problem)
    optimum = best_fraction(problem, demand)
    y = average_fractions(problem, demand[None], np.ones(1), rounds=600)
    reached = gain_ms(problem, demand, problem.potential(demand), y)
    assert (problem.size_bytes * y * ~problem.pinned).sum(axis=1) == pytest.approx(
        np.minimum(problem.free_bytes, (problem.size_bytes * problem.choosable).sum(axis=1)), rel=1e-6)
    assert 0.98 * optimum <= reached <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("normalise", ["node", "network"])
def test_the_online_fractions_reach_it_too(normalise: str) -> None:
    rng = np.random.default_rng(11)
    problem = random_tree(rng, nodes=4)
    demand = random_demand(rng, problem)
    optimum = best_fraction(problem, demand)
    ascent = MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable, eta=0.3, normalise=normalise)  # type: ignore[arg-type]
    potential, gains = problem.potential(demand), []
    for _ in range(SLOTS):
        gains.append(gain_ms(problem, demand, potential, ascent.y))
        ascent.step(subgradient(problem, demand, potential, ascent.y), problem.passing(demand), float(demand.sum()))
    assert np.mean(gains[-50:]) >= 0.97 * optimum
    assert gains[0] < 0.9 * optimum, "there was something to learn"


@pytest.mark.parametrize("seed", range(3))
def test_regret_against_every_static_placement(seed: int) -> None:
    """3 nodes, 4 models: sum of G(x_t) >= (1 - 1/e) * best static - A sqrt(T), with A = 2 * the largest slot gain."""
    rng = np.random.default_rng(seed)
    problem = random_tree(rng, nodes=3, tasks=2, models_per_task=2, budget=(20.0, 30.0))
    patterns = np.stack([random_demand(rng, problem) for _ in range(6)])  # demands that alternate at random
    demand = patterns[rng.integers(0, 6, SLOTS)]
    free = np.argwhere(problem.choosable)
    best, largest = 0.0, 0.0
    weight = np.array([(demand == p).all(axis=1).sum() for p in patterns])
    potentials = [problem.potential(p) for p in patterns]
    for bits in itertools.product([False, True], repeat=len(free)):
        x = np.zeros(problem.pinned.shape, dtype=bool)
        x[tuple(free[list(bits)].T)] = True
        if ((problem.size_bytes * x).sum(axis=1) > problem.free_bytes).any():
            continue
        gains = np.array([gain_ms(problem, p, c, x) for p, c in zip(patterns, potentials, strict=True)])
        best, largest = max(best, float(gains @ weight)), max(largest, float(gains.max()))
    ascent = MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable, eta=0.2)
    fractional = 0.0
    for r in demand:
        potential = problem.potential(r)
        fractional += gain_ms(problem, r, potential, ascent.y)
        ascent.step(subgradient(problem, r, potential, ascent.y), problem.passing(r), float(r.sum()))
    assert fractional >= 0.95 * best
    trace = run(problem, Infida(problem, seed, eta=0.2), demand)
    total = float((trace.gain_ms * demand.sum(axis=1)).sum())
    assert total >= (1 - 1 / np.e) * best - 2 * largest * np.sqrt(SLOTS)
    bernoulli = run(problem, Infida(problem, seed, eta=0.2, leftover="bernoulli"), demand)  # E[x] = y holds exactly
    assert float((bernoulli.gain_ms * demand.sum(axis=1)).sum()) >= (1 - 1 / np.e) * best


@pytest.mark.parametrize("seed", range(4))
def test_rounding_keeps_1_minus_1_over_e_of_the_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng, nodes=5)
    demand = random_demand(rng, problem)
    potential = problem.potential(demand)
    y = np.exp(MirrorAscent(problem.size_bytes, problem.free_bytes, problem.choosable).log_y) * rng.random(problem.pinned.shape)
    drawn = [gain_ms(problem, demand, potential, depround(y, problem.size_bytes, rng, "bernoulli")) for _ in range(600)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert np.mean(drawn) >= (1 - 1 / np.e) * gain_ms(problem, demand, potential, y) - 4 * error


def test_alpha_zero_ignores_accuracy() -> None:
    rng = np.random.default_rng(3)
    problem = random_tree(rng, alpha_ms=0.0)
    other = replace(problem, accuracy=rng.permutation(problem.accuracy))
    demand = np.stack([random_demand(rng, problem) for _ in range(20)])
    a, b = run(problem, Infida(problem, 1), demand), run(other, Infida(other, 1), demand)
    np.testing.assert_array_equal(a.gain_ms, b.gain_ms)
    np.testing.assert_array_equal(a.last, b.last)


def test_a_huge_alpha_ignores_distance() -> None:
    rng = np.random.default_rng(4)
    near = random_tree(rng, alpha_ms=1e7)
    far = replace(near, path_ms=near.path_ms * 50)
    demand = random_demand(rng, near)
    g = [subgradient(p, demand, p.potential(demand), np.zeros(p.pinned.shape)) for p in (near, far)]
    np.testing.assert_allclose(g[0], g[1], atol=1e-4 * g[0].max())
    assert (np.diff(near.options.inaccuracy, axis=1)[near.options.valid[:, 1:]] >= 0).all(), "options are in order of accuracy"


def test_a_budget_that_fits_everything_places_everything() -> None:
    rng = np.random.default_rng(5)
    problem = random_tree(rng, budget=(1e4, 1e4))
    policy = Infida(problem, 1)
    assert (policy.ascent.y[problem.choosable] == 1).all() and (policy.first() == problem.choosable).all()
    demand = random_demand(rng, problem)
    trace = run(problem, policy, np.stack([demand] * 3))
    best = gain_ms(problem, demand, problem.potential(demand), np.ones(problem.pinned.shape)) / demand.sum()
    np.testing.assert_allclose(trace.gain_ms, best)
    assert trace.updates.sum() == 0


@pytest.mark.parametrize("refresh", [1, 4, 10])
def test_models_are_swapped_only_at_a_refresh(refresh: int) -> None:
    rng = np.random.default_rng(6)
    problem = random_tree(rng, nodes=8)
    demand = np.stack([random_demand(rng, problem) for _ in range(40)])
    trace = run(problem, Infida(problem, 2, refresh=refresh), demand)
    slots = np.flatnonzero(trace.updates)
    assert len(slots) and (slots % refresh == 0).all()


def test_the_refresh_period_stretches() -> None:
    rng = np.random.default_rng(6)
    policy = Infida(random_tree(rng), 2, refresh=9, stretch_slots=40)
    periods = [policy.period(t) for t in range(60)]
    assert periods[0] == 1 and periods[40:] == [9] * 20 and periods == sorted(periods)


def test_coupled_sampling_swaps_less_and_gains_as_much() -> None:
    rng = np.random.default_rng(7)
    problem = random_tree(rng, nodes=10, tasks=3)
    base = random_demand(rng, problem)
    demand = rng.poisson(base, (60, len(base))).astype(float)
    coupled, fresh = ([run(problem, Infida(problem, s, eta=0.1, coupled=c), demand) for s in range(5)] for c in (True, False))
    assert sum(t.updates.sum() for t in coupled) < 0.5 * sum(t.updates.sum() for t in fresh)
    assert np.mean([t.ntag_ms for t in coupled]) == pytest.approx(np.mean([t.ntag_ms for t in fresh]), rel=0.1)


def test_a_floor_brings_a_model_back_sooner_after_a_change() -> None:
    size, budget, may = np.ones((1, 2)), np.ones(1), np.ones((1, 2), dtype=bool)
    slots_until = {}
    for floor in (0.0, 1e-3):
        ascent = MirrorAscent(size, budget, may, eta=0.5, normalise="none", floor=floor)
        for _ in range(200):
            ascent.step(np.array([[1.0, 0.0]]), np.ones(1), 1.0)
        assert ascent.y[0, 0] > 0.99
        count = 0
        while ascent.y[0, 1] < 0.5:
            ascent.step(np.array([[0.0, 1.0]]), np.ones(1), 1.0)
            count += 1
        slots_until[floor] = count
    assert slots_until[0.0] == 200  # what was learned has to be unlearned, slot by slot
    assert slots_until[1e-3] < 20


def test_no_fraction_grows_faster_than_the_largest_step() -> None:
    size, may = np.ones((1, 3)), np.ones((1, 3), dtype=bool)
    for limit, grown in ((1.0, np.e), (0.25, np.exp(0.25)), (0.0, np.exp(3.0))):
        ascent = MirrorAscent(size, np.array([0.3]), may, eta=1.0, normalise="none", max_step=limit)
        before = ascent.y
        ascent.step(np.array([[3.0, 1.0, 0.0]]), np.ones(1), 1.0)
        ratio = ascent.y[0] / before[0]
        assert ratio[0] / ratio[2] == pytest.approx(grown)  # the projection scales all alike
        assert np.log(ratio[0] / ratio[1]) == pytest.approx(np.log(grown) * 2 / 3)


@pytest.mark.parametrize("leftover", ["drop", "bernoulli", "fill"])
def test_budgets_hold_in_every_slot(leftover: str) -> None:
    rng = np.random.default_rng(8)
    problem = random_tree(rng, nodes=8)
    demand = np.stack([random_demand(rng, problem) for _ in range(30)])
    policy = Infida(problem, 3, leftover=leftover)  # type: ignore[arg-type]
    placements = []
    run(problem, policy, demand, lambda t, slot: placements.append(slot.placed))
    for x in placements:
        check(problem, x, leftover, exceeds_budget=leftover == "bernoulli")
        if leftover == "fill":
            left = problem.free_bytes - (problem.size_bytes * x).sum(axis=1)
            assert not (problem.choosable & ~x & (problem.size_bytes <= left[:, None])).any(), "nothing more would fit"


def test_same_seed_same_placements() -> None:
    rng = np.random.default_rng(9)
    problem = random_tree(rng)
    demand = np.stack([random_demand(rng, problem) for _ in range(15)])
    first, again, other = (run(problem, Infida(problem, s), demand) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.gain_ms, again.gain_ms)
    assert (first.gain_ms != other.gain_ms).any()


def test_offline_places_within_budget() -> None:
    rng = np.random.default_rng(10)
    problem = random_tree(rng)
    demands = np.stack([random_demand(rng, problem) for _ in range(2)])
    policy = OfflineInfida(problem, 1, demands=demands, slots=np.array([3.0, 1.0]))
    check(problem, policy.first(), "offline")
    assert policy.first().any()


def test_options_are_refused() -> None:
    problem = random_tree(np.random.default_rng(0))
    for options in ({"eta": 0}, {"refresh": 0}, {"schedule": "cosine"}, {"leftover": "round"}, {"floor": 1.5}, {"max_step": -1}):
        with pytest.raises(ValueError):
            Infida(problem, 1, **options)  # type: ignore[arg-type]
