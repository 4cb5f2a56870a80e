"""The interfaces of a link, and netem on them: all that is made with `ip` and `tc`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.emulation.delayline import open_tap
from testbed.emulation.direction import DirectionSpec
from testbed.emulation.netns import NetNamespace
from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.emulation.fabric import Endpoint

_LIMIT_PACKETS = 1_000_000  # the link's queue is in front of the rate; what is in the air is never dropped for room
_TABLE = "testbed"
_COPY, _MOVE = "mirror dev {} drop", "redirect dev {}"
_FILTERS = (["u32", "match", "u32", "0", "0"], ["matchall"])


@cache
def available() -> bool:
    """Whether this kernel has netem, found by using it in a scratch namespace."""
    return _works(["tc qdisc add dev n0 root netem delay 1ms"])


@cache
def catch_all() -> list[str] | None:
    """A filter of this kernel that can copy every packet to another interface, or None."""
    for words in _FILTERS:
        match = " ".join(words)
        ingress = "tc qdisc add dev n0 ingress"
        copy = f"tc filter add dev n0 parent ffff: protocol all {match} action mirred egress mirror dev n1 drop"
        if _works([ingress, copy]):
            return words
    return None


def _works(commands: list[str]) -> bool:
    try:
        scratch = NetNamespace.create()
    except TestbedError:
        return False
    try:
        for command in ["ip link add n0 type veth peer name n1", *commands]:
            scratch.run(command.split())
        return True
    except TestbedError:
        return False
    finally:
        scratch.close()


def veth_pair(a: Endpoint, b: Endpoint) -> None:
    """One veth device, one end in each namespace: a link that does nothing to its packets."""
    a.namespace.run(
        [
            *("ip", "link", "add", "name", a.interface, *_address(a), "type", "veth"),
            *("peer", "name", b.interface, *_address(b), "netns", b.namespace.path),
        ]
    )


def middle_namespace() -> NetNamespace:
    """Where the inner interfaces of all links live: out of the hosts' sight, and silent."""
    middle = NetNamespace.create()

    def quiet() -> None:
        for group in ("default", "all"):
            try:
                Path(f"/proc/sys/net/ipv6/conf/{group}/disable_ipv6").write_text("1")
            except OSError:  # no IPv6, or /proc/sys is read-only: then its announcements pass the links, too
                return

    middle.call(quiet)
    return middle


def join(middle: NetNamespace, index: int, a: Endpoint, b: Endpoint, backend: str) -> tuple[int, int] | None:
    """Make a link: host a = (ai -> bi) = host b, or, with delay, host a = (ai -> xi) ... (yi -> bi) = host b.

    "=" is a veth pair, "..." the core: a veth pair (netem), or two TAP devices whose descriptors are returned. A packet
    from a host is *copied* to the next inner interface, and the original dropped. The copy belongs to no socket, so
    the sender's TCP sees its packet gone, as with a queue in another box. A queue at the sender's own interface would
    be known to its TCP, which never lets more than about a millisecond's worth wait there (TCP small queues): no
    bufferbloat, and a congestion window that decays at low rates and then fills only half of a link that recovers.
    """
    port_a, core_a, core_b, port_b = (f"{letter}{index}" for letter in "axyb")
    inner = [port_a, port_b]
    commands = [
        " ".join(
            ["link add name", port, "type veth peer name", end.interface, *_address(end), "netns", end.namespace.path]
        )
        for port, end in ((port_a, a), (port_b, b))
    ]
    fds = None
    if backend == "none":
        hops = [(port_a, port_b, _COPY), (port_b, port_a, _COPY)]
    else:
        inner += [core_a, core_b]
        hops = [(port_a, core_a, _COPY), (port_b, core_b, _COPY), (core_a, port_a, _MOVE), (core_b, port_b, _MOVE)]
        if backend == "tap":
            fds = open_tap(middle, core_a), open_tap(middle, core_b)
            # the device's ring, behind the shaped queue, must never be what drops
            commands += [f"link set dev {core} txqueuelen 10000" for core in (core_a, core_b)]
        else:
            commands.append(f"link add name {core_a} type veth peer name {core_b}")
    commands += [f"link set dev {name} up" for name in inner]
    middle.run(["ip", "-batch", "-"], stdin="\n".join(commands))
    words = catch_all()
    if words is None:
        pairs = [(port_a, port_b)] if backend == "none" else [(port_a, core_a), (core_b, port_b)]
        _bridge(middle, index, pairs)
        return fds
    rules = [f"qdisc add dev {name} ingress" for name in inner]
    for source, target, action in hops:
        rule = f"filter add dev {source} parent ffff: protocol all {' '.join(words)} action mirred egress {action}"
        rules.append(rule.format(target))
    middle.run(["tc", "-batch", "-"], stdin="\n".join(rules))
    return fds


def _bridge(middle: NetNamespace, index: int, pairs: list[tuple[str, str]]) -> None:
    """Without packet filters: bridges join the inner interfaces, and the sender's TCP does know of the queue."""
    commands = []
    for letter, ports in zip("lr", pairs, strict=False):
        name = f"{letter}{index}"
        options = "stp_state 0 forward_delay 0 mcast_snooping 0 ageing_time 0 group_fwd_mask 0xfff8"
        commands.append(f"link add name {name} type bridge {options}")
        commands += [f"link set dev {port} master {name}" for port in ports]
        commands.append(f"link set dev {name} up")
    middle.run(["ip", "-batch", "-"], stdin="\n".join(commands))


def configure(middle: NetNamespace, index: int, direction: str, spec: DirectionSpec, tables: Path) -> None:
    """Set or change netem for one direction, at the last hop towards the receiver. Loses nothing under way."""
    port = f"{'b' if direction == 'up' else 'a'}{index}"
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


def shaped_interface(backend: str, index: int, direction: str) -> str:
    """The inner interface at whose egress a direction is shaped."""
    up, down = ("b", "a") if backend == "none" else ("x", "y")
    return f"{up if direction == 'up' else down}{index}"


def _address(end: Endpoint) -> list[str]:
    return ["address", end.mac] if end.mac else []


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3f}us"


def _percent(share: float) -> str:
    return f"{share * 100:.6f}%"
