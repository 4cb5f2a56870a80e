"""DADS's partitions against brute force over closed sets, chains, the bound of the heavy mode, and the published construction."""

import random

import pytest

from testbed.policies.chain import best, latencies_s
from testbed.policies.mincut import FlowNetwork
from testbed.policies.partition import Partition, Stages

P = 1e-12  # capacities are rounded to this many seconds


def drawn(draw: random.Random, n: int, density: float = 0.35, cloud_is_faster: bool = False) -> Partition:
    """A random DAG in topological order; every vertex reads something."""
    edges = {(a, b) for b in range(n) for a in range(b) if draw.random() < density}
    edges |= {(-1, b) for b in range(n) if draw.random() < 0.15 or not any(e[1] == b for e in edges)}
    edge_s = tuple(draw.uniform(0, 1) for _ in range(n))
    cloud_s = tuple(t * draw.uniform(0, 1) if cloud_is_faster else draw.uniform(0, 0.6) for t in edge_s)
    return Partition(tuple(sorted(edges)), edge_s, cloud_s, tuple(draw.uniform(0, 0.8) for _ in range(n + 1)))


def all_sets(n: int) -> list[frozenset[int]]:
    return [frozenset(v for v in range(n) if bits >> v & 1) for bits in range(1 << n)]


def times(p: Partition, edge_side: frozenset[int]) -> tuple[float, float, float]:
    """Edge, sending and cloud time, straight from their definitions."""
    sent = {a for a, b in p.edges if b not in edge_side and (a == -1 or a in edge_side)}
    return (sum(p.edge_s[v] for v in edge_side), sum(p.sending_s[a + 1] for a in sent),
            sum(p.cloud_s[v] for v in range(p.n) if v not in edge_side))


def closed_sets(p: Partition) -> list[frozenset[int]]:
    return [s for s in all_sets(p.n) if all(a == -1 or a in s for a, b in p.edges if b in s)]


@pytest.fixture(scope="module")
def problems() -> list[Partition]:
    draw = random.Random(1)
    sizes = [*range(1, 11)] * 10 + [11, 12, 12]
    return [drawn(draw, n, draw.choice([0.15, 0.35, 0.6])) for n in sizes]


def test_the_minimum_cut_is_the_best_of_all_closed_sets(problems: list[Partition]) -> None:
    for p in problems:
        found = p.light()
        assert p.is_closed(found)
        assert sum(times(p, found)) == pytest.approx(min(sum(times(p, s)) for s in closed_sets(p)), abs=100 * P)


def test_weights_weigh(problems: list[Partition]) -> None:
    draw = random.Random(2)
    for p in problems[:60]:
        alpha, gamma = 2 ** draw.uniform(-4, 4), 2 ** draw.uniform(-4, 4)

        def weighed(s: frozenset[int], p: Partition = p, alpha: float = alpha, gamma: float = gamma) -> float:
            edge_s, sending_s, cloud_s = times(p, s)
            return alpha * edge_s + sending_s + gamma * cloud_s

        assert weighed(p.light(alpha, gamma)) == pytest.approx(min(map(weighed, closed_sets(p))), abs=1000 * P)


def test_stages_are_what_their_definition_says(problems: list[Partition]) -> None:
    for p in problems[:40]:
        for s in closed_sets(p)[:40]:
            found = p.stages(s)
            assert (found.edge_s, found.sending_s, found.cloud_s) == pytest.approx(times(p, s))
            assert found.total_s == pytest.approx(sum(times(p, s))) and found.longest_s == max(found.edge_s, found.sending_s, found.cloud_s)


def test_on_a_chain_it_is_the_cut_of_an_exhaustive_search() -> None:
    draw = random.Random(3)
    for _ in range(200):
        n = draw.randrange(1, 15)
        chain = drawn(draw, n)
        chain = Partition(tuple((v - 1, v) for v in range(n)), chain.edge_s, chain.cloud_s, chain.sending_s)
        costs = latencies_s(chain.edge_s, chain.cloud_s, [*chain.sending_s[:n], 0.0])
        found = chain.light()
        assert found == frozenset(range(best(costs)))
        assert chain.best_prefix(longest=False) == best(costs)


def test_the_heavy_mode_is_within_three_times_the_least_largest_stage(problems: list[Partition]) -> None:
    ratios = []
    for p in problems:
        found = p.heavy()
        assert p.is_closed(found)
        least = min(max(times(p, s)) for s in closed_sets(p))
        ratios.append(max(times(p, found)) / least if least else 1.0)
        assert max(times(p, found)) <= max(times(p, p.light())) + 100 * P  # never worse than the light mode
    assert max(ratios) <= 3 and sum(ratios) / len(ratios) < 1.3


def test_a_partition_depends_on_nothing_but_the_problem(problems: list[Partition]) -> None:
    for p in problems[:30]:
        again = Partition(p.edges, p.edge_s, p.cloud_s, p.sending_s)
        assert (p.light(), p.heavy()) == (again.light(), again.heavy())


def published(p: Partition) -> frozenset[int]:
    """DSL as the paper draws it: no arc forbids an edge vertex to read from the cloud."""
    send, on_edge, in_cloud = ([round(t * 1e12) for t in values] for values in (p.sending_s, p.edge_s, p.cloud_s))
    infinite = sum(send) + sum(on_edge) + sum(in_cloud) + 1
    edge, cloud = p.n, p.n + 1
    network = FlowNetwork(2 * p.n + 3)
    for v in range(-1, p.n):
        tail, own = (edge if v == -1 else v), p.n + 3 + v
        if v >= 0:
            network.add_arc(edge, v, in_cloud[v])
            network.add_arc(v, cloud, on_edge[v])
        network.add_arc(tail, own, send[v + 1])
        for a, b in p.edges:
            if a == v:
                network.add_arc(own, b, infinite)
    return frozenset(v for v in network.min_cut(edge, cloud)[1] if v < p.n)


@pytest.mark.parametrize("cloud_is_faster", [False, True])
def test_the_published_construction_is_infeasible_in_some_graphs_and_the_corrected_one_in_none(cloud_is_faster: bool) -> None:
    draw = random.Random(4)
    infeasible = 0
    for _ in range(500):
        p = drawn(draw, 6, cloud_is_faster=cloud_is_faster)
        as_published, corrected = published(p), p.light()
        assert p.is_closed(corrected)
        if p.is_closed(as_published):
            assert sum(times(p, as_published)) == pytest.approx(sum(times(p, corrected)), abs=100 * P)
        else:
            infeasible += 1
    assert 0 < infeasible < 500


def test_with_an_infinite_rate_the_faster_side_wins_and_with_none_the_edge_alone() -> None:
    draw = random.Random(5)
    for _ in range(50):
        p = drawn(draw, 8, cloud_is_faster=True)
        assert p.stages(Partition(p.edges, p.edge_s, p.cloud_s, (0.0,) * 9).light()).edge_s == pytest.approx(0)
        assert Partition(p.edges, p.edge_s, p.cloud_s, (1e6,) * 9).light() == frozenset(range(8))


def test_a_tensor_with_two_readers_is_sent_once() -> None:
    # 0 feeds 1 and 2, which feed 3; only 0 is cheap on the edge and its output small
    p = Partition(((-1, 0), (0, 1), (0, 2), (1, 3), (2, 3)), (0.1, 9, 9, 9), (5, 0.1, 0.1, 0.1), (50, 1, 7, 7, 7))
    assert p.light() == frozenset({0}) and p.stages(frozenset({0})) == Stages(0.1, 1.0, pytest.approx(0.3))
