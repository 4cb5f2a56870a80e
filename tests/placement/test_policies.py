"""Greedy, OLAG, caches and the engine against enumeration, hand-made accounts and invariants."""

import itertools

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.placement.base import Fixed, Slot, check
from testbed.placement.caches import Lfu, Lru, reaching
from testbed.placement.engine import run
from testbed.placement.gain import gain_ms, ranked, served
from testbed.placement.greedy import marginals, static_greedy
from testbed.placement.olag import Olag
from testbed.placement.problem import Problem
from testbed.placement.registry import BUILT_IN
from tests.placement.networks import random_demand, random_tree


def chain(*, size: list[float], delay_ms: list[float], accuracy: list[float], task: list[int], budget: float,
          capacity: list[float], rtt_ms: float = 100.0, alpha_ms: float = 1.0) -> Problem:
    """One edge below one repository; the repository holds a perfect model of every task (the last ones), 0 ms."""
    tasks = max(task) + 1
    m = len(task) + tasks
    pinned = np.zeros((2, m), dtype=bool)
    pinned[1, len(task):] = True
    sizes = np.array([*size, *[1e6] * tasks])
    return Problem(("edge", "cloud"), np.array([0, 1]), ("edge", "cloud"), tuple(f"m{k}" for k in range(m)),
                   np.array([*task, *range(tasks)]), np.array([*accuracy, *[100.0] * tasks]), np.stack([sizes, sizes]),
                   np.tile([*delay_ms, *[0.0] * tasks], (2, 1)),
                   np.stack([[*capacity, *[0.0] * tasks], [*[0.0] * len(task), *[np.inf] * tasks]]),
                   np.array([budget, 1e6 * tasks]), pinned, np.arange(tasks), np.tile([0, 1], (tasks, 1)),
                   np.tile([0.0, rtt_ms], (tasks, 1)), alpha_ms)


@pytest.mark.parametrize("seed", range(6))
def test_marginals_are_differences_of_the_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_tree(rng, nodes=4)
    demand = random_demand(rng, problem)
    potential = problem.potential(demand)
    x = (rng.random(problem.pinned.shape) < 0.4) & ~problem.pinned
    total = np.zeros(problem.pinned.size)
    np.add.at(total, problem.options.flat, marginals(problem, demand, potential, ranked(problem, x) * potential,
                                                     np.arange(problem.num_types)) * problem.options.valid)
    here = gain_ms(problem, demand, potential, x)
    for v, m in np.argwhere(~x & ~problem.pinned):
        more = x.copy()
        more[v, m] = True
        assert total.reshape(x.shape)[v, m] == pytest.approx(gain_ms(problem, demand, potential, more) - here, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_size", [False, True])
def test_greedy_follows_the_definition_and_keeps_half_of_the_best(seed: int, per_size: bool) -> None:
    rng = np.random.default_rng(seed)
    base = random_tree(rng, nodes=3, tasks=2, models_per_task=2)
    # equal sizes make the budgets a partition matroid, where greedy keeps at least half
    fields = {k: getattr(base, k) for k in base.__dataclass_fields__}
    problem = Problem(**{**fields, "size_bytes": np.ones_like(base.size_bytes), "budget_bytes": np.array([3.0, 1.0, 2.0])})
    demands, slots = np.stack([random_demand(rng, problem) for _ in range(2)]), np.array([2.0, 1.0])

    def value(x: np.ndarray) -> float:
        return sum(s * gain_ms(problem, d, problem.potential(d), x) for d, s in zip(demands, slots, strict=True))

    by_hand = np.zeros(problem.pinned.shape, dtype=bool)
    while True:
        steps = []
        for v, m in np.argwhere(problem.choosable & ~by_hand):
            more = by_hand.copy()
            more[v, m] = True
            if (more * problem.size_bytes).sum(axis=1)[v] <= problem.free_bytes[v]:
                steps.append((value(more) - value(by_hand), v, m))
        if not steps or max(steps)[0] <= 1e-6:
            break
        by_hand[max(steps)[1:]] = True
    placed = static_greedy(problem, demands, slots, per_size=per_size)
    assert value(placed) == pytest.approx(value(by_hand))
    free = np.argwhere(problem.choosable)
    best = 0.0
    for bits in itertools.product([False, True], repeat=len(free)):
        x = np.zeros(problem.pinned.shape, dtype=bool)
        x[tuple(free[list(bits)].T)] = True
        if ((problem.size_bytes * x).sum(axis=1) <= problem.free_bytes).all():
            best = max(best, value(x))
    assert best / 2 <= value(placed) <= best + 1e-6


def test_greedy_by_gain_and_by_gain_per_size_differ_as_they_should() -> None:
    # the large model saves 90 ms for all; two small ones save 80 ms for half of the requests each
    problem = chain(size=[10, 4, 4], delay_ms=[10, 20, 20], accuracy=[100, 100, 100], task=[0, 0, 0], budget=10,
                    capacity=[100, 50, 50])
    demand, slots = np.array([[100.0]]), np.ones(1)
    assert static_greedy(problem, demand, slots)[0].tolist() == [True, False, False, False]
    assert static_greedy(problem, demand, slots, per_size=True)[0].tolist() == [False, True, True, False]


def slot_of(problem: Problem, demand: np.ndarray, placed: np.ndarray, index: int = 0) -> Slot:
    potential = problem.potential(demand)
    return Slot(index, demand, potential, placed, served(problem, demand, potential, placed))


def test_olag_takes_the_most_valuable_byte_and_then_what_is_left() -> None:
    # 100 requests would pay 100 ms in the cloud; m0 serves all of them at 10 ms, m1 and its copy m2 serve 60 each at 40 ms
    problem = chain(size=[10, 5, 5], delay_ms=[10, 40, 40], accuracy=[100, 100, 100], task=[0, 0, 0], budget=15,
                    capacity=[100, 60, 60])
    policy = Olag(problem, 1)
    demand = np.array([100.0])
    placed = policy.update(slot_of(problem, demand, policy.first()))
    # m0: 90 * 100 / 10 = 900; m1: 60 * 60 / 5 = 720: m0 is first and covers all; nothing is left for m1
    assert placed[0].tolist() == [True, False, False, False]
    small = chain(size=[10, 5, 5], delay_ms=[10, 40, 40], accuracy=[100, 100, 100], task=[0, 0, 0], budget=9,
                  capacity=[100, 60, 60])
    policy = Olag(small, 1)
    assert policy.update(slot_of(small, demand, policy.first()))[0].tolist() == [False, True, False, False]  # 9 fits one
    wide = chain(size=[30, 5, 5], delay_ms=[10, 40, 40], accuracy=[100, 100, 100], task=[0, 0, 0], budget=35,
                 capacity=[100, 60, 60])
    policy = Olag(wide, 1)
    # m0: 300 per byte; m1: 720 first, then its copy for the 40 requests that are left: 480, then m0 has none left
    assert policy.update(slot_of(wide, demand, policy.first()))[0].tolist() == [False, True, True, False]


def test_olag_keeps_counting_for_what_it_holds() -> None:
    problem = chain(size=[5, 5], delay_ms=[10, 10], accuracy=[100, 100], task=[0, 1], budget=5, capacity=[100, 100])
    policy = Olag(problem, 1)
    demand, placed = np.array([90.0, 30.0]), policy.first()
    for t in range(5):
        placed = policy.update(slot_of(problem, demand, placed, t))
        assert placed[0].tolist() == [True, False, False, False]
    for t in range(20):  # demand turns: the counters need time
        placed = policy.update(slot_of(problem, demand[::-1].copy(), placed, 5 + t))
    assert placed[0].tolist() == [False, True, False, False]


def test_lfu_and_lru_hold_what_their_names_say() -> None:
    problem = chain(size=[1, 1, 1], delay_ms=[1, 1, 1], accuracy=[90, 90, 90], task=[0, 1, 2], budget=2, capacity=[1e6] * 3)
    lfu, lru = Lfu(problem, 1), Lru(problem, 1)
    often = np.array([50.0, 30.0, 0.0])
    for policy in (lfu, lru):
        x = policy.first()
        for t in range(4):
            x = policy.update(slot_of(problem, often, x, t))
        assert x[0, :3].tolist() == [True, True, False]
    new = np.array([0.0, 30.0, 20.0])
    assert lru.update(slot_of(problem, new, x, 4))[0, :3].tolist() == [False, True, True]
    assert lfu.update(slot_of(problem, new, x, 4))[0, :3].tolist() == [True, True, False]


def test_the_last_of_n_requests_is_drawn_as_such() -> None:
    problem = chain(size=[1, 1], delay_ms=[1, 1], accuracy=[90, 90], task=[0, 1], budget=1, capacity=[1e6] * 2)
    first = 0
    for seed in range(2000):
        policy = Lru(problem, seed)
        first += int(policy.update(slot_of(problem, np.array([3.0, 1.0]), policy.first()))[0, 0])
    assert first / 2000 == pytest.approx(0.75, abs=4.5 * np.sqrt(0.75 * 0.25 / 2000))  # the last of 4 is one of the 3


def test_a_cache_adds_a_copy_only_for_what_the_first_has_no_room_for() -> None:
    problem = chain(size=[1, 1, 1], delay_ms=[1, 1, 1], accuracy=[90, 90, 90], task=[0, 0, 0], budget=3, capacity=[40] * 3)
    policy = Lfu(problem, 1)
    assert policy.update(slot_of(problem, np.array([70.0]), policy.first()))[0, :3].tolist() == [True, True, False]


def test_requests_that_reach_a_node_are_those_not_served_below() -> None:
    rng = np.random.default_rng(2)
    problem = random_tree(rng, nodes=7)
    demand = random_demand(rng, problem)
    slot = slot_of(problem, demand, rng.random(problem.pinned.shape) < 0.3)
    here = reaching(problem, slot)
    for v in range(7):
        for i in range(problem.num_tasks):
            want = 0.0
            for r in np.flatnonzero(problem.type_task == i):
                if v in problem.path[r]:
                    place = problem.path[r].tolist().index(v)
                    want += slot.served[r][problem.options.position[r] >= place].sum()
            assert here[v, i] == pytest.approx(want)


def test_the_engine_adds_up() -> None:
    rng = np.random.default_rng(3)
    problem = random_tree(rng, nodes=6)
    demand = np.stack([random_demand(rng, problem) for _ in range(10)])
    x = problem.choosable & (rng.random(problem.pinned.shape) < 0.3)
    left = problem.free_bytes - (problem.size_bytes * x).sum(axis=1)
    x[left < 0] = False
    trace = run(problem, Fixed(problem, 0, x), demand)
    for t in range(10):
        potential, r = problem.potential(demand[t]), demand[t].sum()
        n = served(problem, demand[t], potential, x)
        assert trace.latency_ms[t] + problem.alpha_ms * trace.inaccuracy[t] == pytest.approx((n * problem.options.cost_ms).sum() / r)
        assert trace.gain_ms[t] == pytest.approx(gain_ms(problem, demand[t], potential, x) / r)
    np.testing.assert_allclose(trace.tier_share.sum(axis=1), 1.0)
    assert trace.updates.sum() == 0 and trace.ntag_ms == pytest.approx(trace.gain_ms.mean())
    nothing = run(problem, Fixed(problem), demand)
    assert nothing.gain_ms == pytest.approx(0)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_policy_keeps_the_rules_and_gains(name: str) -> None:
    rng = np.random.default_rng(4)
    problem = random_tree(rng, nodes=8, tasks=3)
    base = random_demand(rng, problem)
    demand = rng.poisson(base, (30, len(base))).astype(float)
    cls = BUILT_IN[name]
    policy = cls(problem, 1, **({"demands": base[None], "slots": np.ones(1)} if cls.hindsight else {}))
    trace = run(problem, policy, demand)  # the engine refuses a placement that breaks the rules
    assert (trace.gain_ms >= -1e-9).all()
    greedy = run(problem, Fixed(problem, 0, static_greedy(problem, base[None], np.ones(1))), demand).ntag_ms
    assert name == "fixed" or trace.gain_ms[-10:].mean() > 0.5 * greedy


def test_bad_placements_are_refused() -> None:
    problem = random_tree(np.random.default_rng(5))
    with pytest.raises(InputError, match="permanent there"):
        check(problem, problem.pinned.copy(), "x")
    with pytest.raises(InputError, match="exceeds the budget"):
        check(problem, problem.choosable.copy(), "x")
    with pytest.raises(InputError, match="boolean array"):
        check(problem, np.zeros((1, 1), dtype=bool), "x")
