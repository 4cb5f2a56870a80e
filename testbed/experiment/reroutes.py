"""Which links a message really crossed, when an SDN controller changed the paths during the load."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from testbed.schema.topology import Topology

LIST_SEPARATOR = "+"


def follow_reroutes(hops: pd.DataFrame, topology: Topology, reroutes: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The `hops` table with `link` as it was when each message was sent.

    ``reroutes``: ``t_ns`` (rules in place) and ``links_down`` from then on, as `SoftwareDefinedNetwork.finish` returns
    them. The devices' programs only know the paths of the unharmed network.
    """
    table = hops.copy()
    ordered = sorted(reroutes, key=lambda r: int(r["t_ns"]))
    for change, after in zip(ordered, [*ordered[1:], None], strict=True):
        sent = table["send_start_ns"]
        during = (sent >= change["t_ns"]) & ((sent < after["t_ns"]) if after is not None else True) & table["link"].notna()
        for (src, dst), rows in table[during].groupby(["src_node", "dst_node"]):
            links = links_between(topology, str(src), str(dst), change["links_down"])
            if links:  # no path at all: it waited for the next change, or failed
                table.loc[rows.index, "link"] = LIST_SEPARATOR.join(links)
    return table


def links_between(topology: Topology, src: str, dst: str, down: Collection[str]) -> list[str]:
    """Names of the links on the path that the controller chooses while some links are down; [] when there is none."""
    neighbours: dict[str, list[tuple[str, str]]] = {n: [] for n in topology.node_names}
    for _, a, b in topology.node_links():
        if f"{a}-{b}" not in down:
            neighbours[a].append((b, f"{a}-{b}"))
            neighbours[b].append((a, f"{a}-{b}"))
    frontier: list[tuple[str, list[str]]] = [(src, [])]
    seen = {src}
    while frontier:
        here, links = frontier.pop(0)
        if here == dst:
            return links
        for other, link in neighbours[here]:
            if other not in seen:
                seen.add(other)
                frontier.append((other, [*links, link]))
    return []
