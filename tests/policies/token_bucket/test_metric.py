"""The metric is calibrated, its regression is the textbook's, and its costs are what they are called."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.policies.token_bucket.metric import Metric, cost, entropy, regress


def logits_of(rng: np.random.Generator, count: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that is calibrated at temperature `sharpness`: labels are drawn from its softmax."""
    scores = rng.normal(size=(count, 10)) * rng.gamma(2, 1, size=(count, 1))
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((count, 1))).argmax(1)
    return (scores * sharpness).astype(np.float32), labels


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    logits, labels = logits_of(rng, 12_000, 2.5)
    h = entropy(logits, 2.5)
    saved = np.where(rng.random(len(h)) < 0.6 * np.sin(h * 1.3), 1, 0) - (rng.random(len(h)) < 0.05)
    return {"logits": logits, "labels": labels, "saved": saved}


@pytest.fixture(scope="module")
def fitted(data: dict[str, np.ndarray]) -> Metric:
    return Metric.fit(data["logits"][:6000], data["labels"][:6000], data["saved"][:6000])


def test_the_temperature_undoes_the_sharpness(fitted: Metric) -> None:
    assert fitted.temperature == pytest.approx(2.5, rel=0.05)


def test_the_metric_is_calibrated_on_images_that_it_has_not_seen(data: dict[str, np.ndarray], fitted: Metric) -> None:
    m, saved = fitted(data["logits"][6000:]), data["saved"][6000:]
    for part in np.array_split(np.argsort(m), 8):
        error = saved[part].std() / np.sqrt(len(part)) + saved.std() / np.sqrt(6000 / 8)
        assert abs(saved[part].mean() - m[part].mean()) < 3 * error
    assert len(fitted.values) == 1000


def test_the_metric_may_fall_again(fitted: Metric) -> None:
    """The hardest images gain nothing: the table is no monotone function of the entropy."""
    assert fitted.values.argmax() < 800 and fitted.values[-1] < fitted.values.max() - 0.1


def test_regression_is_nadaraya_watson() -> None:
    rng = np.random.default_rng(0)
    h, r, at = rng.random(30), rng.normal(size=30), np.linspace(0, 1, 70)
    slow = [sum(np.exp(-((x - a) / 0.1) ** 2 / 2) * y for a, y in zip(h, r, strict=True))
            / sum(np.exp(-((x - a) / 0.1) ** 2 / 2) for a in h) for x in at]
    np.testing.assert_allclose(regress(h, r, at, 0.1), slow)
    assert regress(np.array([0.0, 1.0]), np.array([2.0, 4.0]), np.array([0.4, 0.9]), 1e-4).tolist() == [2.0, 4.0]


def test_costs() -> None:
    logits = np.array([[5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6]], np.float32)
    for label, top1, top5, rank in ((0, 0, 0, 1), (4, 1, 0, 5), (5, 1, 1, 6), (11, 1, 1, 10)):
        y = np.array([label])
        assert (cost(logits, y)[0], cost(logits, y, "top5")[0], cost(logits, y, "rank")[0]) == (top1, top5, rank)


def test_entropy_of_known_distributions() -> None:
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [100.0, 0, 0, 0], [np.log(3), 0, -200, -200]], np.float32)
    np.testing.assert_allclose(entropy(logits), [np.log(4), 0, -0.75 * np.log(0.75) - 0.25 * np.log(0.25)], atol=1e-6)
