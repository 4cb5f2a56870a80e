"""Calibration: every link measured idle by ping and iperf3 before the load, and compared with what was asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from testbed.errors import EmulationError, MissingToolError

UDP_PAYLOAD_BYTES = 1448
IP_UDP_HEADER_BYTES = 28
OVERLOAD = 1.1  # the sender offers this much more than the link may carry
FIRST_PORT = 5201
CONNECT_TRIES = 40
TRIES, GOOD_SHARE = 3, 0.02  # measure again what is off by more
MAX_IPERF_BPS = 2e8  # an emulated link above this is not saturated; it would measure this machine


class Popen(Protocol):
    """How to start a process in a node's network namespace."""

    def __call__(self, node: str, argv: Sequence[str]) -> subprocess.Popen[str]: ...


@dataclass(frozen=True)
class LinkTarget:
    """One link as it should behave while it is calibrated; rates in bit/s at the IP layer, None where not shaped."""

    name: str
    src: str
    dst: str
    src_address: str
    dst_address: str
    up_bps: float | None
    down_bps: float | None
    rtt_s: float


@dataclass(frozen=True)
class LinkMeasurement:
    """One direction of one link, asked and measured; None where not applicable."""

    link: str
    direction: str
    asked_rate_bps: float | None
    measured_rate_bps: float | None
    asked_rtt_s: float
    measured_rtt_s: float | None
    packet_loss: float
    tries: int


def calibrate_links(targets: Sequence[LinkTarget], popen: Popen, *, time_s: float, pings: int,
                    workers: int = os.cpu_count() or 1) -> list[dict[str, Any]]:
    """Ping, then iperf3 up and down, over each link. Raises EmulationError when a tool fails.

    A few links are measured side by side (they share nothing but this machine's CPU); pings first, all links idle.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(targets)))) as pool:
        rtts = dict(pool.map(lambda t: (t.name, _ping(t, popen, pings)), targets))
        ports = range(FIRST_PORT, FIRST_PORT + len(targets))  # several links may end at one host
        measured = [m for ms in pool.map(lambda t, port: _link(t, port, rtts, popen, time_s), targets, ports) for m in ms]
    return [asdict(m) for m in measured]


def _link(target: LinkTarget, port: int, rtts: Mapping[str, tuple[float | None, float]], popen: Popen,
          time_s: float) -> list[LinkMeasurement]:
    rtt, loss = rtts[target.name]
    results = []
    for direction, asked in (("up", target.up_bps), ("down", target.down_bps)):
        rate, tries = None, 0
        # a sender that this machine held up for a moment measures itself; a link that is wrong stays wrong
        while asked is not None and asked <= MAX_IPERF_BPS and tries < TRIES and (
                rate is None or abs(rate - asked) > GOOD_SHARE * asked):
            tries += 1
            try:
                rate = _iperf(target, port, direction, asked, popen, time_s)
            except EmulationError:  # such as the one datagram that iperf3 begins with lost in a short queue
                if tries == TRIES:
                    raise
        results.append(LinkMeasurement(target.name, direction, asked, rate, target.rtt_s, rtt, loss, tries))
    return results


def _ping(target: LinkTarget, popen: Popen, count: int) -> tuple[float | None, float]:
    argv = ["ping", "-n", "-c", str(count + 1), "-i", "0.02", "-W", "2", target.dst_address]
    process = popen(target.src, argv)
    output, error = process.communicate(timeout=30 + count)
    times = [float(ms) / 1e3 for ms in re.findall(r"icmp_seq=(?!1 )\d+ .*time=([\d.]+) ms", output)]
    if not times and "packets transmitted" not in output:
        raise EmulationError(f"ping over link {target.name} failed: {error.strip() or output.strip()}")
    times.sort()
    return (times[len(times) // 2] if times else None), 1 - len(times) / count


def _iperf(target: LinkTarget, port: int, direction: str, asked_bps: float, popen: Popen, time_s: float) -> float:
    """Delivered IP-layer rate of a UDP sender that offers more than the link may carry.

    The first part is left out: a token bucket may start full.
    """
    server = popen(target.dst, ["iperf3", "--server", "--one-off", "--json", "--interval", "0.25", "--port", str(port)])
    argv = ["iperf3", "--client", target.dst_address, "--port", str(port), "--udp", "--length", str(UDP_PAYLOAD_BYTES),
            "--bitrate", str(int(asked_bps * OVERLOAD)), "--time", str(max(1, round(time_s))), "--json", "--interval", "0.25"]
    try:
        report = _client(target, argv + (["--reverse"] if direction == "down" else []), popen, time_s)
        if direction == "up":  # the receiver's own count
            report = _report(server.communicate(timeout=30)[0], target)
    finally:
        server.kill()
        server.communicate()
    return _received_bps(report)


def _client(target: LinkTarget, argv: Sequence[str], popen: Popen, time_s: float) -> dict[str, Any]:
    """Run the client until the server, which says nothing in its JSON mode, listens."""
    for _ in range(CONNECT_TRIES):
        try:
            client = popen(target.src, argv)
        except FileNotFoundError:
            raise MissingToolError("iperf3 is not installed", remedy="apt-get install iperf3 (`make run` does it)") from None
        report = _report(client.communicate(timeout=60 + time_s)[0], target)
        if "error" not in report:  # iperf3 may exit with 0 even then
            return report
        if "unable to connect" not in report["error"]:
            break
        time.sleep(0.1)
    raise EmulationError(f"iperf3 over link {target.name}: {report['error']}")


def _report(output: str, target: LinkTarget) -> dict[str, Any]:
    try:
        report = json.loads(output)
    except ValueError:
        raise EmulationError(f"iperf3 over link {target.name} printed no report: {output.strip()[:200]!r}") from None
    if not isinstance(report, dict):
        raise EmulationError(f"iperf3 over link {target.name} printed no report: {output.strip()[:200]!r}")
    return report


def _received_bps(report: Mapping[str, Any]) -> float:
    """IP-layer rate that the receiver saw, from its whole intervals after the first."""
    intervals = [i["sum"] for i in report.get("intervals", []) if i["sum"].get("seconds", 0) > 0.2]
    kept = intervals[1:] or intervals
    seconds = sum(i["seconds"] for i in kept)
    if not seconds:
        raise EmulationError("iperf3's report has no intervals of the receiver")
    packet_share = (UDP_PAYLOAD_BYTES + IP_UDP_HEADER_BYTES) / UDP_PAYLOAD_BYTES
    return float(sum(i["bytes"] for i in kept) * 8 / seconds * packet_share)
