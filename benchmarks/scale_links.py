"""How many links one process can replay at 100 Hz before the p99 apply lag exceeds a limit, with traffic on all.

    python benchmarks/scale_links.py [--links 8,16,32,64] [--seconds 15] [--limit-ms 1] [--out FILE.json]

Every link has both directions replayed from a synthetic trace of about 1 Mbit/s; one process per 16 links keeps the
uplinks' queues full. All steps come from one shaper process. Needs root; runs in a sandbox of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from testbed.emulation.direction import DirectionSpec, QueueLimit
from testbed.emulation.fabric import Endpoint, LinkFabric
from testbed.emulation.netns import NetNamespace
from testbed.emulation.replay import read_updates
from testbed.emulation.sandbox import Sandbox
from testbed.traces.trace import Trace

PROJECT = Path(__file__).resolve().parents[1]
SEGMENT_NS = 20_000_000
LINKS_PER_SENDER = 16
SO_SNDBUFFORCE = 32


def random_trace(seed: int, mean_bps: float = 1e6) -> Trace:
    """Ten seconds of exponentially distributed rates, 20 ms each, one in ten an outage."""
    dice = np.random.default_rng(seed)
    rates = dice.exponential(mean_bps / 0.9, 500) * (dice.random(500) > 0.1)
    return Trace(np.arange(501) * SEGMENT_NS, (rates * SEGMENT_NS / 1e9).astype(np.int64), name=f"random{seed}")


def send(addresses: list[str]) -> None:
    """The sending process: every link's socket as full as it gets."""
    sockets = []
    for address in addresses:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.connect((address, 9))
        sockets.append(opened)
    payload = bytes(1472)
    while True:  # 1.2 Mbit/s each: just above what the links carry
        due = time.monotonic() + 0.1
        for _ in range(10):
            for opened in sockets:
                opened.send(payload)
        time.sleep(max(0.0, due - time.monotonic()))


def measure(count: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Lag and fidelity with ``count`` links."""
    fabric = LinkFabric(folder, seed=1)
    hub, device = NetNamespace.create(), NetNamespace.create()
    addresses = []
    for index in range(count):
        specs = [DirectionSpec(trace=random_trace(2 * index + k), queue=QueueLimit(packets=30)) for k in (0, 1)]
        ends = Endpoint(device, f"d{index}"), Endpoint(hub, f"h{index}", f"02:00:00:00:01:{index:02x}")
        fabric.connect(f"link{index}", *ends, specs[0], specs[1])
        base = f"10.{16 + index}.0"
        device.run(["ip", "link", "set", "dev", f"d{index}", "up"])
        device.run(["ip", "addr", "add", f"{base}.1/24", "dev", f"d{index}"])
        device.run(["ip", "neigh", "add", f"{base}.2", "lladdr", ends[1].mac or "", "dev", f"d{index}"])
        hub.run(["ip", "link", "set", "dev", f"h{index}", "up"])
        addresses.append(f"{base}.2")
    fabric.start()
    groups = [addresses[i : i + LINKS_PER_SENDER] for i in range(0, count, LINKS_PER_SENDER)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def start(group: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--send", *group], cwd=PROJECT, env=environment)

    senders = [device.call(lambda group=group: start(group)) for group in groups]
    time.sleep(1.0)
    fabric.start_replay(time.monotonic_ns() + 50_000_000)
    pid = fabric.helper_pids["replay"]
    before = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    time.sleep(seconds)
    cpu_share = (int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) - before) / 1e9 / seconds
    counters = fabric.counters()
    for sender in senders:
        sender.kill()
        sender.wait()
    summary = fabric.stop()
    updates = read_updates(folder / "link_updates.bin")
    lag_ms = (updates["applied_ns"] - updates["asked_ns"]) / 1e6
    missed = sum(side["missed_steps"] for link in summary["links"].values() for side in (link["up"], link["down"]))
    hub.close()
    device.close()
    return {
        "links": count,
        "directions": 2 * count,
        "lag_p50_ms": float(np.median(lag_ms)),
        "lag_p99_ms": float(np.quantile(lag_ms, 0.99)),
        "lag_max_ms": float(lag_ms.max()),
        "missed_share": missed / max(1, missed + len(updates)),
        "cpu_share": cpu_share,
        "cpu_share_per_direction": cpu_share / (2 * count),
        "uplink_mbps": sum(link["up"]["tx_bytes"] for link in counters.values()) * 8e-6 / (seconds + 1),
    }


def inside(options: argparse.Namespace) -> None:
    """The benchmark itself, in its sandbox."""
    results = []
    for count in map(int, options.links.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(count, options.seconds, Path(folder)))
        row = results[-1]
        print(
            f"{row['links']:4d} links, {row['directions']:4d} directions: lag p50 {row['lag_p50_ms']:.2f} p99 "
            f"{row['lag_p99_ms']:.2f} max {row['lag_max_ms']:.1f} ms, {row['missed_share']:.2%} missed, shaper "
            f"{row['cpu_share']:.1%} of a core, uplinks {row['uplink_mbps']:.1f} Mbit/s",
            flush=True,
        )
        if row["lag_p99_ms"] > options.limit_ms:
            break
    if options.out:
        Path(options.out).write_text(json.dumps({"load": os.getloadavg(), "rows": results}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--links", default="4,8,16,32,64")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--limit-ms", type=float, default=1.0)
    parser.add_argument("--out")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send)
    elif options.inside:
        inside(options)
    else:
        argv = [sys.executable, __file__, "--inside", "--links", options.links, "--seconds", str(options.seconds)]
        argv += ["--limit-ms", str(options.limit_ms)]
        argv += ["--out", str(Path(options.out).resolve())] if options.out else []
        sys.exit(Sandbox.spawn(argv, env={**os.environ, "PYTHONPATH": str(PROJECT)}).wait())


if __name__ == "__main__":
    main()
