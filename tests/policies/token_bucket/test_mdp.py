"""MDP thresholds against brute force on the exact chain, against simulation, and in their limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.mdp import Choices, Thresholds, average_reward, solve, stationary_levels
from testbed.policies.token_bucket.rules import Always, LowerBound, Mdp, Naive, Never, quantile_threshold
from testbed.policies.token_bucket.sequences import independent, periodic

VALUES = np.array([0.0, 0.05, 0.12, 0.2, 0.3, 0.45])  # six metrics, equally likely
TOY = Bucket.of(0.25, 2)


def naive(metric: np.ndarray, bucket: Bucket) -> Thresholds:
    return Thresholds(bucket, np.full(bucket.levels, quantile_threshold(metric, bucket.rate)))


@pytest.mark.parametrize(("values", "weights"), [
    (VALUES, None), (np.array([-0.2, -0.05, 0.1, 0.2, 0.5, 0.9]), None), (VALUES, [0.3, 0.1, 0.2, 0.25, 0.1, 0.05])])
def test_value_iteration_is_the_best_of_all_threshold_vectors(values: np.ndarray, weights: list[float] | None) -> None:
    found = solve(TOY, Choices.of(values, values, weights), discount=0.99999)
    best = max(average_reward(Thresholds(TOY, np.array(t)), values, values, weights)
               for t in itertools.product([*values, 9.0], repeat=TOY.levels) if all(np.diff(t) <= 0))
    assert average_reward(found, values, values, weights) == pytest.approx(best, abs=1e-9)
    assert average_reward(naive(values, TOY), values, values, weights) < best - 1e-3
    assert (np.diff(found.values) <= 0).all(), "thresholds do not rise with the level"


def test_reward_and_metric_may_differ() -> None:
    """Two images of one metric share a threshold, whatever their rewards: brute force over one threshold per level."""
    metric, reward = np.array([0.1, 0.1, 0.3, 0.3]), np.array([1.0, -1.0, 0.0, 1.0])
    found = solve(TOY, Choices.of(metric, reward))
    best = max(average_reward(Thresholds(TOY, np.array(t)), metric, reward)
               for t in itertools.product([0.1, 0.3, np.inf], repeat=TOY.levels))
    assert average_reward(found, metric, reward) == pytest.approx(best, abs=1e-9)


def test_the_hull_chooses_as_a_search_over_all_thresholds() -> None:
    rng = np.random.default_rng(3)
    metric, reward = rng.random(300).round(2), rng.integers(-1, 2, 300)
    choices = Choices.of(metric, reward)
    all_thresholds = np.append(np.unique(metric), np.inf)
    share = np.array([(metric >= t).mean() for t in all_thresholds])
    gain = np.array([(reward * (metric >= t)).mean() for t in all_thresholds])
    for cost in rng.random(50):
        k = choices.best(np.array([cost]))[0]
        assert choices.reward[k] - cost * choices.share[k] == pytest.approx((gain - cost * share).max(), abs=1e-12)


def test_simulation_matches_the_chain_within_three_standard_errors() -> None:
    found = solve(TOY, Choices.of(VALUES, VALUES))
    index = independent(len(VALUES), 400, 2500, np.random.default_rng(5))  # 10^6; benchmarks/token_bucket.py has 10^7
    metric = VALUES[index]
    collected = np.where(Mdp(found).offloads(TOY, metric, periodic()), metric, 0.0)[:, 100:].mean(1)
    error = collected.std(ddof=1) / np.sqrt(len(collected))
    assert abs(collected.mean() - average_reward(found, VALUES, VALUES)) < 3 * error


def test_the_stationary_chain_of_a_bucket_that_is_never_used_is_full() -> None:
    assert stationary_levels(TOY, np.zeros(TOY.levels))[TOY.depth] == pytest.approx(1)


@pytest.mark.parametrize("bucket", [Bucket.of(0.05, 1), Bucket.of(0.3, 2.5), Bucket.of(0.5, 5)])
def test_sandwich(bucket: Bucket) -> None:
    """strong >= bound >= mdp >= naive >= weak in reward: exact values of the chain, true reward = metric."""
    metric = np.random.default_rng(1).beta(1, 3, 400)
    bound = metric[metric >= np.quantile(metric, 1 - bucket.rate)].sum() / len(metric)
    mdp = average_reward(solve(bucket, Choices.of(metric, metric)), metric, metric)
    below = average_reward(naive(metric, bucket), metric, metric)
    assert metric.mean() >= bound >= mdp >= below >= 0
    assert mdp > below + 1e-4


def test_a_deep_bucket_reaches_the_bound_at_the_quantile_threshold() -> None:
    metric = np.random.default_rng(1).beta(1, 3, 2000)
    bound = metric[metric >= np.quantile(metric, 0.75)].mean() / 4
    gaps = []
    for depth in (1, 5, 25):
        found = solve(Bucket.of(0.25, depth), Choices.of(metric, metric), discount=1 - 1e-6)
        gaps.append(bound - average_reward(found, metric, metric))
    assert (np.diff(gaps) < 0).all() and gaps[-1] < 0.01 * gaps[0]
    middle = found.values[len(found.values) // 2]
    assert (metric >= middle).mean() == pytest.approx(0.25, abs=0.01)


def test_with_a_token_for_every_image_all_that_pays_is_offloaded() -> None:
    metric = np.linspace(-0.5, 0.5, 101)
    bucket = Bucket.of(1.0, 2)
    required = solve(bucket, Choices.of(metric, metric)).required(metric)
    positive = metric > 0
    assert (required[positive] == bucket.token).all() and (required[metric < 0] > bucket.depth).all()
    assert quantile_threshold(metric, 1.0) > 0
    assert Naive(quantile_threshold(metric, 1.0)).offloads(bucket, metric[None], periodic())[0].tolist() == positive.tolist()


def test_longer_intervals_are_more_tokens() -> None:
    """An interval of 3 at refill Q is an interval of 1 at refill 3Q; a mixture lies in between."""
    metric = np.random.default_rng(2).random(200)
    choices = Choices.of(metric, metric)
    slow = solve(Bucket(1, 10, 20), choices, (3,))
    np.testing.assert_allclose(slow.values, solve(Bucket(3, 10, 20), choices).values, atol=1e-6)
    mixed, fast = solve(Bucket(1, 10, 20), choices, (1, 3), (0.5, 0.5)), solve(Bucket(1, 10, 20), choices)
    assert (slow.values <= mixed.values + 1e-9).all() and (mixed.values <= fast.values + 1e-9).all()


def test_never_and_always() -> None:
    metric = np.zeros((2, 5))
    assert not Never().offloads(TOY, metric, periodic()).any() and Always().offloads(TOY, metric, periodic()).all()
    assert LowerBound(0.5).offloads(TOY, np.array([[0.4, 0.5, 0.6]]), periodic()).tolist() == [[False, True, True]]


def test_required_levels_are_the_thresholds_read_the_other_way() -> None:
    found = Thresholds(TOY, np.array([0.9, 0.5, 0.5, 0.2, 0.1]))
    metric = np.array([0.95, 0.9, 0.6, 0.5, 0.3, 0.15, 0.05])
    for m, required in zip(metric, found.required(metric), strict=True):
        for n in range(TOY.token, TOY.depth + 1):
            assert (n >= required) == (m >= found.values[n - TOY.token])
