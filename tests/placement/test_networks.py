"""Topologies and demand: structure, round trips, Zipf shares, shifts."""

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.placement.popularity import draw, zipf
from testbed.placement.topologies import CATALOGUE, TOPOLOGIES, Tier, tree


def test_topology_one_is_a_tree_of_36_nodes() -> None:
    problem = tree(TOPOLOGIES["I"])
    assert len(problem.nodes) == 36 and (problem.tier == 0).sum() == 24
    assert len(problem.models) == 20 * 10 * 3 and problem.num_types == 24 * 20
    assert (problem.path_ms[0] == [0, 6, 12, 27, 67]).all() and (problem.path_ms == problem.path_ms[0]).all()
    for depth in range(1, 5):  # every node has one parent, every parent a child
        parents: dict[int, set[int]] = {}
        for child, parent in problem.path[:, depth - 1:depth + 1]:
            parents.setdefault(int(child), set()).add(int(parent))
        assert all(len(p) == 1 for p in parents.values())
        assert set().union(*parents.values()) == set(np.flatnonzero(problem.tier == depth))
    cloud = problem.pinned[-1]
    assert cloud.sum() == 20 and (problem.accuracy[cloud] == max(c.accuracy for c in CATALOGUE)).all()
    assert not problem.pinned[:-1].any()


def test_topology_two_is_a_chain() -> None:
    problem = tree(TOPOLOGIES["II"], tasks=3, copies=1)
    assert len(problem.nodes) == 5 and (problem.path == [0, 1, 2, 3, 4]).all()


def test_delay_and_capacity_are_those_of_the_frame_rate() -> None:
    problem = tree([Tier("edge", 1, 10, 1e9, "lower"), Tier("cloud", 1, 0, np.inf, "upper")], tasks=1, copies=1, slot_s=30)
    k = [c.name for c in CATALOGUE].index("yolov4-512")
    assert problem.delay_ms[:, k] == pytest.approx([1000 / 45, 1000 / 83]) and problem.capacity[0, k] == 45 * 30
    assert problem.size_bytes[0, k] == 245e6 + 500e6


def test_a_tree_without_a_single_root_is_refused() -> None:
    with pytest.raises(InputError, match="last tier"):
        tree([Tier("edge", 2, 10, 1e9, "lower")])


def test_zipf_shares() -> None:
    share = zipf(20, 1.2)
    assert share.sum() == pytest.approx(1) and share[0] / share[3] == pytest.approx(4**1.2)
    np.testing.assert_allclose(zipf(5, 0), 0.2)


def test_demand_has_the_asked_rate_and_rotates() -> None:
    demand = draw(4, 6, 90, rate_per_s=200, slot_s=60, exponent=1.0, shift_every=30, shift_by=2, seed=1)
    total = demand.requests.sum(axis=1)
    assert total.mean() == pytest.approx(12_000, abs=5 * np.sqrt(12_000 / 90))
    assert demand.phase.tolist() == [0] * 30 + [1] * 30 + [2] * 30
    per_task = np.stack([demand.requests[demand.phase == p].reshape(30, 4, 6).sum(axis=(0, 1)) for p in range(3)])
    assert np.argsort(-per_task[0]).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.argsort(-per_task[1]).tolist() == [2, 3, 4, 5, 0, 1]
    assert np.argsort(-per_task[2]).tolist() == [4, 5, 0, 1, 2, 3]
    means, slots = demand.means()
    assert slots.tolist() == [30, 30, 30]
    np.testing.assert_allclose(means[1], demand.requests[30:60].mean(axis=0))
