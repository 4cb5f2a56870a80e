"""The controller process: proactive shortest paths, learning, re-routing on link failure, statistics. An os-ken application.

Started by `process.Controller` as `python -m testbed.emulation.sdn.controller FD`. What the network looks like is told
beforehand; nothing is discovered. Rules are per destination address, in one table:

    100  IPv6 multicast, link-local bridge protocols   drop
     10  destination a known (or learned) host         the port on a fewest-links path; drop where there is no path
      0  everything else                               to the controller

A packet that reaches the controller teaches it its sender's place, and is copied to the ports of hosts only, each once:
no broadcast ever crosses a link between switches in the data plane, so a ring cannot storm.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from os_ken import cfg
from os_ken.base.app_manager import AppManager, OSKenApp
from os_ken.controller import controller as _options  # noqa: F401  # registers the options that CONF is given
from os_ken.controller import ofp_event
from os_ken.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.ofproto import ofproto_v1_3

from testbed.emulation import linux
from testbed.emulation.helper import Control, cpu_seconds
from testbed.emulation.sdn.graph import Port, SdnMap

PRIORITY_DROP, PRIORITY_HOST, PRIORITY_MISS = 100, 10, 0
NEVER_FORWARDED = (("33:33:00:00:00:00", "ff:ff:00:00:00:00"), ("01:80:c2:00:00:00", "ff:ff:ff:00:00:00"))
UNKNOWN = 2**64 - 1  # OpenFlow's word for a counter that the switch does not have
LEARNED_LIMIT = 4096  # a host that invents addresses must not fill the tables
PORT_COLUMNS = ("t_ns", "link", "direction", "tx_bytes", "tx_packets", "dropped_packets", "switch", "port", "rx_bytes",
                "rx_packets", "rx_dropped_packets")
FLOW_COLUMNS = ("t_ns", "switch", "destination", "out_port", "packets", "bytes", "age_s")


@dataclass
class Job:
    """What the process was started with; set once, before os-ken makes the application."""

    network: SdnMap
    folder: Path
    port: int
    poll_s: float


@dataclass
class Change:
    """Rules on their way to the switches; done when every switch has answered the barrier behind its last rule."""

    cause: str
    t_ns: int
    links_down: list[str]
    rules: int = 0
    switches: list[str] = field(default_factory=list)
    waiting: set[tuple[int, int]] = field(default_factory=set)  # datapath id, transaction of the barrier


class PathController(OSKenApp):  # type: ignore[misc]  # os-ken has no types
    """All handlers run in this application's one event thread; other threads only send requests or read `ready`."""

    OFP_VERSIONS = (ofproto_v1_3.OFP_VERSION,)
    job: Job

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.network = self.job.network
        self.ready = threading.Event()
        self.reroutes: list[dict[str, Any]] = []
        self._datapaths: dict[int, Any] = {}
        self._down: set[Port] = set()
        self._learned: dict[str, Port] = {}
        self._installed: dict[int, dict[str, int | None]] = {}
        self._changes: list[Change] = []
        self._names = {h.mac: h.name for h in self.network.hosts}
        self._host_ports = {h.port for h in self.network.hosts}
        self._events: TextIO = (self.job.folder / "sdn_events.jsonl").open("w", buffering=1)
        self._port_rows, self._port_file = _table(self.job.folder / "sdn_links.csv", PORT_COLUMNS)
        self._flow_rows, self._flow_file = _table(self.job.folder / "sdn_flows.csv", FLOW_COLUMNS)

    def start(self) -> None:
        """Begin to poll, beside the event thread."""
        super().start()
        threading.Thread(target=self._poll, name="statistics", daemon=True).start()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the trial may ask over the control socket."""
        if request["op"] == "wait_ready":
            if not self.ready.wait(float(request["wait_s"])):
                missing = [name for dpid, name in self.network.switches.items() if dpid not in self._installed]
                return {"error": f"not all switches are set up; no answer from {', '.join(missing) or 'a barrier'}"}
            return {"ok": True}
        if request["op"] in ("reroutes", "stop"):
            return {"reroutes": self.reroutes, "cpu_s": cpu_seconds()}
        return {"error": f"unknown request {request['op']!r}"}

    # ---- switches come and go --------------------------------------------------------------------------------

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])  # type: ignore[untyped-decorator]
    def on_state(self, event: Any) -> None:
        """A switch is connected (its ports are known by now), or has gone."""
        datapath = event.datapath
        if datapath.id is None:
            return
        name = self.network.switches.get(datapath.id, str(datapath.id))
        if event.state == DEAD_DISPATCHER:
            current = self._datapaths.get(datapath.id)
            if current is not None and current is datapath:
                del self._datapaths[datapath.id]
                self._installed.pop(datapath.id, None)
                self._log("switch_lost", switch=name)
            return
        self._datapaths[datapath.id] = datapath
        self._log("switch_connected", switch=name)
        parser, protocol = datapath.ofproto_parser, datapath.ofproto
        datapath.send_msg(parser.OFPFlowMod(
            datapath, command=protocol.OFPFC_DELETE, out_port=protocol.OFPP_ANY, out_group=protocol.OFPG_ANY))
        for address in NEVER_FORWARDED:
            self._rule(datapath, PRIORITY_DROP, parser.OFPMatch(eth_dst=address), None)
        self._rule(datapath, PRIORITY_MISS, parser.OFPMatch(), protocol.OFPP_CONTROLLER)
        self._installed[datapath.id] = {}
        self._down = {p for p in self._down if p[0] != datapath.id} | {
            (datapath.id, number) for number, port in datapath.ports.items()
            if self._is_down(datapath, port) and number <= protocol.OFPP_MAX}
        self._install("switch_connected", time.monotonic_ns())

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_port(self, event: Any) -> None:
        """A port went down or came back: new paths, if any depends on it."""
        t_ns = time.monotonic_ns()
        message = event.msg
        datapath, port = message.datapath, message.desc
        place = (datapath.id, port.port_no)
        down = message.reason == datapath.ofproto.OFPPR_DELETE or self._is_down(datapath, port)
        if down == (place in self._down):
            return
        (self._down.add if down else self._down.discard)(place)
        link = self.network.link_of(place)
        cause = "port_down" if down else "port_up"
        self._log(cause, t_ns=t_ns, switch=self.network.switches.get(datapath.id), port=port.port_no,
                  link=link[0] if link else "")
        self._install(cause, t_ns, link=link[0] if link else "")

    @staticmethod
    def _is_down(datapath: Any, port: Any) -> bool:
        protocol = datapath.ofproto
        return bool(port.state & protocol.OFPPS_LINK_DOWN or port.config & protocol.OFPPC_PORT_DOWN)

    # ---- rules -----------------------------------------------------------------------------------------------

    def _install(self, cause: str, t_ns: int, **about: Any) -> None:
        """Send the difference between the rules that should be and those that are, with a barrier behind them."""
        down = frozenset(self._down)
        wanted = self.network.rules(down, self._learned)
        live = {link.name for link in self.network.live_links(down)}
        change = Change(cause, t_ns, [link.name for link in self.network.links if link.name not in live])
        for dpid, datapath in self._datapaths.items():
            if dpid not in wanted:
                continue  # a switch that nobody told us of: it only has the table-miss rule
            now = self._installed[dpid]
            different = {mac: port for mac, port in wanted[dpid].items() if mac not in now or now[mac] != port}
            if not different and now:
                continue
            for mac, port in different.items():
                self._rule(datapath, PRIORITY_HOST, datapath.ofproto_parser.OFPMatch(eth_dst=mac), port)
            barrier = datapath.ofproto_parser.OFPBarrierRequest(datapath)
            datapath.set_xid(barrier)
            change.waiting.add((dpid, barrier.xid))
            datapath.send_msg(barrier)
            change.rules += len(different)
            change.switches.append(self.network.switches[dpid])
            self._installed[dpid] = wanted[dpid]
        if change.waiting:
            change.cause = f"{cause} {about['link']}" if about.get("link") else cause
            self._changes.append(change)

    @staticmethod
    def _rule(datapath: Any, priority: int, match: Any, port: int | None) -> None:
        """Add or replace one rule; port None drops."""
        parser, protocol = datapath.ofproto_parser, datapath.ofproto
        actions = [] if port is None else [parser.OFPActionOutput(port, protocol.OFPCML_NO_BUFFER)]
        instructions = [parser.OFPInstructionActions(protocol.OFPIT_APPLY_ACTIONS, actions)]
        datapath.send_msg(parser.OFPFlowMod(datapath, priority=priority, match=match, instructions=instructions))

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_barrier(self, event: Any) -> None:
        """A switch has done all that was sent before the barrier."""
        t_ns = time.monotonic_ns()
        key = (event.msg.datapath.id, event.msg.xid)
        for change in list(self._changes):
            if key not in change.waiting:
                continue
            change.waiting.discard(key)
            if change.waiting:
                continue
            self._changes.remove(change)
            record = {"cause": change.cause, "t_ns": t_ns, "began_ns": change.t_ns,
                      "duration_s": (t_ns - change.t_ns) / 1e9, "rules": change.rules, "switches": change.switches,
                      "links_down": change.links_down}
            self._log("rules_installed", **record)
            if change.cause.startswith("port_"):
                self.reroutes.append(record)
        if not self._changes and set(self._installed) >= set(self.network.switches):
            self.ready.set()

    @set_ev_cls(ofp_event.EventOFPErrorMsg, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_error(self, event: Any) -> None:
        """A switch refused something: seen in the events, never passed over."""
        message = event.msg
        self._log("refused", switch=self.network.switches.get(message.datapath.id), type=message.type, code=message.code)

    # ---- learning --------------------------------------------------------------------------------------------

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_packet(self, event: Any) -> None:
        """A packet to nobody known: learn its sender, and hand a copy to every other port that has a host."""
        message = event.msg
        datapath, place = message.datapath, (message.datapath.id, message.match["in_port"])
        if place in self.network.switch_ports or len(message.data) < 14:
            return  # nothing that we sent there ends here
        target, sender = (":".join(f"{b:02x}" for b in message.data[i:i + 6]) for i in (0, 6))
        known = any(h.mac == sender for h in self.network.hosts)
        group = int(sender[:2], 16) & 1
        if not known and not group and self._learned.get(sender) != place and len(self._learned) < LEARNED_LIMIT:
            self._learned[sender] = place
            self._host_ports.add(place)
            self._log("learned", mac=sender, switch=self.network.switches.get(datapath.id), port=place[1])
            self._install("learned", time.monotonic_ns())
        # a target may have been learned while this packet was on its way to us
        goals = {self._learned[target]} if target in self._learned else self._host_ports - {place}
        for dpid, number in sorted(goals):
            other = self._datapaths.get(dpid)
            if other is None or (dpid, number) == place:
                continue
            parser, protocol = other.ofproto_parser, other.ofproto
            other.send_msg(parser.OFPPacketOut(
                datapath=other, buffer_id=protocol.OFP_NO_BUFFER, in_port=protocol.OFPP_CONTROLLER,
                actions=[parser.OFPActionOutput(number)], data=message.data))

    # ---- statistics ------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        due = time.monotonic()
        while self.job.poll_s > 0:
            due += self.job.poll_s
            time.sleep(max(0.0, due - time.monotonic()))
            for datapath in list(self._datapaths.values()):
                parser, protocol = datapath.ofproto_parser, datapath.ofproto
                datapath.send_msg(parser.OFPPortStatsRequest(datapath, 0, protocol.OFPP_ANY))
                datapath.send_msg(parser.OFPFlowStatsRequest(datapath))

    @set_ev_cls(ofp_event.EventOFPPortStatsReply, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_port_statistics(self, event: Any) -> None:
        """One row per port; tx counts what the switch sent into the link's direction, rx what came the other way."""
        t_ns, datapath = time.monotonic_ns(), event.msg.datapath
        for s in sorted(event.msg.body, key=lambda s: int(s.port_no)):
            if s.port_no > datapath.ofproto.OFPP_MAX:
                continue
            link = self.network.link_of((datapath.id, s.port_no)) or ("", "")
            sent, received = ([None if n == UNKNOWN else n for n in counters] for counters in (
                (s.tx_bytes, s.tx_packets, s.tx_dropped), (s.rx_bytes, s.rx_packets, s.rx_dropped)))
            self._port_rows.writerow((t_ns, *link, *sent, self.network.switches.get(datapath.id), s.port_no, *received))
        self._port_file.flush()

    @set_ev_cls(ofp_event.EventOFPFlowStatsReply, MAIN_DISPATCHER)  # type: ignore[untyped-decorator]
    def on_flow_statistics(self, event: Any) -> None:
        """One row per destination and switch."""
        t_ns, datapath = time.monotonic_ns(), event.msg.datapath
        for s in event.msg.body:
            if s.priority != PRIORITY_HOST:
                continue
            mac = s.match["eth_dst"]
            ports = [a.port for i in s.instructions for a in i.actions]
            self._flow_rows.writerow((t_ns, self.network.switches.get(datapath.id), self._names.get(mac, mac),
                                      ports[0] if ports else "", s.packet_count, s.byte_count,
                                      f"{s.duration_sec + s.duration_nsec / 1e9:.3f}"))
        self._flow_file.flush()

    def _log(self, event: str, **values: Any) -> None:
        values.setdefault("t_ns", time.monotonic_ns())
        self._events.write(json.dumps({"event": event, **values}) + "\n")


def _table(path: Path, columns: tuple[str, ...]) -> tuple[Any, TextIO]:
    stream = path.open("w", newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    return writer, stream


def _listening(port: int) -> bool:
    """Whether something in this network namespace accepts connections at the port."""
    rows = (line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:])
    return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A" for row in rows)


def _serve(control: Control, job: Job) -> None:
    """Answer the trial; end the process when it says stop or has gone. The hub's threads cannot be ended otherwise."""
    while not _listening(job.port):
        time.sleep(0.005)
    control.reply(ready=True)
    while True:
        request = control.read()
        application = AppManager.get_instance().applications.get(PathController.__name__)
        if request is None or application is None:
            os._exit(0 if request is None else 1)
        control.reply(**application.answer(request))
        if request["op"] == "stop":
            os._exit(0)


def main(job_fd: int) -> None:
    """Entry point of the process."""
    with os.fdopen(job_fd, "rb") as file:
        fields: dict[str, Any] = json.loads(file.read())
    linux.die_with_parent(fields["parent"])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    control = Control(fields["control_fd"])
    job = Job(SdnMap.from_json(fields["network"]), Path(fields["folder"]), int(fields["port"]), float(fields["poll_s"]))
    PathController.job = job
    cfg.CONF(args=["--ofp-tcp-listen-port", str(job.port), "--ofp-listen-host", "127.0.0.1"], project="os_ken",
             default_config_files=[])
    threading.Thread(target=_serve, args=(control, job), name="control", daemon=True).start()
    AppManager.run_apps([PathController.__module__, "os_ken.controller.ofp_handler"])


if __name__ == "__main__":
    # os-ken imports the application by its module's name: run that module's `main`, not a second copy of it
    from testbed.emulation.sdn import controller

    controller.main(int(sys.argv[1]))
