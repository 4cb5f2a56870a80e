"""Paths and rules of the controller, against brute force; no network needed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.emulation.sdn.graph import Attachment, Port, SdnMap, SwitchLink
from testbed.experiment.reroutes import links_between
from testbed.schema.topology import Topology


def topologies() -> st.SearchStrategy[Topology]:
    """Connected graphs of two to six nodes, all in one tier, links in a random order and orientation."""

    @st.composite
    def draw(draw: st.DrawFn) -> Topology:
        count = draw(st.integers(2, 6))
        names = [f"n{i + 1}" for i in range(count)]
        tree = [(names[draw(st.integers(0, i - 1))], names[i]) for i in range(1, count)]
        more = draw(st.lists(st.sampled_from(list(itertools.combinations(names, 2))), unique=True))
        pairs = list({frozenset(p): p for p in [*tree, *more]}.values())
        pairs = draw(st.permutations([p if draw(st.booleans()) else (p[1], p[0]) for p in pairs]))
        return Topology.model_validate({"switch": "ovs", "tiers": [{"name": "n", "count": count}],
                                        "links": [{"between": list(p)} for p in pairs]})

    return draw()


def map_of(topology: Topology) -> SdnMap:
    """Every node has a switch with itself at port 1; other ports as links come."""
    numbers = {name: i + 1 for i, name in enumerate(topology.node_names)}
    used = dict.fromkeys(numbers, 1)

    def next_port(name: str) -> Port:
        used[name] += 1
        return numbers[name], used[name]

    links = tuple(SwitchLink(f"{a}-{b}", next_port(a), next_port(b)) for _, a, b in topology.node_links())
    hosts = tuple(Attachment(n, f"02:00:00:00:00:{i:02x}", f"10.0.0.{i}", (i, 1)) for n, i in numbers.items())
    return SdnMap({i: f"s{i}" for i in numbers.values()}, links, hosts)


def follow(network: SdnMap, down: frozenset[Port], src: int, mac: str) -> list[str] | None:
    """Links that a packet crosses under the rules until it leaves at a host; None when a rule drops it."""
    rules, here, crossed = network.rules(down), src, []
    for _ in range(len(network.switches) + 1):
        port = rules[here][mac]
        if port is None:
            return None
        found = next(((link, link.b if link.a == (here, port) else link.a) for link in network.links
                      if (here, port) in (link.a, link.b)), None)
        if found is None:
            assert next(h for h in network.hosts if h.mac == mac).port == (here, port)
            return crossed
        assert (here, port) not in down
        crossed.append(found[0].name)
        here = found[1][0]
    raise AssertionError(f"the rules circle: {crossed}")


@given(topologies())
def test_rules_take_the_paths_that_the_topology_names(topology: Topology) -> None:
    """So that the links which a run's tables name are the ones which its packets crossed."""
    network = map_of(topology)
    for (i, src), host in itertools.product(enumerate(topology.node_names, start=1), network.hosts):
        assert follow(network, frozenset(), i, host.mac) == topology.path_links(src, host.name)


@given(topologies(), st.data())
def test_with_links_down_rules_reach_what_can_be_reached_by_fewest_links(topology: Topology, data: st.DataObject) -> None:
    network = map_of(topology)
    cut = data.draw(st.sets(st.sampled_from([x.name for x in network.links])))
    down = frozenset(data.draw(st.sampled_from([x.a, x.b])) for x in network.links if x.name in cut)  # one end suffices
    distance = {(a, b): (0 if a == b else 99) for a in network.switches for b in network.switches}
    for link in network.links:
        if link.name not in cut:
            distance[link.a[0], link.b[0]] = distance[link.b[0], link.a[0]] = 1
    for k, a, b in itertools.product(network.switches, repeat=3):  # Floyd and Warshall
        distance[a, b] = min(distance[a, b], distance[a, k] + distance[k, b])
    for (i, src), host in itertools.product(enumerate(topology.node_names, start=1), network.hosts):
        crossed = follow(network, down, i, host.mac)
        far = distance[i, host.port[0]]
        assert (None if crossed is None else len(crossed)) == (None if far >= 99 else far)
        assert links_between(topology, src, host.name, cut) == (crossed or [])


def test_a_host_whose_port_is_down_is_nowhere() -> None:
    network = map_of(Topology.model_validate({"tiers": [{"name": "a"}, {"name": "b"}], "links": [{"between": ["a", "b"]}]}))
    assert network.rules()[1]["02:00:00:00:00:02"] == 2
    assert network.rules(frozenset({(2, 1)}))[2]["02:00:00:00:00:02"] is None


def test_learned_hosts_get_rules_everywhere_and_json_keeps_everything() -> None:
    network = map_of(Topology.model_validate({"tiers": [{"name": "a"}, {"name": "b"}], "links": [{"between": ["a", "b"]}]}))
    rules = network.rules(learned={"02:aa:00:00:00:01": (2, 9)})
    assert (rules[1]["02:aa:00:00:00:01"], rules[2]["02:aa:00:00:00:01"]) == (2, 9)
    assert SdnMap.from_json(network.to_json()) == network


@pytest.mark.parametrize(("port", "expected"), [((1, 2), ("a1-b1", "up")), ((2, 2), ("a1-b1", "down")), ((1, 1), None)])
def test_ports_know_the_link_and_direction_that_they_send_into(port: Port, expected: tuple[str, str] | None) -> None:
    network = map_of(Topology.model_validate({"tiers": [{"name": "a"}, {"name": "b"}], "links": [{"between": ["a", "b"]}]}))
    assert network.link_of(port) == expected
