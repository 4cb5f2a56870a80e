"""Several cameras: what the switch passes conforms to the shared bucket, one camera is no change, sharing pays."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.policies.token_bucket import cameras as cam
from testbed.policies.token_bucket.bucket import Bucket, spend
from testbed.policies.token_bucket.mdp import Choices, solve

BUCKET = Bucket.of(0.1, 1)
K = 4


@pytest.fixture(scope="module")
def metric() -> np.ndarray:
    return np.random.default_rng(0).beta(1, 3, (20, K, 2000))


@pytest.fixture(scope="module")
def choices(metric: np.ndarray) -> Choices:
    return Choices.of(metric[:2].ravel(), metric[:2].ravel())


def test_merging_takes_turns_and_splitting_undoes_it() -> None:
    values = np.arange(24).reshape(2, 3, 4)
    merged = cam.merge(values)
    assert merged[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    np.testing.assert_array_equal(cam.split(merged, 3), values)


def test_what_the_switch_passes_conforms_and_the_rest_is_dropped(metric: np.ndarray, choices: Choices) -> None:
    found = cam.hierarchical(BUCKET, solve(Bucket.of(0.3, 4), choices), metric)
    assert not (found.delivered & ~found.sent).any() and found.delivered.sum() < found.sent.sum()
    passed = cam.merge(found.delivered)
    for length in (1, 40, 500):  # arrivals of the merged stream; each brings 0.1 tokens, 4 fit
        window = np.lib.stride_tricks.sliding_window_view(passed, length, axis=1).sum(2)
        assert window.max() <= K * BUCKET.tokens + BUCKET.rate * (length - 1) + 1e-9
    # a send is dropped only when there is no token: the switch itself never refuses one that conforms
    shared = cam.shared_bucket(BUCKET, K)
    greedy = spend(shared, np.where(cam.merge(found.sent), shared.token, shared.never), np.ones((1, passed.shape[1]), int))
    np.testing.assert_array_equal(greedy, passed)


def test_one_camera_is_the_same_in_every_way(metric: np.ndarray, choices: Choices) -> None:
    one, own = metric[:, :1], solve(BUCKET, choices)
    alone = cam.isolated(own, one).delivered
    np.testing.assert_array_equal(cam.hierarchical(BUCKET, own, one).delivered, alone)
    np.testing.assert_array_equal(cam.smart_switch(solve(cam.shared_bucket(BUCKET, 1), choices), one).delivered, alone)


def test_sharing_pays_and_one_decision_maker_pays_most(metric: np.ndarray, choices: Choices) -> None:
    rate, depth, own = cam.over_subscribe(BUCKET, K, choices, metric[:5], metric[:5], [0.1, 0.2, 0.3], [1, 3, 6])
    assert rate > 0.1 or depth > 1, "cameras ask for more than their share"
    saved = {name: float((found.delivered * metric)[5:].mean()) for name, found in {
        "isolated": cam.isolated(solve(BUCKET, choices), metric), "hierarchical": cam.hierarchical(BUCKET, own, metric),
        "smart": cam.smart_switch(solve(cam.shared_bucket(BUCKET, K), choices), metric)}.items()}
    bound = np.sort(metric[5:].ravel())[-metric[5:].size // 10:].sum() / metric[5:].size
    assert saved["isolated"] + 0.001 < saved["hierarchical"] < saved["smart"] < bound


def test_the_search_takes_the_best_of_its_grid(metric: np.ndarray, choices: Choices) -> None:
    rates, depths = [0.1, 0.25], [1, 4]
    rate, depth, _ = cam.over_subscribe(BUCKET, K, choices, metric[:5], metric[:5], rates, depths)
    gains = {(r, b): float((cam.hierarchical(BUCKET, solve(Bucket.of(r, b), choices), metric[:5]).delivered * metric[:5]).mean())
             for r in rates for b in depths}
    assert gains[rate, depth] == max(gains.values())
