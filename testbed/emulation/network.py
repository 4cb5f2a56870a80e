"""The Mininet network of a trial: a host per node, a switch per branching point, and our links between them."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mininet.link import Intf
from mininet.link import Link as PlainLink
from mininet.net import Mininet
from mininet.node import Host, Node, Switch

from testbed.emulation.fabric import LinkFabric
from testbed.emulation.link import DirectionSpec, ShapedLink
from testbed.emulation.netns import NetNamespace
from testbed.emulation.sdn.process import SoftwareDefinedNetwork, fail_link, joins_switches, map_of
from testbed.errors import EmulationError
from testbed.schema.topology import Topology

NETWORK = ipaddress.ip_network("10.0.0.0/16")


class Bridge(Switch):  # type: ignore[misc]  # Mininet has no types
    """A Linux bridge in the trial's own namespace: no spanning tree, no multicast snooping, no system bridge touched."""

    def start(self, controllers: list[Any]) -> None:
        """Make the bridge and enslave every interface of this switch."""
        _ip("link", "add", self.name, "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        for intf in self.intfList():
            if intf.name != "lo":
                _ip("link", "set", intf.name, "master", self.name)
                _ip("link", "set", intf.name, "up")
        _ip("link", "set", self.name, "up")

    def stop(self, deleteIntfs: bool = True) -> None:  # Mininet's name
        """Remove the bridge (closing the namespace would too)."""
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True, timeout=10)
        super().stop(deleteIntfs)

    def connected(self) -> bool:
        """A bridge forwards as soon as it is up."""
        return True


def addresses(topology: Topology) -> dict[str, str]:
    """Address of every node: 10.0.0.1 onwards in the order of the tiers; the same in every run."""
    hosts = NETWORK.hosts()
    return {name: str(next(hosts)) for name in topology.node_names}


class Network:
    """Builds `topology` inside the namespaces that the caller is in.

    Parameters
    ----------
    directions: for every (link name, "up" | "down") what the link does.
    make_host: Mininet host class or factory per node name (a container's host joins its namespace).

    A node with one link that is the link's first end is a leaf: its shaped link goes straight to the other's switch.
    Every other node has a switch beside it, joined to its host by an unshaped veth; so traffic that only passes (device
    to cloud) crosses the edge's switch and not the edge's host, as on an access router.
    """

    def __init__(self, topology: Topology, fabric: LinkFabric, directions: Mapping[tuple[str, str], DirectionSpec],
                 make_host: Callable[[str], tuple[type[Host], dict[str, Any]]] | None = None) -> None:
        self.topology = topology
        self.fabric = fabric
        self.addresses = addresses(topology)
        self.sdn = SoftwareDefinedNetwork(fabric.run_dir) if topology.switch == "ovs" else None
        switch_options = self.sdn.switch_options if self.sdn is not None else {}
        self.net = Mininet(topo=None, build=False, controller=None, switch=Bridge, waitConnected=False)
        self.hosts: dict[str, Host] = {}
        self.switches: dict[str, Switch] = {}
        self.links: dict[str, ShapedLink] = {}
        degree: dict[str, int] = dict.fromkeys(topology.node_names, 0)
        pairs = topology.node_links()
        for _, a, b in pairs:
            degree[a] += 1
            degree[b] += 1
        leaves = {a for _, a, _ in pairs if degree[a] == 1}
        for i, name in enumerate(topology.node_names):
            cls, options = make_host(name) if make_host else (Host, {})
            self.hosts[name] = self.net.addHost(
                name, cls=cls, ip=f"{self.addresses[name]}/{NETWORK.prefixlen}", mac=_mac(i), **options)
            if name not in leaves and len(topology.node_names) > 1:
                self.switches[name] = self.net.addSwitch(f"s{len(self.switches) + 1}", **switch_options)
                joint = self.net.addLink(self.hosts[name], self.switches[name], cls=PlainLink, intf=Intf)
                for intf in (joint.intf1, joint.intf2):  # what leaves here enters shaped links behind the switch
                    fabric.one_packet_at_a_time(NetNamespace.of_process(intf.node.pid), intf.name)
        for _, a, b in pairs:
            name = f"{a}-{b}"
            self.links[name] = self.net.addLink(
                self._end(a), self._end(b), cls=ShapedLink, fabric=fabric, name=name,
                up=directions[name, "up"], down=directions[name, "down"], backend=topology.delay_backend)

    def _end(self, node: str) -> Node:
        return self.switches.get(node, self.hosts[node])

    def build(self) -> None:
        """Configure addresses and start the switches. Raises EmulationError."""
        try:
            self.net.build()
            if self.sdn is not None:
                described = map_of(self.switches, self.hosts, self.links)
                self.sdn.start(described, self.switches.values(), self.hosts.values())
            else:
                for switch in self.switches.values():
                    switch.start([])
            self._neighbours()
            self._tcp()
        except (OSError, subprocess.SubprocessError, AssertionError) as error:
            raise EmulationError(f"the network could not be built: {error}") from error

    def _neighbours(self) -> None:
        """Permanent neighbour entries, so that no request waits for address resolution over a slow link."""
        for name, host in self.hosts.items():
            lines = "\n".join(f"neigh replace {self.addresses[other]} lladdr {self.hosts[other].MAC()} "
                              f"dev {host.defaultIntf().name} nud permanent"
                              for other in self.hosts if other != name)
            if lines:
                process = host.popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True)
                _, error = process.communicate(lines, timeout=30)
                if process.returncode:
                    raise EmulationError(f"neighbour entries of {name}: {str(error).strip()}")

    def _tcp(self) -> None:
        """What the topology says of TCP, in every host's own namespace."""
        tcp = self.topology.tcp
        script = f"cd /proc/sys/net/ipv4 && echo {int(tcp.slow_start_after_idle)} > tcp_slow_start_after_idle"
        if tcp.congestion is not None:
            script += f" && echo {tcp.congestion} > tcp_congestion_control"
        for name, host in self.hosts.items():
            process = host.popen(["sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            _, error = process.communicate(timeout=30)
            if process.returncode:
                raise EmulationError(f"topology.tcp cannot be set on {name}: {str(error).strip()}; a private namespace "
                                     "may use reno and what `sysctl net.ipv4.tcp_allowed_congestion_control` lists")

    def pid(self, node: str) -> int:
        """A process that lives in the node's network namespace."""
        return int(self.hosts[node].pid)

    def set_link_down(self, link: str, down: bool, directions: Sequence[str] = ("up", "down")) -> None:
        """Let a link carry nothing (its queues hold what they can), or let it carry again.

        With ``switch: ovs``, a link between two switches is cut: its ports go down, and the controller routes around it.
        One direction alone fails silently, as it does in life.
        """
        cut = self.sdn is not None and joins_switches(self.links[link]) and len(set(directions)) == 2
        if cut and not down:
            fail_link(self.links[link], False)
        self.fabric.set_down(link, down, directions)
        if cut and down:
            fail_link(self.links[link], True)

    def stop(self) -> None:
        """Stop Mininet; ending the sandbox does the same at no cost."""
        if self.sdn is not None:
            self.sdn.stop()
        self.net.stop()


def _mac(index: int) -> str:
    return f"02:00:00:00:{(index + 1) >> 8:02x}:{(index + 1) & 255:02x}"


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)
    if result.returncode:
        raise EmulationError(f"ip {' '.join(words)}: {result.stderr.strip()}")
