"""States of the network: which node is busy, short of memory, or behind a weak link; the presets of the experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from testbed.errors import InputError

MAX_DEVICES = 5
LEVELS = 9  # of processor utilisation at edge and cloud: 0, 1/8 .. 1 of what other work may take


@dataclass(frozen=True)
class Node:
    """One node's state. `busy`: level 0 .. LEVELS-1 of utilisation by other work (a device has 0 and LEVELS-1 only);
    `short`: of memory; `weak`: whether its link has the extra delay."""

    busy: int = 0
    short: bool = False
    weak: bool = False


@dataclass(frozen=True)
class Condition:
    """State of all nodes: 3(N + 2) discrete features."""

    devices: tuple[Node, ...]
    edge: Node = field(default_factory=Node)
    cloud: Node = field(default_factory=Node)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Devices, edge, cloud."""
        return (*self.devices, self.edge, self.cloud)

    def features(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """(3(N + 2),) features in [0, 1]: utilisation, memory, link of each node."""
        return np.array([x for n in self.nodes for x in (n.busy / (LEVELS - 1), n.short, n.weak)], np.float32)

    @property
    def key(self) -> str:
        """Text that names the state: three characters per node, for example `0-r` (idle, memory, regular) or `8sw`."""
        return " ".join(f"{n.busy}{'s' if n.short else '-'}{'w' if n.weak else 'r'}" for n in self.nodes)

    def permuted(self, order: Sequence[int]) -> Condition:
        """The same with device `order[i]` in place i."""
        return Condition(tuple(self.devices[i] for i in order), self.edge, self.cloud)


def links(devices: Sequence[bool], edge: bool) -> Condition:
    """An idle system; True: weak, per device and for the edge's uplink."""
    return Condition(tuple(Node(weak=weak) for weak in devices), Node(weak=edge))


# weak links of device 1..5 and of the edge's uplink. A and D are all regular and all weak; the mixed vectors of B and C
# were not recovered from the paper: NOT CONFIRMED, chosen here
PRESETS: dict[str, tuple[tuple[bool, bool, bool, bool, bool], bool]] = {
    "EXP-A": ((False, False, False, False, False), False),
    "EXP-B": ((False, True, False, True, False), False),
    "EXP-C": ((True, False, True, False, True), True),
    "EXP-D": ((True, True, True, True, True), True),
}
CONFIRMED = {"EXP-A", "EXP-D"}


def preset(name: str, devices: int) -> Condition:
    """The first `devices` devices of a preset. Raises InputError."""
    if name not in PRESETS:
        raise InputError("there is no such set of conditions", key="conditions", value=name,
                         remedy=f"use one of {', '.join(PRESETS)}, or own_conditions:")
    if not 1 <= devices <= MAX_DEVICES:
        raise InputError("is no number of devices that the presets have", key="devices", value=devices,
                         remedy=f"use 1 to {MAX_DEVICES}")
    weak, edge = PRESETS[name]
    return links(weak[:devices], edge)


def all_links(devices: int) -> Iterator[Condition]:
    """Every combination of regular and weak links, edge included: 2^(N+1) idle conditions."""
    for *weak, edge in product((False, True), repeat=devices + 1):
        yield links(weak, edge)
