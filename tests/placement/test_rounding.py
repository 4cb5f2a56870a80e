"""DepRound: budget always, marginals within what chance leaves, like draws for like fractions."""

import numpy as np
import pytest

from testbed.placement.rounding import depround

SIZES = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 4.0])
Y = np.array([0.1, 0.9, 0.5, 0.35, 0.6, 1.0])
DRAWS = 40_000


@pytest.fixture(scope="module", params=["drop", "bernoulli"])
def drawn(request: pytest.FixtureRequest) -> tuple[str, np.ndarray]:
    rows = np.broadcast_to(Y, (DRAWS, 6)).copy()
    return request.param, depround(rows, np.broadcast_to(SIZES, rows.shape), np.random.default_rng(1), request.param)


def test_budget(drawn: tuple[str, np.ndarray]) -> None:
    leftover, x = drawn
    used, budget = x @ SIZES, SIZES @ Y
    if leftover == "drop":
        assert used.max() <= budget + 1e-9
        assert (used > budget - SIZES.max()).all()  # only one entry was lost
    else:
        assert (np.abs(used - budget) < SIZES.max()).all()


def test_marginals(drawn: tuple[str, np.ndarray]) -> None:
    leftover, x = drawn
    error = 4.5 * np.sqrt(Y * (1 - Y) / DRAWS)  # 4.5 standard errors
    if leftover == "bernoulli":
        assert (np.abs(x.mean(axis=0) - Y) <= error).all()
    else:
        assert (x.mean(axis=0) <= Y + error).all()
    assert x[:, 5].all()  # what is 1 stays


def test_equal_sizes_with_a_whole_sum_keep_the_budget_exactly() -> None:
    y = np.array([[0.25, 0.75, 0.5, 0.5, 0.6, 0.4]] * 5000)
    x = depround(y, np.ones_like(y), np.random.default_rng(2))
    assert (x.sum(axis=1) == 3).all()
    assert (np.abs(x.mean(axis=0) - y[0]) <= 4.5 * np.sqrt(0.25 / 5000)).all()


def test_entries_are_not_positively_correlated() -> None:
    y = np.array([[0.5, 0.3, 0.7, 0.5]] * DRAWS)
    x = depround(y, np.ones_like(y), np.random.default_rng(3)).astype(float)
    covariance = np.cov(x.T)
    assert (covariance[~np.eye(4, dtype=bool)] <= 4.5 * 0.25 / np.sqrt(DRAWS)).all()


def test_the_same_generator_state_gives_like_placements() -> None:
    rng = np.random.default_rng(4)
    y = rng.random((200, 30))
    near = np.clip(y + rng.normal(0, 1e-3, y.shape), 0, 1)
    s = np.broadcast_to(rng.uniform(1, 9, 30), y.shape)
    first = depround(y, s, np.random.default_rng(9))
    coupled = (depround(near, s, np.random.default_rng(9)) != first).mean()
    fresh = (depround(near, s, np.random.default_rng(10)) != first).mean()
    assert coupled < 0.2 * fresh


def test_whole_numbers_are_left_alone() -> None:
    y = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
    assert (depround(y, np.ones_like(y), np.random.default_rng(0)) == (y == 1)).all()
