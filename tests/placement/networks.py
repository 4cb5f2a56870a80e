"""Small random trees with a repository at the root, for the placement tests."""

from __future__ import annotations

import numpy as np

from testbed.placement.problem import FloatArray, Problem


def random_tree(rng: np.random.Generator, *, nodes: int = 6, tasks: int = 2, models_per_task: int = 3, alpha_ms: float = 1.0,
                budget: tuple[float, float] = (20.0, 60.0), sharing: str = "proportional", entries: str = "all") -> Problem:
    """Node 0 is the repository; every other node hangs below a random earlier one. `entries`: all nodes, or leaves."""
    parent = [-1, *(int(rng.integers(0, v)) for v in range(1, nodes))]
    link_ms = rng.uniform(1.0, 30.0, nodes)
    count = tasks * models_per_task
    task = np.repeat(np.arange(tasks), models_per_task)
    pinned = np.zeros((nodes, count), dtype=bool)
    for i in range(tasks):
        pinned[0, i * models_per_task + int(rng.integers(models_per_task))] = True
    size = np.broadcast_to(rng.uniform(5.0, 25.0, count), (nodes, count)).copy()
    capacity = np.where(pinned, np.inf, rng.uniform(5.0, 60.0, (nodes, count)))
    budgets = rng.uniform(*budget, nodes)
    budgets[0] += (size * pinned).sum(axis=1)[0]
    starts = [v for v in range(nodes) if entries == "all" or v not in parent]
    paths, trips, kinds = [], [], []
    for v in starts:
        path, trip, at = [v], [0.0], v
        while parent[at] >= 0:
            trip.append(trip[-1] + link_ms[at])
            at = parent[at]
            path.append(at)
        for i in range(tasks):
            paths.append(path)
            trips.append(trip)
            kinds.append(i)
    longest = max(map(len, paths))
    return Problem(
        tuple(f"n{v}" for v in range(nodes)), np.zeros(nodes, dtype=int), ("all",), tuple(f"m{m}" for m in range(count)), task,
        rng.uniform(30.0, 70.0, count), size, rng.uniform(2.0, 50.0, (nodes, count)), capacity, budgets, pinned, np.array(kinds),
        np.array([p + [-1] * (longest - len(p)) for p in paths]), np.array([t + [0.0] * (longest - len(t)) for t in trips]),
        alpha_ms, sharing)  # type: ignore[arg-type]


def random_demand(rng: np.random.Generator, problem: Problem) -> FloatArray:
    """Whole numbers of requests; about one type in five has none."""
    return (rng.integers(0, 120, problem.num_types) * (rng.random(problem.num_types) < 0.8)).astype(float)


def random_allocation(rng: np.random.Generator, problem: Problem) -> FloatArray:
    """Fractions; a third are 0, a third 1. They need not respect budgets."""
    y = rng.random(problem.pinned.shape)
    kind = rng.integers(0, 3, problem.pinned.shape)
    return np.where(problem.pinned, 1.0, np.where(kind == 0, 0.0, np.where(kind == 1, 1.0, y)))
