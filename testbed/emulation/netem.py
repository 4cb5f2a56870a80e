"""Links in the kernel alone: plain veth pairs, and netem on a bridge in the middle for delay and loss."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.emulation.direction import DirectionSpec
from testbed.emulation.netns import NetNamespace
from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.emulation.fabric import Endpoint

_LIMIT_PACKETS = 1_000_000  # the link's queue is in front of the rate; what is in the air is never dropped for room
_TABLE = "testbed"


@cache
def available() -> bool:
    """Whether this kernel has netem and a bridge, found by making them in a scratch namespace."""
    try:
        scratch = NetNamespace.create()
    except TestbedError:
        return False
    try:
        scratch.run(["ip", "link", "add", "n0", "type", "veth", "peer", "name", "n1"])
        scratch.run(["ip", "link", "add", "n2", "type", "bridge"])
        scratch.run(["tc", "qdisc", "add", "dev", "n0", "root", "netem", "delay", "1ms"])
        return True
    except TestbedError:
        return False
    finally:
        scratch.close()


def veth_pair(a: Endpoint, b: Endpoint) -> None:
    """One veth device, one end in each namespace."""
    a.namespace.run(
        ["ip", "link", "add", "name", a.interface, *_address(a), "type", "veth"]
        + ["peer", "name", b.interface, *_address(b), "netns", b.namespace.path]
    )


def join(middle: NetNamespace, index: int, a: Endpoint, b: Endpoint) -> None:
    """A veth pair from each end into ``middle``, and a bridge between them that passes everything on."""
    bridge = f"l{index}"
    middle.run(
        ["ip", "link", "add", "name", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"]
        + ["mcast_snooping", "0", "ageing_time", "0", "group_fwd_mask", "0xfff8"]
    )
    for end, side in ((a, "a"), (b, "b")):
        port = f"l{index}{side}"
        middle.run(
            ["ip", "link", "add", "name", port, "type", "veth"]
            + ["peer", "name", end.interface, *_address(end), "netns", end.namespace.path]
        )
        middle.run(["ip", "link", "set", "dev", port, "master", bridge, "up"])
    middle.run(["ip", "link", "set", "dev", bridge, "addrgenmode", "none", "up"])


def configure(middle: NetNamespace, index: int, direction: str, spec: DirectionSpec, tables: Path) -> None:
    """Set or change netem for one direction: at the bridge's port towards the receiver. Loses nothing under way."""
    port = f"l{index}{'b' if direction == 'up' else 'a'}"
    environment = dict(os.environ)
    arguments = ["limit", str(_LIMIT_PACKETS), "delay", _microseconds(spec.delay_s)]
    if spec.jitter_s:
        tables.mkdir(parents=True, exist_ok=True)
        values = spec.jitter_table.tolist()
        lines = (" ".join(map(str, values[i : i + 16])) for i in range(0, len(values), 16))
        (tables / f"{_TABLE}.dist").write_text("\n".join(lines) + "\n")
        environment["TC_LIB_DIR"] = str(tables)
        arguments += [_microseconds(spec.jitter_s), "distribution", _TABLE]
    chain = spec.loss_chain
    if chain is not None:
        arguments += ["loss", "gemodel", *map(_percent, (chain.p, chain.r, chain.loss_bad, chain.loss_good))]
    elif spec.loss:
        arguments += ["loss", _percent(spec.loss)]
    if spec.duplicate:
        arguments += ["duplicate", _percent(spec.duplicate)]
    if spec.reorder and spec.delay_s:
        arguments += ["reorder", _percent(spec.reorder)]
    middle.run(["tc", "qdisc", "replace", "dev", port, "root", "handle", "1:", "netem", *arguments], env=environment)


def _address(end: Endpoint) -> list[str]:
    return ["address", end.mac] if end.mac else []


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3f}us"


def _percent(share: float) -> str:
    return f"{share * 100:.6f}%"
