"""Scenario and topology files: what is accepted, how sweeps expand, and one-line errors for what is not."""

from pathlib import Path

import pytest
import yaml

from testbed.errors import InputError
from testbed.schema.files import expand, load_scenario, load_topology
from testbed.schema.topology import Topology

TOPOLOGY = """\
tiers:
  - {name: device, count: 3, compute: raspberry-pi-4}
  - {name: edge, count: 2}
  - {name: cloud}
links:
  - between: [device, edge]
    up: {rate: 5mbit, delay: 10ms}
    down: {rate: 10mbit, delay: 10ms, queue: 64KB}
  - between: [edge, cloud]
    both: {rate: 100mbit, delay: 20ms}
"""
SCENARIO = """\
name: small
topology: topology.yaml
model: digits_branchy
dataset: digits
policies:
  - device-only
  - {name: cut, plan: split, at: 2}
load: {requests_per_device: 10, rate_per_s: 2, deadline: 250ms}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    return tmp_path


def edit(folder: Path, name: str, old: str, new: str) -> Path:
    path = folder / name
    text = path.read_text()
    assert old in text, "the test's own edit must apply"
    path.write_text(text.replace(old, new))
    return folder / "scenario.yaml"


def test_tier_links_expand_to_node_links_round_robin(files: Path) -> None:
    topology = load_topology(files / "topology.yaml")
    assert [(a, b) for _, a, b in topology.node_links()] == [
        ("device1", "edge1"), ("device2", "edge2"), ("device3", "edge1"), ("edge1", "cloud1"), ("edge2", "cloud1")]
    assert topology.path("device2", "cloud1") == ["device2", "edge2", "cloud1"]
    assert topology.path_links("device3", "cloud1") == ["device3-edge1", "edge1-cloud1"]
    assert topology.serving_node("device2", "edge") == "edge2"
    assert topology.serving_node("device2", "device") == "device2"


def test_a_resolved_scenario_can_be_written_and_read_again(files: Path) -> None:
    scenario = load_scenario(files / "scenario.yaml")
    again = type(scenario).model_validate(yaml.safe_load(scenario.model_dump_json()))
    assert again == scenario
    assert scenario.load.deadline == 0.25


def test_sweep_is_cartesian_and_reaches_into_the_topology_and_policies(files: Path) -> None:
    points = expand(files / "scenario.yaml", {}, {"topology.links.device-edge.up.rate": ["1mbit", "2mbit"],
                                                  "policies.cut.at": [1, 2, 3]})
    assert len(points) == 6
    assert [p.scenario.topology.links[0].direction("up").rate for p in points] == [10**6] * 3 + [2 * 10**6] * 3
    assert [p.scenario.policies[1].at for p in points] == [1, 2, 3] * 2  # type: ignore[union-attr]


def test_a_rate_that_is_set_replaces_a_trace(files: Path) -> None:
    edit(files, "topology.yaml", "up: {rate: 5mbit,", "up: {trace: some.trace,")
    scenario = load_scenario(files / "scenario.yaml", {"topology.links.device-edge.up.rate": "3mbit"})
    assert scenario.topology.links[0].direction("up").trace is None


BAD = [
    ("unknown key", "scenario.yaml", "dataset: digits", "dataset: digits\ndatset: x", ["datset", "unknown key", "dataset"]),
    ("wrong unit", "topology.yaml", "delay: 20ms", "delay: 20mbit", ["links[1].both.delay", "'20mbit'", "ms"]),
    ("no unit", "scenario.yaml", "deadline: 250ms", "deadline: 250", ["load.deadline", "250", "25ms"]),
    ("unreached tier", "topology.yaml", "  - between: [edge, cloud]\n    both: {rate: 100mbit, delay: 20ms}\n", "",
     ["no link reaches", "cloud", "between"]),
    ("absent topology", "scenario.yaml", "topology: topology.yaml", "topology: none.yaml", ["topology", "none.yaml"]),
    ("wrong type", "scenario.yaml", "requests_per_device: 10", "requests_per_device: many", ["requests_per_device", "'many'"]),
    ("below the minimum", "scenario.yaml", "requests_per_device: 10", "requests_per_device: 0", ["requests_per_device", "greater"]),
    ("not YAML", "scenario.yaml", "load: {", "load: {{", ["scenario.yaml", "line", "YAML"]),
    ("key twice", "scenario.yaml", "dataset: digits", "dataset: digits\ndataset: cifar10", ["dataset", "twice"]),
    ("missing key", "scenario.yaml", "model: digits_branchy\n", "", ["model", "missing"]),
    ("rate and trace", "topology.yaml", "up: {rate: 5mbit,", "up: {rate: 5mbit, trace: t,", ["rate and trace"]),
    ("more jitter than delay", "topology.yaml", "both: {rate: 100mbit, delay: 20ms}",
     "both: {rate: 100mbit, delay: 20ms, jitter: 30ms}", ["jitter"]),
    ("unknown plan", "scenario.yaml", "  - device-only", "  - device-onyl", ["policies[0]", "device-onyl", "device-only"]),
    ("split without a cut", "scenario.yaml", ", at: 2}", "}", ["policies[1]", "at:"]),
    ("same name twice", "scenario.yaml", "name: cut,", "name: device-only,", ["policies", "device-only"]),
    ("tier that is not there", "scenario.yaml", "plan: split, at: 2", "plan: split, at: 2, tail: fog", ["fog", "device, edge, cloud"]),
    ("loops need ovs", "topology.yaml", "  - between: [edge, cloud]", "  - between: [edge1, edge2]\n    both: {rate: 1mbit}\n  - between: [edge, cloud]",
     ["switch", "ovs"]),
    ("event at nothing", "scenario.yaml", "load: {", "events: [{at: 3s, kind: node_crash, node: edge9}]\nload: {", ["events[0].node", "edge9", "edge1"]),
    ("order without a limit", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, queue: {order: edf}", ["load.queue", "workers", "no order"]),
    ("queue in a closed loop", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, arrivals: closed, queue: {workers: 2}", ["load", "closed", "none waits"]),
    ("deadlines backwards", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, deadlines: {uniform: [3s, 1s]}", ["load.deadlines.uniform", "3s", "shorter"]),
    ("deadline of no time", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, deadlines: {uniform: [0ms, 1s]}", ["load.deadlines.uniform", "above zero"]),
    ("pivot backwards", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, deadlines: {uniform: [1s, 2s], pivot: [{requests: [9, 2], uniform: [1s, 2s]}]}", ["pivot[0]", "not a range"]),
    ("pivots overlap", "scenario.yaml", "deadline: 250ms", "deadline: 250ms, deadlines: {uniform: [1s, 2s], pivot: "
     "[{requests: [0, 5], uniform: [1s, 2s]}, {requests: [4, 9], uniform: [1s, 2s]}]}", ["load.deadlines", "[4, 9]", "overlap"]),
]


@pytest.mark.parametrize(("case", "name", "old", "new", "says"), BAD, ids=[b[0] for b in BAD])
def test_bad_files_give_one_line_with_file_key_value_and_remedy(files: Path, case, name, old, new, says) -> None:  # type: ignore[no-untyped-def]
    scenario = edit(files, name, old, new)
    with pytest.raises(InputError) as caught:
        load_scenario(scenario)
    text = str(caught.value)
    assert "\n" not in text and caught.value.exit_code == 2
    assert ".yaml" in text and "; " in text, text
    for word in says:
        assert word in text, text


def test_a_misspelt_file_name_is_recognised(files: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean .*scenario\.yaml"):
        load_scenario(files / "scenaro.yaml")


def test_an_override_of_a_key_that_is_not_there_names_what_is(files: Path) -> None:
    with pytest.raises(InputError, match=r"device-edge, edge-cloud"):
        load_scenario(files / "scenario.yaml", {"topology.links.device-cloud.up.rate": "1mbit"})


def test_interface_names_fit_linux() -> None:
    with pytest.raises(ValueError, match="longer than"):
        Topology.model_validate({"tiers": [{"name": "regional", "count": 120}], "links": []})


def test_traces_can_be_played_one_after_the_other(files: Path) -> None:
    edit(files, "topology.yaml", "up: {rate: 5mbit,", "up: {trace: [a.up, b.up],")
    trace = load_scenario(files / "scenario.yaml").topology.links[0].direction("up").trace
    assert trace == (str(files / "a.up"), str(files / "b.up"))
