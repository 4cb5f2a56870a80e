"""The trial's side of the software-defined network: its Open vSwitch, its controller process, and failing links."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mininet.node import Host, Switch

from testbed.emulation.helper import Helper
from testbed.emulation.link import ShapedLink
from testbed.emulation.netns import NetNamespace
from testbed.emulation.ovs import OpenVSwitch, OvsSwitch, whole_packets_only
from testbed.emulation.sdn.graph import Attachment, SdnMap, SwitchLink
from testbed.errors import EmulationError, MissingToolError

CONTROLLER_PORT = 6653
READY_TIMEOUT_S = 30.0


class SoftwareDefinedNetwork:
    """Open vSwitch and controller of one trial.

    Use: make it, give its `switch_options` to Mininet's ``addSwitch``, add hosts and links, then `start`.
    Writes ``sdn_events.jsonl``, ``sdn_links.csv`` and ``sdn_flows.csv`` into ``folder``, logs into ``folder/logs``.
    """

    def __init__(self, folder: Path, *, poll_s: float = 1.0) -> None:
        if importlib.util.find_spec("os_ken") is None:
            raise MissingToolError("the package os-ken is not installed", remedy="run `make setup`, or write switch: bridge")
        self.folder = folder
        self.ovs = OpenVSwitch(folder / "ovs", folder / "logs")
        self._poll_s = poll_s
        self._controller: Helper | None = None
        self._summary: dict[str, Any] = {}

    @property
    def switch_options(self) -> dict[str, Any]:
        """For ``net.addSwitch(name, **options)``."""
        return {"cls": OvsSwitch, "ovs": self.ovs}

    def start(self, network: SdnMap, switches: Iterable[Switch], hosts: Iterable[Host]) -> None:
        """Start daemons, controller and switches; returns when every path is installed. Raises EmulationError."""
        self.ovs.start()
        try:
            if self.ovs.datapath == "netdev":
                for host in hosts:
                    namespace = NetNamespace.of_process(host.pid)
                    for interface in host.intfList():
                        if interface.name != "lo":
                            whole_packets_only(namespace, interface.name)
                    namespace.close()
            job = {"network": network.to_json(), "folder": str(self.folder.resolve()), "port": CONTROLLER_PORT,
                   "poll_s": self._poll_s}
            self._controller = Helper("testbed.emulation.sdn.controller", job, (), self.folder / "logs" / "controller.log")
            for switch in switches:
                switch.start([f"tcp:127.0.0.1:{CONTROLLER_PORT}"])
            self._controller.ask("wait_ready", timeout_s=READY_TIMEOUT_S + 5, wait_s=READY_TIMEOUT_S)
            if network.hosts:
                dpid, port = network.hosts[0].port
                self.ovs.widen_buffers(network.switches[dpid], port)
        except BaseException:
            self.stop()
            raise

    def reroutes(self) -> list[dict[str, Any]]:
        """Every change of paths so far: cause, when the port message came, seconds until the last switch had confirmed."""
        if self._controller is not None:
            self._summary = self._controller.ask("reroutes")
        return list(self._summary.get("reroutes", []))

    def running(self) -> bool:
        """Whether switch and controller live."""
        return self.ovs.running() and self._controller is not None and self._controller.process.poll() is None

    def finish(self) -> dict[str, Any]:
        """End the controller, before the links are taken away: what is torn down is no failure. Rules stay as they are.

        Returns versions, datapath, and what was re-routed, for the manifest; also when called again.
        """
        if self._controller is not None:
            if self._controller.process.poll() is not None:
                raise EmulationError(f"the controller ended by itself; see {self.folder}/logs/controller.log")
            if not self.ovs.running():
                raise EmulationError(f"Open vSwitch ended by itself; see {self.folder}/logs/ovs-vswitchd.log")
            self._summary = self._controller.stop()
            self._controller = None
        return {**self.ovs.manifest(), "controller": f"os-ken {importlib.metadata.version('os-ken')}",
                "controller_cpu_s": self._summary.get("cpu_s"), "reroutes": self.reroutes()}

    def stop(self) -> None:
        """End controller and switches."""
        if self._controller is not None:
            self._controller.kill()
            self._controller = None
        self.ovs.stop()


def map_of(switches: Mapping[str, Switch], hosts: Mapping[str, Host], links: Mapping[str, ShapedLink]) -> SdnMap:
    """What the controller is told of a Mininet network. ``switches``: by the name of the node that they stand beside."""
    dpid = {switch: int(switch.dpid, 16) for switch in switches.values()}

    def port(interface: Any) -> tuple[int, int]:
        return dpid[interface.node], int(interface.node.ports[interface])

    named = {(link.intf1, link.intf2): name for name, link in links.items()}
    between = tuple(SwitchLink(name, port(a), port(b)) for (a, b), name in named.items()
                    if a.node in dpid and b.node in dpid)
    attached = []
    for name, host in hosts.items():
        for interface in host.intfList():
            link = interface.link
            if link is None or interface.name == "lo":
                continue
            other = link.intf2 if link.intf1 is interface else link.intf1
            if other.node in dpid:
                attached.append(Attachment(name, host.MAC(), host.IP(), port(other),
                                           named.get((link.intf1, link.intf2), "")))
    return SdnMap({number: switch.name for switch, number in dpid.items()}, between, tuple(attached))


def fail_link(link: ShapedLink, down: bool) -> None:
    """Cut a link between two switches (or mend it): both ports go down, and the controller is told by its switches.

    What waits in the link's queue or is on its way is lost, as with a cable that is cut. The caller also tells the
    fabric (`LinkFabric.set_down`), which then holds what a link to a host would carry.
    """
    ends = (link.fabric_link.a, link.fabric_link.b)  # both in the namespace of the switches: one command, one instant
    state = "down" if down else "up"
    ends[0].namespace.run(["ip", "-batch", "-"], stdin="".join(f"link set dev {e.interface} {state}\n" for e in ends))


def joins_switches(link: ShapedLink) -> bool:
    """Whether both ends are switches, so that the network can route around it."""
    return isinstance(link.intf1.node, Switch) and isinstance(link.intf2.node, Switch)
