"""Every topology file that ships: it loads, and has the shape that its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.experiment.reroutes import links_between
from testbed.schema.files import load_topology
from testbed.schema.topology import Topology

FOLDER = Path(__file__).parents[2] / "topologies"
SHIPPED = [p for p in sorted(FOLDER.glob("*.yaml")) if "${TESTBED_DATA}" not in p.read_text()]


def degree(topology: Topology, node: str) -> int:
    return sum(node in (a, b) for _, a, b in topology.node_links())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_it_loads_and_its_first_lines_say_what_it_is(path: Path) -> None:
    topology = load_topology(path)
    assert topology.description
    assert path.read_text().startswith("# ")
    for link, _, _ in topology.node_links():
        for which in ("up", "down"):
            assert all(Path(file).is_file() for file in link.direction(which).trace or ())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_device_reaches_an_edge_and_the_cloud(path: Path) -> None:
    topology = load_topology(path)
    for device in topology.tiers[0].nodes:
        for tier in topology.tiers[1:]:
            assert topology.path(device, topology.serving_node(device, tier.name))


def test_star_has_one_middle() -> None:
    topology = load_topology(FOLDER / "star.yaml")
    degrees = {node: degree(topology, node) for node in topology.node_names}
    assert degrees.pop("edge1") == len(degrees)
    assert set(degrees.values()) == {1}


def test_multi_cell_serves_every_device_in_its_own_cell() -> None:
    topology = load_topology(FOLDER / "multi_cell.yaml")
    served = [topology.serving_node(d, "edge") for d in topology.tiers[0].nodes]
    assert served == ["edge1", "edge1", "edge2", "edge2", "edge3", "edge3"]
    traces = {b: link.direction("up").trace for link, a, b in topology.node_links() if a.startswith("device")}
    assert len(set(traces.values())) == 3


def test_ring_survives_the_loss_of_any_link_but_an_access_link() -> None:
    topology = load_topology(FOLDER / "ring.yaml")
    names = topology.node_names
    for _, a, b in topology.node_links():
        lost = {f"{a}-{b}"}
        cut_off = {n for n in names[1:] if not links_between(topology, names[0], n, lost)}
        if a.startswith("device"):
            assert cut_off
        else:
            assert not cut_off, (lost, cut_off)
    assert topology.switch == "ovs"
    assert sum("cloud1" in (a, b) for _, a, b in topology.node_links()) == 2
