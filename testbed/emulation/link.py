"""`ShapedLink`: a Mininet link whose two directions are what their `DirectionSpec` says."""

from __future__ import annotations

from typing import Any

from mininet.link import Intf, Link
from mininet.node import Node

from testbed.emulation.direction import DirectionSpec, GilbertElliott, QueueLimit
from testbed.emulation.fabric import Endpoint, FabricLink, LinkFabric
from testbed.emulation.netns import NetNamespace

__all__ = ["DirectionSpec", "GilbertElliott", "QueueLimit", "ShapedLink"]


class ShapedLink(Link):  # type: ignore[misc]  # Mininet has no types
    """``net.addLink(device, switch, cls=ShapedLink, fabric=fabric, name="device1-edge1", up=..., down=...)``.

    The first node is the device's side: "up" goes from it to the second. Ports, interface names and addresses are
    Mininet's own parameters. The link carries traffic once ``fabric.start()`` has been called.
    """

    def __init__(
        self,
        node1: Node,
        node2: Node,
        *,
        fabric: LinkFabric,
        name: str,
        up: DirectionSpec | None = None,
        down: DirectionSpec | None = None,
        backend: str = "auto",
        **params: Any,
    ) -> None:
        self.name = name
        self.fabric = fabric
        self._wanted = (up or DirectionSpec(), down or DirectionSpec(), backend)
        self.fabric_link: FabricLink
        params.pop("fast", None)  # interfaces are made where they belong; nothing has to be moved
        params.setdefault("intf", Intf)
        super().__init__(node1, node2, fast=True, **params)

    def makeIntfPair(  # Mininet's name
        self,
        intfname1: str,
        intfname2: str,
        addr1: str | None = None,
        addr2: str | None = None,
        node1: Node = None,
        node2: Node = None,
        deleteIntfs: bool = True,
    ) -> None:
        """Called by Mininet's Link to make the two interfaces."""
        up, down, backend = self._wanted
        ends = [
            Endpoint(NetNamespace.of_process(node.pid), interface, mac)
            for node, interface, mac in ((node1, intfname1, addr1), (node2, intfname2, addr2))
        ]
        self.fabric_link = self.fabric.connect(self.name, ends[0], ends[1], up, down, backend)

    @property
    def backend(self) -> str:
        """What was built: "none", "netem" or "tap"."""
        return self.fabric_link.backend
