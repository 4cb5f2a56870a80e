"""Bregman projection: optimality conditions, the sorting algorithm, scipy; many rows, extreme values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, root

from testbed.placement.projection import project, start


def one(y: np.ndarray, s: np.ndarray, b: float) -> np.ndarray:
    return np.exp(project(np.log(y)[None], s[None], np.array([b]), np.ones((1, len(y)), dtype=bool)))[0]


def by_sorting(y: np.ndarray, s: np.ndarray, b: float) -> np.ndarray:
    """The specification's O(M log M) search: try k = 0, 1, ... entries at the cap."""
    if s.sum() <= b:
        return np.ones(len(y))
    order = np.argsort(-y)
    for k in range(len(y)):
        c = (b - s[order[:k]].sum()) / (s[order[k:]] * y[order[k:]]).sum()
        if c * y[order[k]] <= 1 and (k == 0 or c * y[order[k - 1]] >= 1):
            result = np.minimum(1.0, c * y)
            result[order[:k]] = 1.0
            return result
    raise AssertionError("one k fits")


@pytest.mark.parametrize("seed", range(10))
def test_against_a_generic_solver(seed: int) -> None:
    """scipy's SLSQP minimises the Bregman divergence under the constraints, to about 1e-8 (the divergence is flat at its
    minimum); scipy's root finder then solves its optimality conditions, with the caps that SLSQP found, to 1e-12."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    y, s = rng.exponential(1.0, n) + 1e-3, rng.uniform(1.0, 5.0, n)
    b = float(rng.uniform(0.2, 0.9) * s.sum())
    ours = one(y, s, b)
    found = minimize(lambda x: float((s * (x * np.log(x / y) - x + y)).sum()), np.full(n, b / s.sum()),
                     jac=lambda x: s * np.log(x / y), method="SLSQP", bounds=[(1e-12, 1.0)] * n,
                     constraints={"type": "eq", "fun": lambda x: s @ x - b, "jac": lambda x: s},
                     options={"ftol": 1e-18, "maxiter": 2000}).x
    np.testing.assert_allclose(ours, found, atol=1e-7)
    free = found < 1 - 1e-6

    def conditions(unknown: np.ndarray) -> np.ndarray:  # x of the free entries, and the multiplier
        x = found.copy()
        x[~free], x[free] = 1.0, unknown[:-1]
        return np.append(s[free] * (np.log(x[free] / y[free]) - unknown[-1]), s @ x - b)

    guess = np.append(found[free], np.log(found[free] / y[free]).mean())
    solved = root(conditions, guess, tol=1e-14)
    np.testing.assert_allclose(ours[free], solved.x[:-1], atol=1e-9)
    np.testing.assert_allclose(ours[~free], 1.0, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(0.1, 100.0)), min_size=1, max_size=30), st.floats(0.01, 1.5))
def test_invariants(entries: list[tuple[float, float]], fraction: float) -> None:
    y, s = np.array([e[0] for e in entries]), np.array([e[1] for e in entries])
    b = fraction * s.sum()
    x = one(y, s, b)
    assert ((x >= 0) & (x <= 1)).all()
    assert s @ x == pytest.approx(min(b, s.sum()), rel=1e-9)
    ratio = x / y
    free = x < 1 - 1e-9
    if free.any():
        c = ratio[free].mean()
        np.testing.assert_allclose(ratio[free], c, rtol=1e-9)  # uncapped entries share one ratio
        assert (c * y[~free] >= 1 - 1e-7).all()  # and the capped ones would pass 1 with it
    np.testing.assert_allclose(one(np.maximum(x, 1e-300), s, b), x, rtol=1e-9)  # idempotent
    np.testing.assert_allclose(x, by_sorting(y, s, b), rtol=1e-8)


def test_rows_are_independent_and_masked() -> None:
    rng = np.random.default_rng(3)
    log_y, s = rng.normal(0, 3, (40, 25)), rng.uniform(1, 9, (40, 25))
    may = rng.random((40, 25)) < 0.7
    b = rng.uniform(0, 1.2, 40) * s.sum(axis=1)
    b[7] = 0.0
    may[11] = False
    x = np.exp(project(log_y, s, b, may))
    assert (x[~may] == 0).all() and (x[7] == 0).all()
    for v in range(40):
        if b[v] > 0 and may[v].any():
            np.testing.assert_allclose(x[v, may[v]], by_sorting(np.exp(log_y[v, may[v]]), s[v, may[v]], b[v]), rtol=1e-9)


def test_values_beyond_the_range_of_floats_do_not_underflow() -> None:
    log_y = np.array([[0.0, -2000.0, -2001.0]])
    x = np.exp(project(log_y, np.ones((1, 3)), np.array([2.0]), np.ones((1, 3), dtype=bool)))[0]
    np.testing.assert_allclose(x, [1.0, np.e / (1 + np.e), 1 / (1 + np.e)], rtol=1e-12)


def test_the_start_is_the_same_share_of_everything() -> None:
    s = np.array([[2.0, 3.0, 5.0], [2.0, 3.0, 5.0]])
    x = np.exp(start(s, np.array([4.0, 99.0]), np.ones((2, 3), dtype=bool)))
    np.testing.assert_allclose(x, [[0.4] * 3, [1.0] * 3])
