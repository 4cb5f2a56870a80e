"""`LinkFabric`: all links of a run, the two processes that carry and shape them, and what they recorded."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from testbed.emulation import plumbing
from testbed.emulation.direction import MTU_BYTES, DirectionSpec
from testbed.emulation.helper import Helper
from testbed.emulation.netns import NetNamespace
from testbed.errors import EmulationError, InputError

Backend = Literal["auto", "netem", "tap", "none"]
BACKENDS = ("auto", "netem", "tap", "none")
DIRECTIONS = ("up", "down")
NS_PER_S = 1_000_000_000
_IMPAIRMENTS = frozenset(
    (
        "delay_s",
        "jitter_s",
        "jitter_distribution",
        "jitter_samples_s",
        "loss",
        "loss_correlation",
        "gilbert_elliott",
        "reorder",
        "duplicate",
    )
)


@dataclass(frozen=True)
class Endpoint:
    """One end of a link: an interface name (to be made) inside a namespace."""

    namespace: NetNamespace
    interface: str
    mac: str | None = None


class FabricLink:
    """A link as the fabric keeps it. ``up`` goes from endpoint a to endpoint b; ``backend`` is what was built."""

    def __init__(
        self, name: str, a: Endpoint, b: Endpoint, specs: dict[str, DirectionSpec], backend: str, index: int
    ) -> None:
        self.name, self.a, self.b, self.specs, self.backend, self.index = name, a, b, specs, backend, index
        self.tap_fds: tuple[int, int] | None = None
        self.shaped_at: dict[str, Endpoint] = {}  # per direction, the interface whose egress holds the rate


class LinkFabric:
    """Owns the links of one run.

    Links are made by `ShapedLink` (or `connect`), then `start` shapes them, `start_replay` lets the traces run, and
    `stop` ends it and returns the summary. While no replay has started, a link with a trace has the trace's mean rate.
    Writes ``links.csv`` and ``link_updates.bin`` (see `replay.read_updates`) into ``run_dir``, logs of the helper
    processes into ``run_dir/logs``. Call `start` from a thread that lives as long as the links.

    Parameters
    ----------
    seed: of delay, loss and jitter in the delay line; every direction draws from a generator of its own.
    step_s: replay step.
    """

    def __init__(self, run_dir: str | os.PathLike[str], seed: int, *, step_s: float = 0.01) -> None:
        if not 0.001 <= step_s <= 1:
            raise InputError("the replay step must lie between 1 ms and 1 s", value=step_s)
        self._run_dir = Path(run_dir)
        self._seed = seed
        self._step_ns = round(step_s * NS_PER_S)
        self._links: dict[str, FabricLink] = {}
        self._middle: NetNamespace | None = None
        self._shaper: Helper | None = None
        self._delay_line: Helper | None = None
        self._single: list[tuple[NetNamespace, str]] = []
        self._summary: dict[str, Any] | None = None

    # ---- building ----------------------------------------------------------------------------------------

    def connect(
        self, name: str, a: Endpoint, b: Endpoint, up: DirectionSpec, down: DirectionSpec, backend: str = "auto"
    ) -> FabricLink:
        """Make the two interfaces of a link and what lies between them.

        backend: what delays and loses packets. "none" cannot do it (also not later), "netem" is the kernel's, "tap" the
        delay line; "auto" takes the first that suffices and that the kernel can do. A link that does nothing at all is
        one veth pair; any other lies in a namespace of the fabric's own (see `plumbing.join`).
        """
        if self._shaper is not None:
            raise EmulationError(f"link {name}: links must be made before the fabric is started")
        if name in self._links:
            raise InputError("two links have the same name", value=name)
        link = FabricLink(name, a, b, {"up": up, "down": down}, self._choose(name, backend, up, down), len(self._links))
        if link.backend == "none" and not (up.shaped or down.shaped):
            plumbing.veth_pair(a, b)
            link.shaped_at = {"up": a, "down": b}
        else:
            middle = self._middle = self._middle or plumbing.middle_namespace()
            link.tap_fds = plumbing.join(middle, link.index, a, b, link.backend)
            link.shaped_at = {
                d: Endpoint(middle, plumbing.shaped_interface(link.backend, link.index, d)) for d in DIRECTIONS
            }
            if link.backend == "netem":
                for direction in DIRECTIONS:
                    self._set_netem(link, direction)
        self._links[name] = link
        return link

    def _choose(self, name: str, backend: str, up: DirectionSpec, down: DirectionSpec) -> str:
        if backend not in BACKENDS:
            raise InputError(
                "unknown link backend", key=name, value=backend, remedy=f"use one of {', '.join(BACKENDS)}"
            )
        impaired = up.impaired or down.impaired
        if backend == "none" and impaired:
            raise InputError(
                "this link has delay, jitter, loss, reordering or duplication, which backend none cannot do",
                key=name,
                value=backend,
                remedy="use backend auto",
            )
        if backend != "auto":
            return backend
        if not impaired:
            return "none"
        return "netem" if plumbing.available() else "tap"

    def one_packet_at_a_time(self, namespace: NetNamespace, interface: str) -> None:
        """Keep an unshaped interface from sending 64 KB segments into shaped links.

        A bucket has to cut such segments itself, and then counts each packet with its 14 bytes of Ethernet header.
        """
        self._single.append((namespace, interface))

    # ---- running -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start both helper processes; afterwards every link carries what its specification says."""
        if self._shaper is not None:
            raise EmulationError("the fabric has been started already")
        self._run_dir.mkdir(parents=True, exist_ok=True)
        single = list(self._single)
        if any(spec.shaped for link in self._links.values() for spec in link.specs.values()):
            single += [(end.namespace, end.interface) for link in self._links.values() for end in (link.a, link.b)]
        for namespace, interface in single:
            namespace.run(["ip", "link", "set", "dev", interface, "gso_max_segs", "1"])
        logs = self._run_dir / "logs"
        taps = [link for link in self._links.values() if link.tap_fds is not None]
        try:
            if taps:
                job = {
                    "seed": self._seed,
                    "links": [
                        {"name": link.name, "fds": link.tap_fds, **{d: link.specs[d].impairment() for d in DIRECTIONS}}
                        for link in taps
                    ],
                }
                fds = [fd for link in taps for fd in link.tap_fds or ()]
                self._delay_line = Helper("testbed.emulation.delayline", job, fds, logs / "delay_line.log")
                for fd in fds:
                    os.close(fd)  # the delay line alone holds them: the devices go when it goes
                for link in taps:
                    link.tap_fds = None
            self._shaper = self._start_shaper(logs / "shaper.log")
        except BaseException:
            self.kill()
            raise

    def _start_shaper(self, log: Path) -> Helper:
        directions, fds, opened = [], [], []
        for link in self._links.values():
            for direction in DIRECTIONS:
                end, spec = link.shaped_at[direction], link.specs[direction]
                kind, limit = spec.queue_limit()
                ifindex, mtu = _interface(end)
                trace_fd = None
                if spec.trace is not None:
                    trace_fd = _trace_file(spec)
                    opened.append(trace_fd)
                mean = spec.mean_rate_bps
                directions.append(
                    {
                        "link": link.name,
                        "direction": direction,
                        "netns_fd": end.namespace.fd,
                        "interface": end.interface,
                        "ifindex": ifindex,
                        "mtu": mtu,
                        "limit_kind": kind,
                        "limit": limit,
                        "rate_bps": None if mean is None else round(mean),
                        "burst_bytes": spec.burst_bytes,
                        "trace_fd": trace_fd,
                        "trace_name": spec.trace.name if spec.trace is not None else "",
                        "trace_offset_ns": spec.trace_offset_ns,
                        "at_end": spec.at_end,
                        "delay_s": spec.delay_s,
                        "loss": spec.mean_loss,
                    }
                )
                fds.append(end.namespace.fd)
        job = {"run_dir": str(self._run_dir.resolve()), "step_ns": self._step_ns, "directions": directions}
        try:
            return Helper("testbed.emulation.replay", job, [*set(fds), *opened], log)
        finally:
            for fd in opened:
                os.close(fd)

    def start_replay(self, start_ns: int) -> None:
        """Let every trace stand at its offset at ``start_ns`` (CLOCK_MONOTONIC, `time.monotonic_ns`).

        The delay line's lateness is counted from here on: before it, programs start and links are saturated on purpose.
        """
        self._ask("start", start_ns=start_ns)
        if self._delay_line is not None:
            self._delay_line.ask("forget")

    def pause(self) -> None:
        """Stop all traces where they are; their links hold what is queued and carry nothing."""
        self._ask("pause")

    def resume(self) -> None:
        """Let the traces go on from where they were paused."""
        self._ask("resume")

    def set_rate(self, link: str, direction: str, rate_bps: int | None) -> None:
        """A fixed rate (0 holds) instead of the specified rate or trace; None returns to that."""
        self._link(link, direction)
        if rate_bps is not None and rate_bps < 0:
            raise InputError("a rate must not be negative", key=link, value=rate_bps)
        self._ask("rate", link=link, direction=direction, rate_bps=rate_bps)

    def set_impairment(self, link: str, direction: str, **changes: Any) -> None:
        """Other delay, jitter, loss, reordering or duplication from now on; what is not named stays.

        Frames already under way keep their due time. Raises InputError for unknown names and values.
        """
        entry = self._link(link, direction)
        unknown = set(changes) - _IMPAIRMENTS
        if unknown:
            raise InputError("not an impairment", key=link, value=sorted(unknown), remedy=f"use {sorted(_IMPAIRMENTS)}")
        spec = entry.specs[direction].changed(**changes)
        if entry.backend == "none" and spec.impaired:
            raise InputError(
                "a link of backend none has no place for delay or loss", key=link, remedy="build it with tap or netem"
            )
        entry.specs[direction] = spec
        if entry.backend == "tap" and self._delay_line is not None:
            self._delay_line.ask("change", link=link, direction=direction, values=spec.impairment())
        elif entry.backend == "netem":
            self._set_netem(entry, direction)
        if self._shaper is not None:
            self._ask("noted", link=link, direction=direction, delay_s=spec.delay_s, loss=spec.mean_loss)

    def set_down(self, link: str, down: bool, directions: Sequence[str] = DIRECTIONS) -> None:
        """Outage (or handover gap): nothing enters the wire, the queue holds what it can and drops the rest.

        Frames already on the wire (inside the delay) still arrive. The interfaces stay up; a trace's time passes.
        """
        for direction in directions:
            self._link(link, direction)
        self._ask("down", link=link, directions=list(directions), down=down)

    def counters(self) -> dict[str, dict[str, dict[str, int]]]:
        """``{link: {direction: {tx_bytes, tx_packets, dropped_packets, backlog_bytes, ...}}}`` from the kernel, now."""
        answer = self._ask("counters")
        return {name: {d: answer[f"{name} {d}"] for d in DIRECTIONS} for name in self._links}

    def newest_rows(self) -> str:
        """The last row of ``links.csv`` of each direction, as CSV lines without the header.

        The table itself is written in large blocks; the shaper gives these from memory, without a look at the kernel.
        """
        return str(self._ask("newest")["rows"])

    def stop(self) -> dict[str, Any]:
        """End both processes and return the summary (also ``run_dir/links.json``); later calls return it again."""
        if self._summary is not None:
            return self._summary
        if self._shaper is None:
            self.kill()
            return {}
        try:
            shaped = self._shaper.stop()
            delayed = self._delay_line.stop() if self._delay_line is not None else None
        finally:
            priority = {"replay": self._shaper.ready["priority"]}
            if self._delay_line is not None:
                priority["delay_line"] = self._delay_line.ready["priority"]
            self.kill()
        links = shaped["links"]
        for side in (delayed or {}).get("links", ()):
            links[side["link"]][side["direction"]]["delay_line"] = {
                key: side[key] for key in ("frames", "lost", "refused")
            }
        for name, link in self._links.items():
            links[name]["backend"] = link.backend
        self._summary = {
            "links": links,
            "step_ns": self._step_ns,
            "delay_line": None
            if delayed is None
            else {k: delayed[k] for k in ("frames", "late_p50_ns", "late_p99_ns", "late_max_ns")},
            "cpu_s": {"replay": shaped["cpu_s"], "delay_line": 0.0 if delayed is None else delayed["cpu_s"]},
            "priority": priority,
            "netlink_errors": shaped["errors"],
            # true where the kernel lacks packet filters: senders' TCP then keeps the queues short (TCP small queues)
            "sender_sees_queue": self._middle is not None and plumbing.catch_all() is None,
        }
        (self._run_dir / "links.json").write_text(json.dumps(self._summary, indent=1))
        return self._summary

    def kill(self) -> None:
        """End both processes without asking; the links stop carrying anything."""
        for helper in (self._shaper, self._delay_line):
            if helper is not None:
                helper.kill()
        for link in self._links.values():
            for fd in link.tap_fds or ():
                os.close(fd)
            link.tap_fds = None
        if self._middle is not None:
            self._middle.close()

    def __enter__(self) -> LinkFabric:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ---- inside ------------------------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        """Where the tables and logs go."""
        return self._run_dir

    @property
    def links(self) -> Iterable[FabricLink]:
        return self._links.values()

    @property
    def helper_pids(self) -> dict[str, int]:
        """Processes whose health and CPU time a run should watch."""
        pairs = (("replay", self._shaper), ("delay_line", self._delay_line))
        return {name: helper.process.pid for name, helper in pairs if helper is not None}

    def _ask(self, op: str, **values: Any) -> dict[str, Any]:
        if self._shaper is None or self._summary is not None:
            raise EmulationError("the fabric is not running; call start() first")
        return self._shaper.ask(op, **values)

    def _link(self, name: str, direction: str) -> FabricLink:
        if name not in self._links:
            raise InputError("no such link", value=name, remedy=f"known: {', '.join(self._links)}")
        if direction not in DIRECTIONS:
            raise InputError("a direction is up or down", key=name, value=direction)
        return self._links[name]

    def _set_netem(self, link: FabricLink, direction: str) -> None:
        assert self._middle is not None
        tables = self._run_dir / "netem"
        plumbing.configure(self._middle, link.index, direction, link.specs[direction], tables)
        shutil.rmtree(tables, ignore_errors=True)


def _interface(end: Endpoint) -> tuple[int, int]:
    """Index and MTU."""
    text = end.namespace.run(["ip", "-json", "link", "show", "dev", end.interface])
    entry = json.loads(text)[0]
    return int(entry["ifindex"]), int(entry.get("mtu", MTU_BYTES))


def _trace_file(spec: DirectionSpec) -> int:
    """The trace in an anonymous file for the shaper's process."""
    assert spec.trace is not None
    buffer = io.BytesIO()
    np.savez(
        buffer,
        times_ns=spec.trace.times_ns,
        bits=spec.trace.bits,
        packet_bits=np.int64(spec.trace.packet_bits or 0),
    )
    fd = os.memfd_create("trace")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(buffer.getvalue())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
