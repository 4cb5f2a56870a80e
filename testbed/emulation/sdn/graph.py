"""What the controller knows beforehand (switches, links, hosts), and the rules that follow from it. Pure; no OpenFlow."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Port = tuple[int, int]  # datapath id of the switch, OpenFlow number of the port


@dataclass(frozen=True)
class SwitchLink:
    """A link between two switches; "up" goes from a to b."""

    name: str
    a: Port
    b: Port


@dataclass(frozen=True)
class Attachment:
    """A host at a switch's port. ``link`` is the emulated link in between ("" for an unshaped joint).

    The host is the link's first end, so "up" arrives at the port and "down" leaves through it.
    """

    name: str
    mac: str
    ip: str
    port: Port
    link: str = ""


@dataclass(frozen=True)
class SdnMap:
    """Switches (datapath id -> name), links between them in the topology's order, and hosts."""

    switches: Mapping[int, str]
    links: tuple[SwitchLink, ...]
    hosts: tuple[Attachment, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"switches": {str(k): v for k, v in self.switches.items()}, "links": [asdict(x) for x in self.links],
                "hosts": [asdict(h) for h in self.hosts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SdnMap:
        """The inverse of `to_json`."""
        return cls(
            {int(k): str(v) for k, v in data["switches"].items()},
            tuple(SwitchLink(x["name"], _port(x["a"]), _port(x["b"])) for x in data["links"]),
            tuple(Attachment(h["name"], h["mac"], h["ip"], _port(h["port"]), h["link"]) for h in data["hosts"]))

    @property
    def switch_ports(self) -> frozenset[Port]:
        """Ports that lead to another switch; a host is never behind one."""
        return frozenset(p for link in self.links for p in (link.a, link.b))

    def link_of(self, port: Port) -> tuple[str, Literal["up", "down"]] | None:
        """Link and direction of what a switch sends through a port; None for a joint without a link."""
        for link in self.links:
            if port == link.a:
                return link.name, "up"
            if port == link.b:
                return link.name, "down"
        return next(((h.link, "down") for h in self.hosts if h.port == port and h.link), None)

    def live_links(self, down: frozenset[Port]) -> list[SwitchLink]:
        """Links both of whose ports are up."""
        return [x for x in self.links if x.a not in down and x.b not in down]

    def next_hops(self, target: int, down: frozenset[Port] = frozenset()) -> dict[int, int]:
        """For each switch that reaches the switch ``target``: the port of its first link on a fewest-links path there.

        Ties go to the neighbour that the topology names first, at each step: the same path that
        `testbed.schema.topology.Topology.path` finds.
        """
        neighbours: dict[int, list[tuple[int, int]]] = {s: [] for s in self.switches}  # switch -> (port, other switch)
        for link in self.live_links(down):
            neighbours[link.a[0]].append((link.a[1], link.b[0]))
            neighbours[link.b[0]].append((link.b[1], link.a[0]))
        distance, queue = {target: 0}, deque([target])
        while queue:
            here = queue.popleft()
            for _, other in neighbours[here]:
                if other not in distance:
                    distance[other] = distance[here] + 1
                    queue.append(other)
        return {here: next(port for port, other in neighbours[here] if distance.get(other) == far - 1)
                for here, far in distance.items() if here != target}

    def rules(self, down: frozenset[Port] = frozenset(),
              learned: Mapping[str, Port] | None = None) -> dict[int, dict[str, int | None]]:
        """Per switch: MAC address -> port to send to, or None where no path exists (such packets are dropped).

        ``learned``: addresses of hosts that were not known beforehand, and where they were seen.
        """
        places = {h.mac: h.port for h in self.hosts} | dict(learned or {})
        tables: dict[int, dict[str, int | None]] = {s: {} for s in self.switches}
        trees: dict[int, dict[int, int]] = {}
        for mac, (switch, port) in places.items():
            if switch not in trees:
                trees[switch] = self.next_hops(switch, down)
            for here, table in tables.items():
                table[mac] = (None if (switch, port) in down else port) if here == switch else trees[switch].get(here)
        return tables


def _port(value: Any) -> Port:
    switch, number = value
    return int(switch), int(number)
