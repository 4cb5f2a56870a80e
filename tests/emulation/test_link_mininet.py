"""`ShapedLink` inside Mininet, inside the sandbox: the way a trial uses it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from testbed.emulation.sandbox import Sandbox

pytestmark = pytest.mark.net

SCRIPT = """
    import json, sys, time
    from mininet.net import Mininet
    from testbed.emulation.fabric import LinkFabric
    from testbed.emulation.link import DirectionSpec, ShapedLink
    from testbed.emulation.network import Bridge

    fabric = LinkFabric(sys.argv[1], seed=1)
    net = Mininet(topo=None, build=False, controller=None, switch=Bridge, waitConnected=False)
    h1, h2 = net.addHost("h1", ip="10.0.0.1/24"), net.addHost("h2", ip="10.0.0.2/24")
    s1 = net.addSwitch("s1")
    up = DirectionSpec(rate_bps=8_000_000, delay_s=0.01)
    first = net.addLink(h1, s1, cls=ShapedLink, fabric=fabric, name="h1-s1", up=up, down=up, backend=sys.argv[2])
    second = net.addLink(h2, s1, cls=ShapedLink, fabric=fabric, name="h2-s1")
    net.build()
    s1.start([])
    fabric.start()
    h1.cmd("ping -c 1 10.0.0.2")
    ping = h1.cmd("ping -n -c 5 -i 0.1 10.0.0.2")
    server = h2.popen(["iperf3", "-s", "-1"])
    for attempt in range(40):  # until the server listens
        time.sleep(0.5)
        report = json.loads(h1.popen(["iperf3", "-c", "10.0.0.2", "-t", "2", "-J"]).communicate()[0])
        if "error" not in report:
            break
    counters = fabric.counters()
    summary = fabric.stop()
    print(json.dumps({"ping": ping, "iperf": report["end"], "counters": counters, "summary": summary,
                      "backends": [first.backend, second.backend], "names": [first.intf1.name, first.intf2.name]}))
"""


def test_hosts_behind_a_bridge_get_the_rate_and_delay_of_their_links(tmp_path, impairing, coarse):
    # mininet is a system package: the tests' interpreter sees it
    process = Sandbox.spawn(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), impairing],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    text = process.stdout.read()
    assert process.wait(60) == 0
    result = json.loads(text)
    assert result["backends"] == [impairing, "none"]
    assert result["names"] == ["h1-eth0", "s1-eth1"]
    fastest_ms = float(result["ping"].strip().rsplit("=", 1)[1].split("/")[0])
    assert fastest_ms >= 20.0
    assert coarse or fastest_ms < 23.0
    received_bps = result["iperf"]["sum_received"]["bits_per_second"]
    assert received_bps < 8e6
    assert received_bps > (4e6 if coarse else 0.9 * 8e6 * 1448 / 1500)
    payload_bytes = result["iperf"]["sum_received"]["bytes"]
    assert result["counters"]["h1-s1"]["up"]["tx_bytes"] == pytest.approx(
        payload_bytes * 1500 / 1448,
        rel=0.15 if coarse else 0.03,  # of a short transfer in slow time, more is under way at its end
    )
    assert result["summary"]["links"]["h1-s1"]["up"]["rate_readback_bps"] == 8_000_000
