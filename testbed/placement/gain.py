"""Cost, gain and subgradient of an allocation in one slot, vectorised over all request types.

Everywhere: `demand` r (R,) requests, `potential` l (R, K) of `Problem.potential`, `allocation` x or y (V, M) in [0, 1].
Permanent models count as allocated. z = allocation * l; requests fill the options cheapest first.
"""

from __future__ import annotations

import numpy as np

from testbed.placement.problem import BoolArray, FloatArray, IntArray, Problem


def ranked(problem: Problem, allocation: FloatArray | BoolArray) -> FloatArray:
    """The allocation in the order of the options, (R, K), with permanent models at 1."""
    full = np.where(problem.pinned, 1.0, allocation)
    result: FloatArray = full.ravel()[problem.options.flat]
    return result


def served(problem: Problem, demand: FloatArray, potential: FloatArray, allocation: FloatArray | BoolArray) -> FloatArray:
    """Requests that every option serves, (R, K): min(z_k, max(0, r - sum of z before k))."""
    z = ranked(problem, allocation) * potential
    filled = np.minimum(np.cumsum(z, axis=1), demand[:, None])
    result: FloatArray = np.diff(filled, axis=1, prepend=0.0)
    return result


def cost_ms(problem: Problem, demand: FloatArray, potential: FloatArray, allocation: FloatArray | BoolArray) -> float:
    """Cost of the slot, summed over its requests (ms)."""
    return float((served(problem, demand, potential, allocation) * problem.options.cost_ms).sum())


def gain_ms(problem: Problem, demand: FloatArray, potential: FloatArray, allocation: FloatArray | BoolArray) -> float:
    """G: what the allocation saves against the permanent models alone, summed over the slot's requests (ms)."""
    nothing = np.zeros(problem.pinned.shape, dtype=bool)
    return cost_ms(problem, demand, potential, nothing) - cost_ms(problem, demand, potential, allocation)


def gain_telescoped_ms(problem: Problem, demand: FloatArray, potential: FloatArray,
                       allocation: FloatArray | BoolArray) -> float:
    """G in its other form: sum over ranks of (gamma_k+1 - gamma_k) * (min(r, Z_k(x)) - min(r, Z_k(omega)))."""
    nothing = np.zeros(problem.pinned.shape, dtype=bool)
    step = np.diff(problem.options.cost_ms, axis=1)
    filled = [np.minimum(np.cumsum(ranked(problem, a) * potential, axis=1), demand[:, None])[:, :-1]
              for a in (allocation, nothing)]
    return float((step * (filled[0] - filled[1])).sum())


def worst_needed(demand: FloatArray, z: FloatArray) -> IntArray:
    """K* (R,): the first rank at which the capacity z (R, K) so far covers the demand; the last one if none does."""
    enough = np.cumsum(z, axis=1) >= demand[:, None]
    first = np.argmax(enough, axis=1)
    last: IntArray = np.where(enough.any(axis=1), first, z.shape[1] - 1)
    return last


def subgradient(problem: Problem, demand: FloatArray, potential: FloatArray, allocation: FloatArray) -> FloatArray:
    """A subgradient of the concave gain at `allocation`, (V, M), in ms.

    g(v, m) = sum over request types with rank(v, m) < K* of l * (gamma_K* - cost(v, m)): what one more copy would save.
    """
    options = problem.options
    last = worst_needed(demand, ranked(problem, allocation) * potential)
    saved = np.maximum(np.take_along_axis(options.cost_ms, last[:, None], axis=1) - options.cost_ms, 0.0)  # (R, K)
    total = np.bincount(options.flat.ravel(), weights=(saved * potential).ravel(), minlength=problem.pinned.size)
    return np.asarray(total, dtype=np.float64).reshape(problem.pinned.shape)
