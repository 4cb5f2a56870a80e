"""The DQN: its target operator against a slow loop, a two-phase cycle that MDP cannot see, i.i.d. images, resume, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.errors import InputError
from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.dqn import Dqn, QNetwork, Recipe, TargetOperator, Transitions, train
from testbed.policies.token_bucket.mdp import Choices, solve
from testbed.policies.token_bucket.rules import Mdp
from testbed.policies.token_bucket.sequences import periodic

QUICK = Recipe(history=4, layers=2, width=24, phases=((100, 5e-3), (60, 1e-3)), batches=6, batch=128)
BUCKET = Bucket.of(0.25, 1)


def transitions(metric: np.ndarray) -> Transitions:
    return Transitions(metric.astype(np.float32), metric.astype(np.float32), np.ones(metric.shape, np.int64))


@pytest.mark.parametrize("bucket", [Bucket.of(0.25, 2), Bucket.of(0.3, 1.5), Bucket.of(0.99, 1)])
def test_the_target_operator_is_the_bellman_equation_level_by_level(bucket: Bucket) -> None:
    p, q, m = bucket.token, bucket.refill, bucket.depth
    rng = np.random.default_rng(0)
    outputs = 2 * (m + 1) - q - p
    following = rng.normal(size=(5, outputs)).astype(np.float32)
    reward, interval = rng.integers(-1, 2, 5).astype(np.float32), rng.integers(1, 5, 5)

    def value(row: np.ndarray, n: int, action: int) -> float:
        return float(row[n - q] if action == 0 else row[(m - q + 1) + n - p])

    def best(row: np.ndarray, n: int) -> float:
        return max(value(row, n, a) for a in ((0, 1) if n >= p else (0,)))

    expected = np.array([[0.9 * best(row, min(m, n + q * i)) for n in range(q, m + 1)]
                         + [r + 0.9 * best(row, min(m, n - p + q * i)) for n in range(p, m + 1)]
                         for row, r, i in zip(following, reward, interval, strict=True)])
    found = TargetOperator(bucket, 0.9)(torch.from_numpy(following), torch.from_numpy(reward), torch.from_numpy(interval))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_subtracting_a_constant_changes_no_choice() -> None:
    operator = TargetOperator(BUCKET, 0.9999)
    values = torch.randn(6, 2 * (BUCKET.depth + 1) - BUCKET.refill - BUCKET.token)
    shifted = values - values.mean()
    for a, b in ((values, shifted), (operator(values, torch.zeros(6), torch.ones(6, dtype=torch.long)),
                                     operator(shifted, torch.zeros(6), torch.ones(6, dtype=torch.long)))):
        (stay, go), (stay2, go2) = operator.split(a), operator.split(b)
        first = BUCKET.token - BUCKET.refill
        assert ((go - stay[:, first:]) - (go2 - stay2[:, first:])).abs().max() < 1e-4


@pytest.fixture(scope="module")
def cycle() -> np.ndarray:
    """A cycle of two phases of four arrivals each: whoever remembers knows when the 1.0 comes."""
    pattern = np.array([0.4, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 1.0])
    starts = np.random.default_rng(0).integers(8, size=40)
    return np.stack([np.tile(np.roll(pattern, -s), 60) for s in starts])


def saved(rule: Mdp | Dqn, metric: np.ndarray) -> float:
    return float((rule.offloads(BUCKET, metric, periodic()) * metric)[:, 50:].mean())


def test_it_beats_mdp_on_a_cycle_and_a_permutation_takes_the_gain_away(cycle: np.ndarray) -> None:
    """One token per four arrivals: the best is the 1.0 and one .4 or .5 of each cycle, (1.0 + .5)/8 or (1.0 + .4)/8."""
    mdp = Mdp(solve(BUCKET, Choices.of(cycle[0], cycle[0])))
    trained = train(BUCKET, transitions(cycle), QUICK, seed=1)
    assert saved(trained, cycle) > saved(mdp, cycle) + 0.01
    assert saved(trained, cycle) > 0.97 * 1.4 / 8
    shuffled = np.random.default_rng(1).permuted(cycle, axis=1)
    again = train(BUCKET, transitions(shuffled), QUICK, seed=1)
    assert saved(again, shuffled) - saved(mdp, shuffled) < 0.002


def test_on_independent_images_it_is_as_good_as_mdp() -> None:
    rng = np.random.default_rng(2)
    values = rng.beta(1, 3, 1000)
    metric, test = rng.choice(values, (50, 1000)), rng.choice(values, (100, 4000))
    recipe = Recipe(history=2, layers=2, width=24, phases=((120, 5e-3), (60, 1e-3), (40, 2e-4)), batches=8, batch=256)
    mdp, dqn = Mdp(solve(BUCKET, Choices.of(values, values))), train(BUCKET, transitions(metric), recipe, seed=1)
    assert saved(dqn, test) == pytest.approx(saved(mdp, test), abs=0.001)


def test_intervals_tell_it_how_many_tokens_come() -> None:
    """Images alike but for noise; intervals 1 or 4 in long stays. Its inputs hold the times between arrivals."""
    recipe = Recipe(history=3, intervals=True, layers=1, width=8, phases=((2, 1e-3),), batches=2, batch=8)
    rng = np.random.default_rng(0)
    data = Transitions(rng.random((4, 50)).astype(np.float32), np.ones((4, 50), np.float32), rng.integers(1, 5, (4, 50)))
    model = train(BUCKET, data, recipe, seed=1)
    assert model.network.linear[0].in_features == 6
    one, four = (model.network(torch.tensor([[0.0, 0, 0, x, x, x]])) for x in (-1.0, 1.0))
    assert not torch.allclose(one, four)
    decisions = model.offloads(BUCKET, data.metric.astype(float), data.interval)
    assert decisions.shape == (4, 50)


def test_a_stopped_training_goes_on_to_the_same_network(tmp_path: Path, cycle: np.ndarray) -> None:
    recipe = Recipe(history=3, layers=1, width=8, phases=((12, 1e-2), (4, 1e-3)), batches=2, batch=16)
    data, file = transitions(cycle), tmp_path / "stopped"

    def stop(done: int, of: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    whole = train(BUCKET, data, recipe, seed=3, every=5, evaluate=lambda model: 0.5)
    with pytest.raises(KeyboardInterrupt):
        train(BUCKET, data, recipe, seed=3, every=5, checkpoint=file, progress=stop, evaluate=lambda model: 0.5)
    seen: list[int] = []
    resumed = train(BUCKET, data, recipe, seed=3, every=5, checkpoint=file, evaluate=lambda model: 0.5,
                    progress=lambda done, of: seen.append(done))
    assert seen[0] == 11 and not file.exists(), "it went on from the checkpoint after ten iterations"
    assert resumed.curve == whole.curve and [p["iteration"] for p in whole.curve] == [5, 10, 15, 16]
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="checkpoint"):
        train(BUCKET, data, recipe, seed=3, checkpoint=file)


def test_a_saved_network_decides_as_before(tmp_path: Path, cycle: np.ndarray) -> None:
    recipe = Recipe(history=3, layers=1, width=8, phases=((3, 1e-3),), batches=2, batch=16)
    model = train(BUCKET, transitions(cycle), recipe, seed=1)
    again = Dqn.load(model.save(tmp_path / "dqn.safetensors"))
    assert again.recipe == recipe and again.bucket == BUCKET and again.curve == model.curve
    np.testing.assert_array_equal(again.offloads(BUCKET, cycle, periodic()), model.offloads(BUCKET, cycle, periodic()))
    with pytest.raises(InputError, match="trained for"):
        again.offloads(Bucket.of(0.5, 2), cycle, periodic())
    (tmp_path / "other").write_text("text")
    with pytest.raises(InputError):
        Dqn.load(tmp_path / "other")


def test_decisions_do_not_depend_on_how_they_are_cut_into_chunks(cycle: np.ndarray) -> None:
    model = Dqn(BUCKET, QUICK, QNetwork(BUCKET, QUICK))
    whole = model.offloads(BUCKET, np.tile(cycle, (1, 5))[:30], periodic())  # several chunks
    for row in (0, 17):
        np.testing.assert_array_equal(model.offloads(BUCKET, np.tile(cycle, (1, 5))[row:row + 1], periodic())[0], whole[row])


def test_a_rate_of_one_has_nothing_to_learn(cycle: np.ndarray) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        train(Bucket.of(1, 1), transitions(cycle), QUICK, seed=1)
