"""Static greedy: with the demand in hindsight, add the model with the largest marginal gain until nothing fits or helps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from testbed.placement.base import Fixed
from testbed.placement.gain import ranked
from testbed.placement.problem import BoolArray, FloatArray, IntArray, Problem

_CHUNK = 4_000_000  # elements of the largest intermediate array


def marginals(problem: Problem, demand: FloatArray, potential: FloatArray, z: FloatArray, types: IntArray) -> FloatArray:
    """What adding each option alone would gain, (len(types), K) in ms, given capacities z (R, K) that are held.

    Capacity l at rank k raises every prefix sum from k on: sum over k' >= k of (gamma_k'+1 - gamma_k') times
    min(r, Z_k' + l) - min(r, Z_k').
    """
    cost = problem.options.cost_ms[types]
    step = np.diff(cost, axis=1, append=cost[:, -1:])  # (n, K); the last rank has no next
    filled, r = np.cumsum(z[types], axis=1), demand[types][:, None]
    result = np.zeros(cost.shape)
    width = cost.shape[1]
    later = np.triu(np.ones((width, width)))  # [k, k'] = k' >= k
    rows = max(1, _CHUNK // width**2)
    for start in range(0, len(types), rows):
        part = slice(start, start + rows)
        now = np.minimum(filled[part], r[part])[:, None, :]  # (n, 1, K)
        raised = np.minimum(filled[part][:, None, :] + potential[types[part]][:, :, None], r[part][:, None])  # (n, K, K)
        result[part] = np.einsum("nkj,kj,nj->nk", raised - now, later, step[part], optimize=True)
    return result


@dataclass
class _Phase:
    """One mean demand, how many slots it lasts, and the capacities that the placement so far gives it."""

    demand: FloatArray
    slots: float
    potential: FloatArray
    z: FloatArray
    gains: FloatArray = field(default_factory=lambda: np.zeros(0))  # (R, K)


def static_greedy(problem: Problem, demands: FloatArray, slots: FloatArray, *, per_size: bool = False) -> BoolArray:
    """Placement (V, M) for mean demands (P, R) that last `slots` (P,) each.

    `per_size`: take the largest gain per byte instead of the largest gain. Ends when nothing that fits has a gain.
    """
    every = np.arange(problem.num_types)
    phases = []
    for demand, lasting in zip(demands, slots, strict=True):
        potential = problem.potential(demand)
        z = ranked(problem, np.zeros(problem.pinned.shape)) * potential
        phases.append(_Phase(demand, float(lasting), potential, z, marginals(problem, demand, potential, z, every)))
    flat = problem.options.flat
    total = np.zeros(problem.pinned.size)
    for phase in phases:
        total += phase.slots * np.bincount(flat.ravel(), weights=phase.gains.ravel(), minlength=total.size)
    placed = np.zeros(problem.pinned.shape, dtype=bool)
    left = problem.free_bytes.copy()
    size = problem.size_bytes.ravel()
    passes = [np.flatnonzero((problem.path == v).any(axis=1)) for v in range(len(problem.nodes))]
    while True:
        fits = (problem.choosable & ~placed & (problem.size_bytes <= left[:, None])).ravel()
        score = np.where(fits, total / size if per_size else total, 0.0)
        pick = int(np.argmax(score))
        if score[pick] <= 1e-9 * max(1.0, float(demands.max())):
            return placed
        node, model = divmod(pick, len(problem.models))
        placed[node, model] = True
        left[node] -= problem.size_bytes[node, model]
        changed = passes[node][problem.type_task[passes[node]] == problem.task[model]]
        rank = np.argmax((flat[changed] == pick) & problem.options.valid[changed], axis=1)
        for phase in phases:
            before = phase.gains[changed]
            phase.z[changed, rank] = phase.potential[changed, rank]
            phase.gains[changed] = marginals(problem, phase.demand, phase.potential, phase.z, changed)
            # a model that is placed already shows a gain from being placed twice; it is masked by `fits`
            total += phase.slots * np.bincount(flat[changed].ravel(), weights=(phase.gains[changed] - before).ravel(),
                                               minlength=total.size)


class StaticGreedy(Fixed):
    """The placement of `static_greedy`, kept for all slots. `demands` (P, R) and `slots` (P,) are the hindsight."""

    id = "sg"
    hindsight = True

    def __init__(self, problem: Problem, seed: int, *, demands: FloatArray, slots: FloatArray, per_size: bool = False) -> None:
        super().__init__(problem, seed, static_greedy(problem, demands, slots, per_size=per_size))
