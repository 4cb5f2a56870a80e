"""Software-defined network: traffic through Open vSwitch, re-routing around a failed link, loops, records."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.emulation.sandbox import Sandbox
from tests.emulation.ring_in_sandbox import BROADCASTS

pytestmark = pytest.mark.net
PROJECT = Path(__file__).parents[2]
NODES = ["device1", "device2", "edge1", "edge2", "edge3", "cloud1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    process = Sandbox.spawn([sys.executable, "-m", "tests.emulation.ring_in_sandbox", str(folder)], cwd=PROJECT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None and process.stderr is not None
        text, problem = process.stdout.read(), process.stderr.read()
        assert process.wait(90) == 0, problem.decode()
    result: dict[str, Any] = json.loads(text)
    return result


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_node_reaches_every_other_by_ping_and_tcp(seen: dict[str, Any]) -> None:
    pings = seen["use"]["pings"]
    assert len(pings) == 15 and set(pings.values()) == {2}, pings
    assert seen["use"]["tcp_bps"] > 10e6  # of 50 Mbit/s; without checksums from the hosts it would be nothing


def test_hosts_fill_in_checksums_where_the_switch_is_in_user_space(seen: dict[str, Any]) -> None:
    user_space = seen["summary"]["datapath"] == "netdev"
    assert set(seen["use"]["checksums_by_host"].values()) == {user_space}


def test_a_broadcast_reaches_every_host_once_and_does_not_circle(seen: dict[str, Any]) -> None:
    assert set(seen["broadcast"]["got"]) == set(NODES) - {"device2"}
    for name, numbers in seen["broadcast"]["got"].items():
        assert sorted(numbers) == list(range(BROADCASTS)), name
    # five copies of each, sent by the switches that the hosts are at; a storm would be millions
    assert sum(seen["broadcast"]["sent_by_switches"].values()) < 2 * 5 * BROADCASTS


def test_a_host_that_nobody_announced_is_learned(seen: dict[str, Any], folder: Path) -> None:
    learned = [e for e in events(folder) if e["event"] == "learned"]
    assert [(e["mac"], e["switch"]) for e in learned] == [("02:aa:00:00:00:01", "s2")]
    answers = seen["broadcast"]["to_stranger"]
    assert answers["device2"] == [100]  # where the stranger spoke
    assert not any(numbers for name, numbers in answers.items() if name != "device2")


def test_a_full_queue_on_one_link_takes_nothing_from_the_others(seen: dict[str, Any]) -> None:
    assert seen["crowd"]["queued"] > 300  # the queue's limit is 600; a socket's usual buffer holds 94
    assert seen["crowd"]["pings"] == 20


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sdn_events.jsonl").read_text().splitlines()]


def test_the_network_routes_around_a_failed_link_and_reports_the_gap(seen: dict[str, Any]) -> None:
    fail, reroutes = seen["fail"], seen["summary"]["reroutes"]
    first = reroutes[0]
    assert first["cause"] == "port_down edge1-cloud1" and first["links_down"] == ["edge1-cloud1"]
    assert first["switches"] == ["s1", "s2", "s4"]  # edge3's paths did not use the link
    assert fail["cut_ns"] <= first["began_ns"] <= first["t_ns"]
    assert first["duration_s"] == (first["t_ns"] - first["began_ns"]) / 1e9
    assert 0 < first["duration_s"] < 2
    assert reroutes[1]["cause"] == "port_up edge1-cloud1" and reroutes[1]["links_down"] == []
    assert fail["detour_packets"] > 50  # pings went on, over the other uplink
    assert fail["answers"] > 450  # of 600, of which some 200 fell into the outage of a second
    assert fail["longest_gap_s"] < 0.9  # shorter than the outage: it was not waited for
    assert fail["tcp_end_bytes"] > 0


def test_without_any_path_packets_are_dropped_in_the_switch(seen: dict[str, Any]) -> None:
    assert seen["fail"]["alone"] == {"cloud": 0, "edge": 2}
    assert seen["fail"]["misses"] < 100  # the controller is not asked about each of them
    assert seen["fail"]["mended"] == 2


def test_statistics_agree_with_the_kernels_counters(seen: dict[str, Any], folder: Path) -> None:
    """A switch counts frames, the shaper IP bytes: 14 bytes of Ethernet header per packet apart."""
    last = {(r["link"], r["direction"]): r for r in rows(folder / "sdn_links.csv") if r["link"]}
    links = set(seen["kernel"])
    assert {link for link, _ in last} == links
    for link in links - {"device2-edge2"}:  # that one dropped what the switch had sent
        side = seen["kernel"][link]["down"]
        switch = last[link, "down"]
        lost = 60 if link in ("edge1-cloud1", "edge3-cloud1") else 0  # what the failures flushed
        assert int(switch["tx_packets"]) == pytest.approx(side["tx_packets"], abs=10 + lost), link
        assert int(switch["tx_bytes"]) == pytest.approx(
            side["tx_bytes"] + 14 * side["tx_packets"], rel=0.02, abs=1500 * (10 + lost)), link
    flows = rows(folder / "sdn_flows.csv")
    assert {f["destination"] for f in flows} >= set(NODES)
    assert max(int(f["packets"]) for f in flows if f["switch"] == "s1" and f["destination"] == "cloud1") > 100


def test_the_instance_is_private(seen: dict[str, Any], folder: Path) -> None:
    """Every socket with a name in the network namespace is below the trial's folder, and nothing stays there."""
    named = [name for name in seen["unix_sockets"] if name.startswith("/") and "ovs" in name]
    assert any(name.endswith("db.sock") for name in named)
    assert all(name.startswith(str(folder)) for name in named), named
    assert list((folder / "ovs").iterdir()) == []


def test_the_summary_names_versions_and_is_the_same_twice(seen: dict[str, Any]) -> None:
    summary = seen["summary"]
    assert summary == seen["again"]
    assert summary["datapath"] in ("netdev", "system") and summary["openflow"] == "OpenFlow13"
    assert summary["openvswitch"][0].isdigit() and summary["controller"].startswith("os-ken ")
    if summary["datapath"] == "netdev":
        assert summary["send_buffer_bytes"] >= 200_000


def test_the_datapath_is_the_kernels_where_it_has_one(seen: dict[str, Any]) -> None:
    """TESTBED_DATAPATH is set where these tests run inside user-mode Linux, which has one."""
    assert seen["summary"]["datapath"] == os.environ.get("TESTBED_DATAPATH", seen["summary"]["datapath"])
