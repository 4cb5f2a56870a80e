"""What the tests of the software-defined network look at: a ring of three edges, used, broken and mended, in one sandbox.

Started as `python -m tests.emulation.ring_in_sandbox FOLDER` inside a `Sandbox`; prints what it saw as JSON.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from testbed.emulation.direction import DirectionSpec, QueueLimit
from testbed.emulation.fabric import LinkFabric
from testbed.emulation.netns import NetNamespace
from testbed.emulation.network import Network
from testbed.schema.topology import Topology

RING = {
    "switch": "ovs",
    "tiers": [{"name": "device", "count": 2}, {"name": "edge", "count": 3}, {"name": "cloud"}],
    "links": [{"between": pair} for pair in (
        ["device1", "edge1"], ["device2", "edge2"], ["edge1", "cloud1"], ["edge3", "cloud1"], ["edge1", "edge2"],
        ["edge2", "edge3"], ["edge3", "edge1"])],
}
FAST = DirectionSpec(rate_bps=50_000_000, delay_s=0.002)
SLOW = DirectionSpec(rate_bps=1_000_000, queue=QueueLimit(packets=600))
BROADCASTS = 20
FLOOD = 800
STRANGER = "02:aa:00:00:00:01"
_ETHERTYPE = 0x88B5  # for local experiments


class Ring:
    """The network, and the tools to use it."""

    def __init__(self, folder: Path) -> None:
        topology = Topology.model_validate(RING)
        directions = {(f"{a}-{b}", d): SLOW if (f"{a}-{b}", d) == ("device2-edge2", "down") else FAST
                      for _, a, b in topology.node_links() for d in ("up", "down")}
        self.fabric = LinkFabric(folder, seed=1)
        self.network = Network(topology, self.fabric, directions)
        self.network.build()
        self.fabric.start()
        assert self.network.sdn is not None
        self.sdn = self.network.sdn

    def popen(self, node: str, *argv: str) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = self.network.hosts[node].popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return process

    def iperf_server(self, node: str) -> subprocess.Popen[str]:
        """One that listens already, for one test."""
        process = self.popen(node, "iperf3", "-s", "-1")
        tables = [Path(f"/proc/{self.network.pid(node)}/net/{name}") for name in ("tcp", "tcp6")]
        deadline = time.monotonic() + 20
        while not any(":1451 " in t.read_text() for t in tables if t.exists()):  # 5201
            assert time.monotonic() < deadline and process.poll() is None, "iperf3 does not listen"
            time.sleep(0.02)
        return process

    def ping(self, src: str, dst: str, count: int = 2, interval_s: float = 0.05) -> int:
        """Answers that came."""
        argv = ["ping", "-n", "-q", "-c", str(count), "-i", str(interval_s), "-W", "2", self.network.addresses[dst]]
        output = self.popen(src, *argv).communicate(timeout=60)[0]
        found = re.search(r"(\d+) received", output)
        assert found is not None, output
        return int(found[1])

    def raw(self, node: str) -> socket.socket:
        """A socket for whole frames of our own type at a node's interface."""
        namespace = NetNamespace.of_process(self.network.pid(node))

        def make() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE))
            opened.bind((self.network.hosts[node].defaultIntf().name, _ETHERTYPE))
            opened.settimeout(1.0)
            return opened

        return namespace.call(make)

    def udp(self, node: str) -> socket.socket:
        namespace = NetNamespace.of_process(self.network.pid(node))
        return namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def port_packets(self) -> dict[str, int]:
        """Packets that the switches have sent, per switch."""
        return {s.name: sum(map(int, re.findall(r"tx pkts=(\d+)", self.sdn.ovs.ofctl("dump-ports", s.name))))
                for s in self.network.switches.values()}


def use(ring: Ring) -> dict[str, Any]:
    """Pings between all pairs, TCP across two switches, what the hosts' interfaces offload."""
    names = list(ring.network.hosts)
    pings = {f"{a}>{b}": ring.ping(a, b) for i, a in enumerate(names) for b in names[i + 1:]}
    server = ring.iperf_server("cloud1")
    output = ring.popen("device1", "iperf3", "-c", ring.network.addresses["cloud1"], "-t", "1", "-J").communicate(timeout=30)[0]
    server.kill()
    report = json.loads(output)
    offload = {n: "tx-checksumming: off" in ring.popen(n, "ethtool", "-k", h.defaultIntf().name).communicate()[0]
               for n, h in ring.network.hosts.items()}
    return {"pings": pings, "tcp_bps": report["end"].get("sum_received", report).get("bits_per_second", report),
            "checksums_by_host": offload}


def frame(target: str, sender: str, number: int) -> bytes:
    return bytes.fromhex((target + sender).replace(":", "")) + _ETHERTYPE.to_bytes(2, "big") + number.to_bytes(46, "big")


def broadcast(ring: Ring) -> dict[str, Any]:
    """Broadcasts of a known host and of a stranger, and what everyone got; then a frame to the stranger."""
    sockets = {name: ring.raw(name) for name in ring.network.hosts}
    mac = ring.network.hosts["device2"].MAC()
    before = ring.port_packets()
    for number in range(BROADCASTS):
        sockets["device2"].send(frame("ff:ff:ff:ff:ff:ff", mac, number))
        time.sleep(0.01)
    got: dict[str, list[int]] = {}
    for name, opened in sockets.items():
        if name != "device2":
            got[name] = _numbers(opened)
    sent = {name: count - before[name] for name, count in ring.port_packets().items()}
    sockets["device2"].send(frame("ff:ff:ff:ff:ff:ff", STRANGER, 99))
    time.sleep(0.5)
    for opened in sockets.values():
        _numbers(opened, 0.1)
    sockets["cloud1"].send(frame(STRANGER, ring.network.hosts["cloud1"].MAC(), 100))
    answered = {name: _numbers(opened, 0.5) for name, opened in sockets.items() if name != "cloud1"}
    for opened in sockets.values():
        opened.close()
    return {"got": got, "sent_by_switches": sent, "to_stranger": answered}


def _numbers(opened: socket.socket, wait_s: float = 0.3) -> list[int]:
    """Numbers of the frames that arrive until nothing has come for a while; not those that the socket's owner sent."""
    opened.settimeout(wait_s)
    found = []
    while True:
        try:
            data, address = opened.recvfrom(2048)
        except TimeoutError:
            return found
        if address[2] != socket.PACKET_OUTGOING:
            found.append(int.from_bytes(data[14:60], "big"))


def crowd(ring: Ring) -> dict[str, Any]:
    """A full queue on one slow link, and pings over others meanwhile."""
    with ring.udp("cloud1") as sender:
        for _ in range(FLOOD):
            sender.sendto(bytes(1472), (ring.network.addresses["device2"], 9))
            time.sleep(0.001)
    answers = ring.ping("device1", "edge3", count=20, interval_s=0.01)
    return {"queued": ring.fabric.counters()["device2-edge2"]["down"]["backlog_packets"], "pings": answers}


def fail(ring: Ring) -> dict[str, Any]:
    """Pings every 5 ms while edge1-cloud1 is cut and mended; TCP across the same; then no path at all."""
    address = ring.network.addresses["cloud1"]
    server = ring.iperf_server("cloud1")
    pings = ring.popen("device1", "ping", "-n", "-D", "-i", "0.005", "-c", "600", address)
    time.sleep(0.5)
    client = ring.popen("device1", "iperf3", "-c", address, "-t", "3", "-b", "4M", "-i", "0.5", "-J")
    time.sleep(0.7)
    cut_ns = time.monotonic_ns()
    ring.network.set_link_down("edge1-cloud1", True)
    time.sleep(1.0)
    detour = ring.fabric.counters()["edge3-cloud1"]["up"]["tx_packets"]
    ring.network.set_link_down("edge1-cloud1", False)
    output = pings.communicate(timeout=60)[0]
    report = json.loads(client.communicate(timeout=60)[0])
    server.kill()
    times = [float(t) for t in re.findall(r"^\[([\d.]+)\] \d+ bytes from", output, re.MULTILINE)]
    for link in ("edge1-cloud1", "edge3-cloud1"):
        ring.network.set_link_down(link, True)
    time.sleep(0.3)
    alone = {"cloud": ring.ping("device1", "cloud1"), "edge": ring.ping("device1", "edge3")}
    misses = [line for line in ring.sdn.ovs.ofctl("dump-flows", "s1").splitlines() if "priority=0 " in line]
    for link in ("edge1-cloud1", "edge3-cloud1"):
        ring.network.set_link_down(link, False)
    time.sleep(0.3)
    return {"answers": len(times), "longest_gap_s": max(b - a for a, b in pairwise(times)),
            "detour_packets": detour, "cut_ns": cut_ns, "alone": alone, "mended": ring.ping("device1", "cloud1"),
            "tcp_end_bytes": report["intervals"][-1]["sum"]["bytes"] if report.get("intervals") else report,
            "misses": int(re.findall(r"n_packets=(\d+)", misses[0])[0])}


def main(folder: Path) -> None:
    ring = Ring(folder)
    seen: dict[str, Any] = {"use": use(ring), "broadcast": broadcast(ring), "crowd": crowd(ring), "fail": fail(ring)}
    time.sleep(1.2)  # one more poll of the statistics
    seen["kernel"] = ring.fabric.counters()
    seen["unix_sockets"] = [line.split()[7] for line in Path("/proc/net/unix").read_text().splitlines()[1:]
                            if len(line.split()) > 7]
    seen["summary"] = ring.sdn.finish()
    seen["again"] = ring.sdn.finish()
    ring.fabric.stop()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
