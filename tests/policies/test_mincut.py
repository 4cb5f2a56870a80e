"""Minimum cuts against brute force over all vertex sets, and against scipy's maximum flow."""

import random

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from testbed.policies.mincut import FlowNetwork

Arcs = dict[tuple[int, int], int]


def drawn(draw: random.Random, n: int) -> Arcs:
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b and draw.random() < 0.45]
    return {pair: draw.choice([0, 1, 1, 2, draw.randrange(50)]) for pair in pairs}


def solved(n: int, arcs: Arcs) -> tuple[int, frozenset[int]]:
    network = FlowNetwork(n)
    for (a, b), capacity in arcs.items():
        network.add_arc(a, b, capacity)
    return network.min_cut(0, n - 1)


def crossing(arcs: Arcs, side: frozenset[int]) -> int:
    return sum(c for (a, b), c in arcs.items() if a in side and b not in side)


def test_value_and_side_are_those_of_a_brute_force_over_all_sets() -> None:
    draw = random.Random(1)
    for _ in range(300):
        n = draw.randrange(2, 9)
        arcs = drawn(draw, n)
        value, side = solved(n, arcs)
        sets = [frozenset({0} | {v for v in range(1, n - 1) if bits >> v & 1}) for bits in range(1 << (n - 1))]
        least = min(crossing(arcs, s) for s in sets)
        assert value == least == crossing(arcs, side) and 0 in side and n - 1 not in side
        assert len(side) == min(len(s) for s in sets if crossing(arcs, s) == least)


def test_larger_networks_agree_with_scipy() -> None:
    draw = random.Random(2)
    for _ in range(20):
        n = draw.randrange(20, 60)
        arcs = drawn(draw, n)
        matrix = np.zeros((n, n), dtype=np.int32)
        for (a, b), capacity in arcs.items():
            matrix[a, b] = capacity
        value, side = solved(n, arcs)
        assert value == maximum_flow(csr_array(matrix), 0, n - 1).flow_value == crossing(arcs, side)


def test_a_long_chain_needs_no_recursion_and_parallel_arcs_add_up() -> None:
    n = 5000
    network = FlowNetwork(n)
    for v in range(n - 1):
        network.add_arc(v, v + 1, 7)
        network.add_arc(v, v + 1, 3 if v != 2500 else 2)
    value, side = network.min_cut(0, n - 1)
    assert value == 9 and side == frozenset(range(2501))


def test_what_is_not_connected_costs_nothing_and_a_negative_capacity_is_refused() -> None:
    assert FlowNetwork(3).min_cut(0, 2) == (0, frozenset({0}))
    with pytest.raises(ValueError, match="negative"):
        FlowNetwork(2).add_arc(0, 1, -1)
