"""How faithfully a link replays a trace and keeps a delay: ours, a forked `tc` per step, and Mininet's TCIntf per step.

    python benchmarks/link_fidelity.py [--seconds 30] [--traces FILE ...] [--methods ours,tc,mininet] [--out FILE.json]

A blocking UDP sender keeps the queue full; the receiver's kernel stamps every arrival. Delivered IP bytes are compared
with what the trace allowed in windows of 10, 100 and 1000 ms counted from the replay's start: mean |error| over mean
allowed. Needs root (or user namespaces); runs in a sandbox of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from testbed.emulation.direction import DirectionSpec, QueueLimit
from testbed.emulation.fabric import Endpoint, LinkFabric
from testbed.emulation.netns import NetNamespace
from testbed.emulation.sandbox import Sandbox
from testbed.traces import Trace, load_trace

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_TRACES = ("Verizon-LTE-short.down", "ATT-LTE-driving.down.gz", "TMobile-LTE-driving.down.gz")
IP_BYTES, HEADERS = 1500, 28
SO_TIMESTAMPNS, SO_RCVBUFFORCE, SO_SNDBUFFORCE = 35, 33, 32
MS = 1_000_000
DEEP_QUEUE = 4000  # packets; the sender's socket buffer, not the queue, must be what holds it back
SOCKET_BYTES = 2 << 20
WINDOWS_MS = (10, 100, 1000)


class Receiver:
    """Counts and stamps datagrams in its own process: one line of arrival times (CLOCK_MONOTONIC) at the end."""

    def __init__(self, namespace: NetNamespace, address: str, file: Path) -> None:
        self._file = file
        self._process = namespace.call(
            lambda: subprocess.Popen(
                [sys.executable, __file__, "--receive", address, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
            )
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def stop(self) -> tuple[np.ndarray, np.ndarray]:
        """Arrival times and send stamps of all datagrams, ns."""
        self._process.communicate(timeout=30)
        arrays = np.load(self._file)
        return arrays["arrived_ns"], arrays["sent_ns"]


def receive(address: str, file: str) -> None:
    """The receiving process: until its standard input closes."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    opened.bind((address, 5001))
    opened.settimeout(0.1)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    shift = clock_shift_ns()
    arrived, sent = [], []
    while not stop.is_set():
        try:
            data, ancillary, _, _ = opened.recvmsg(2048, 64)
        except TimeoutError:
            continue
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
        arrived.append(seconds * 1_000_000_000 + nanoseconds - shift)
        sent.append(int.from_bytes(data[:8], "little"))
    np.savez(file, arrived_ns=np.array(arrived, np.int64), sent_ns=np.array(sent, np.int64))


def clock_shift_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC; the closest of a hundred pairs."""
    pairs = []
    for _ in range(100):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        pairs.append((after - before, wall - (before + after) // 2))
    return min(pairs)[1]


class Flood:
    """Keeps a link's queue full from a process of its own."""

    def __init__(self, namespace: NetNamespace, address: str) -> None:
        self._process = namespace.call(
            lambda: subprocess.Popen(
                [sys.executable, __file__, "--flood", address],
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
            )
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def flood(address: str) -> None:
    """The sending process: blocks while its socket buffer's worth of packets waits in the queue."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES // 2)
    opened.connect((address, 5001))
    filler = bytes(IP_BYTES - HEADERS - 8)
    while True:
        try:
            opened.send(time.monotonic_ns().to_bytes(8, "little") + filler)
        except OSError:  # Mininet's rebuild takes the queue away for a moment
            time.sleep(0.001)


class Pair:
    """Two namespaces; each method makes its own link between them."""

    def __init__(self) -> None:
        self.a, self.b = NetNamespace.create(), NetNamespace.create()

    def addresses(self) -> None:
        for namespace, own in ((self.a, "10.8.0.1"), (self.b, "10.8.0.2")):
            namespace.run(["ip", "link", "set", "dev", "eth0", "up"])
            namespace.run(["ip", "addr", "add", f"{own}/24", "dev", "eth0"])
        self.a.run(["ping", "-c", "1", "-W", "2", "10.8.0.2"])

    def close(self) -> None:
        self.a.close()
        self.b.close()


def process_cpu_s(pid: int) -> float:
    """Exact CPU time (the tick-sampled one of /proc/PID/stat misjudges a process that wakes with the timer)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def run_ours(trace: Trace, seconds: float, step_ms: int, folder: Path) -> dict[str, Any]:
    """LinkFabric on a plain veth link."""
    pair = Pair()
    fabric = LinkFabric(folder, seed=1, step_s=step_ms / 1e3)
    spec = DirectionSpec(trace=trace, queue=QueueLimit(packets=DEEP_QUEUE))
    fabric.connect("link", Endpoint(pair.a, "eth0"), Endpoint(pair.b, "eth0"), spec, DirectionSpec())
    fabric.start()
    pair.addresses()
    receiver, sender = Receiver(pair.b, "10.8.0.2", folder / "arrivals.npz"), Flood(pair.a, "10.8.0.2")
    time.sleep(0.5)
    start_ns = time.monotonic_ns() + 100 * MS
    fabric.start_replay(start_ns)
    pid = fabric.helper_pids["replay"]
    cpu = process_cpu_s(pid)
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9 + seconds + 0.1))
    cpu = process_cpu_s(pid) - cpu
    sender.stop()
    arrived, _ = receiver.stop()
    side = fabric.stop()["links"]["link"]["up"]
    pair.close()
    lag = {key: side[key] for key in ("apply_lag_p50_ns", "apply_lag_p99_ns", "missed_steps")}
    return {**fidelity(trace, arrived, start_ns, seconds), "cpu_share": cpu / seconds, **lag}


def run_stepped(
    trace: Trace, seconds: float, step_ms: int, folder: Path, pair: Pair, apply: Callable[[float], None]
) -> dict[str, Any]:
    """Any method that sets a rate at each step on absolute deadlines; late steps are skipped."""
    receiver, sender = Receiver(pair.b, "10.8.0.2", folder / "arrivals.npz"), Flood(pair.a, "10.8.0.2")
    time.sleep(0.5)
    bits = trace.bits_per_step(step_ms * MS, int(seconds * 1000 / step_ms))
    start_ns = time.monotonic_ns() + 100 * MS
    used, missed = cpu_with_children(), 0
    for number, allowed in enumerate(bits.tolist()):
        due_ns = start_ns + number * step_ms * MS
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        elif -wait_ns > step_ms * MS:
            missed += 1
            continue
        apply(allowed * 1e3 / step_ms)
    used = cpu_with_children() - used
    time.sleep(0.1)
    sender.stop()
    arrived, _ = receiver.stop()
    return {**fidelity(trace, arrived, start_ns, seconds), "cpu_share": used / seconds, "missed_steps": missed}


def run_tc(trace: Trace, seconds: float, step_ms: int, folder: Path) -> dict[str, Any]:
    """HTB class changed by a forked `tc` at each step: what most published scripts do.

    With a floor of one packet per step: below that, HTB keeps the debt of the last packet and stalls for seconds.
    """
    pair = Pair()
    pair.a.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pair.b.path])
    pair.addresses()
    pair.a.run(["tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1"])
    pair.a.run(
        [
            "tc",
            "class",
            "add",
            "dev",
            "eth0",
            "parent",
            "1:",
            "classid",
            "1:1",
            "htb",
            "rate",
            "5mbit",
            "quantum",
            "1514",
        ]
    )
    pair.a.run(["tc", "qdisc", "add", "dev", "eth0", "parent", "1:1", "pfifo", "limit", str(DEEP_QUEUE)])
    change = ["tc", "class", "change", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate"]

    def loop() -> dict[str, Any]:
        def apply(rate_bps: float) -> None:
            frames_bps = max(1514 * 8e3 / step_ms, rate_bps * 1514 / 1500)
            argv = [*change, f"{frames_bps:.0f}bit", "quantum", "1514"]
            subprocess.run(argv, check=True, timeout=10, capture_output=True)

        return run_stepped(trace, seconds, step_ms, folder, pair, apply)

    result = pair.a.call(loop)
    pair.close()
    return result


def run_mininet(trace: Trace, seconds: float, step_ms: int, folder: Path) -> dict[str, Any]:
    """Mininet's own TCIntf.config(bw=...) at each step."""
    from mininet.link import TCIntf
    from mininet.log import setLogLevel
    from mininet.net import Mininet

    setLogLevel("critical")
    net = Mininet(topo=None, build=False, controller=None)
    h1, h2 = net.addHost("h1", ip="10.8.0.1/24"), net.addHost("h2", ip="10.8.0.2/24")
    link = net.addLink(h1, h2, intf=TCIntf, bw=5, max_queue_size=DEEP_QUEUE)
    net.build()
    pair = Pair()
    pair.close()
    pair.a, pair.b = NetNamespace.of_process(h1.pid), NetNamespace.of_process(h2.pid)
    h1.cmd("ping -c 1 10.8.0.2")

    def apply(rate_bps: float) -> None:
        link.intf1.config(bw=max(0.001, rate_bps * 1514 / 1500 / 1e6), max_queue_size=DEEP_QUEUE)

    result = run_stepped(trace, seconds, step_ms, folder, pair, apply)
    net.stop()
    return result


def cpu_with_children() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def fidelity(trace: Trace, arrived_ns: np.ndarray, start_ns: int, seconds: float) -> dict[str, Any]:
    """Errors of delivered IP bytes against the trace."""
    result: dict[str, Any] = {}
    inside = arrived_ns[(arrived_ns >= start_ns) & (arrived_ns < start_ns + int(seconds * 1e9))] - start_ns
    for window_ms in WINDOWS_MS:
        count = int(seconds * 1000 // window_ms)
        allowed = trace.bits_per_step(window_ms * MS, count) / 8
        got = np.bincount(inside // (window_ms * MS), minlength=count)[:count] * IP_BYTES
        result[f"error_{window_ms}ms"] = float(np.abs(got - allowed).mean() / allowed.mean())
    allowed_total = trace.bits_between(0, int(seconds * 1e9)) / 8
    result["error_total"] = float(len(inside) * IP_BYTES / allowed_total - 1)
    return result


def run_delay(delay_s: float, seconds: float, folder: Path) -> dict[str, Any]:
    """One-way delay of small datagrams, one each 2 ms, minus what was asked."""
    pair = Pair()
    fabric = LinkFabric(folder, seed=1)
    spec = DirectionSpec(delay_s=delay_s)
    link = fabric.connect("link", Endpoint(pair.a, "eth0"), Endpoint(pair.b, "eth0"), spec, spec)
    fabric.start()
    pair.addresses()
    receiver = Receiver(pair.b, "10.8.0.2", folder / "arrivals.npz")
    opened = pair.a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    opened.connect(("10.8.0.2", 5001))
    cpu = {name: process_cpu_s(pid) for name, pid in fabric.helper_pids.items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        opened.send(time.monotonic_ns().to_bytes(8, "little") + bytes(64))
        time.sleep(0.002)
    cpu = {name: (process_cpu_s(pid) - cpu[name]) / seconds for name, pid in fabric.helper_pids.items()}
    time.sleep(0.3)
    arrived, sent = receiver.stop()
    fabric.stop()
    pair.close()
    error_s = (arrived - sent) / 1e9 - delay_s
    return {
        "backend": link.backend,
        "probes": len(error_s),
        "error_median_s": float(np.median(error_s)),
        "error_p99_s": float(np.quantile(error_s, 0.99)),
        "error_min_s": float(error_s.min()),
        "error_max_s": float(error_s.max()),
        "cpu_share": cpu,
    }


def run_tcp(trace: Trace, seconds: float, folder: Path) -> dict[str, Any]:
    """One TCP download over a replayed link with 20 ms each way: bytes sent over bytes allowed, and while busy."""
    import pandas as pd

    pair = Pair()
    fabric = LinkFabric(folder, seed=1)
    up = DirectionSpec(trace=trace, delay_s=0.02, queue=QueueLimit(seconds=0.5))
    fabric.connect("link", Endpoint(pair.a, "eth0"), Endpoint(pair.b, "eth0"), up, DirectionSpec(delay_s=0.02))
    fabric.start()
    pair.addresses()
    server = pair.b.call(lambda: subprocess.Popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL))
    time.sleep(0.5)
    fabric.start_replay(time.monotonic_ns())
    text = pair.a.run(["iperf3", "-c", "10.8.0.2", "-t", str(int(seconds)), "-J"], timeout_s=seconds + 30)
    server.wait(10)
    fabric.stop()
    pair.close()
    report = json.loads(text)
    if "error" in report:
        raise RuntimeError(report["error"])
    rows = pd.read_csv(folder / "links.csv")
    rows = rows[(rows["direction"] == "up") & rows["allowed_bytes"].notna()]
    sent, allowed = rows["tx_bytes"].diff(), rows["allowed_bytes"].diff()
    busy = (rows["backlog_bytes"].shift(1) > IP_BYTES) & (rows["backlog_bytes"] > IP_BYTES)
    busy_ratio = float(sent[busy].sum() / allowed[busy].sum()) if allowed[busy].sum() else None
    return {
        "received_bps": report["end"]["sum_received"]["bits_per_second"],
        "sent_over_allowed": float(sent[1:-5].sum() / allowed[1:-5].sum()),
        "busy_sent_over_allowed": busy_ratio,
        "busy_share": float(busy.mean()),
    }


METHODS: dict[str, tuple[Callable[[Trace, float, int, Path], dict[str, Any]], int]] = {
    "ours": (run_ours, 10),
    "tc": (run_tc, 10),
    "tc100": (run_tc, 100),
    "mininet": (run_mininet, 100),
}


def data_traces() -> list[Path]:
    named = os.environ.get("TESTBED_DATA")
    folder = (Path(named) if named else PROJECT.parent / "shared" / "data") / "traces" / "mahimahi"
    found = [folder / name for name in DEFAULT_TRACES if (folder / name).exists()]
    if not found:
        sys.exit("no traces: set TESTBED_DATA, or name files with --traces")
    return found


def inside(options: argparse.Namespace) -> None:
    """The benchmark itself, in its sandbox."""
    results: dict[str, Any] = {"seconds": options.seconds, "load_before": os.getloadavg(), "replay": {}}
    with tempfile.TemporaryDirectory() as temporary:
        count = 0

        def folder() -> Path:
            nonlocal count
            count += 1
            made = Path(temporary) / str(count)
            made.mkdir()
            return made

        print(
            f"{'trace':24} {'method':8} {'step':>6} {'total':>8} {'10 ms':>7} {'100 ms':>7} {'1 s':>7} {'CPU':>7}  lag p99"
        )
        for path in options.traces:
            trace = load_trace(path)
            for method in options.methods.split(","):
                function, step_ms = METHODS[method]
                rows = [function(trace, options.seconds, step_ms, folder()) for _ in range(options.repeats)]
                row = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
                results["replay"].setdefault(path.name, {})[method] = {"step_ms": step_ms, **row}
                lag = f"{row['apply_lag_p99_ns'] / 1e6:.2f} ms" if "apply_lag_p99_ns" in row else "-"
                errors = " ".join(f"{row[f'error_{w}ms']:7.2%}" for w in WINDOWS_MS)
                print(
                    f"{path.name:24} {method:8} {step_ms:3d} ms {row['error_total']:+8.2%} {errors} {row['cpu_share']:7.2%}  "
                    f"{lag}, {row['missed_steps']:.0f} steps missed",
                    flush=True,
                )
            if not options.no_tcp:
                tcp = results["replay"][path.name]["tcp"] = run_tcp(trace, options.seconds, folder())
                print(f"{path.name:24} TCP      {json.dumps(tcp)}", flush=True)
        results["delay"] = run_delay(0.025, options.seconds, folder())
        print("delay 25 ms", json.dumps(results["delay"]), flush=True)
    results["load_after"] = os.getloadavg()
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--traces", type=Path, nargs="*")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--no-tcp", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--receive", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        receive(*options.receive)
    elif options.flood:
        flood(options.flood)
    elif options.inside:
        options.traces = [Path(p) for p in options.traces]
        inside(options)
    else:
        traces = [str(p.resolve()) for p in options.traces or data_traces()]
        argv = [
            sys.executable,
            __file__,
            "--inside",
            "--seconds",
            str(options.seconds),
            "--repeats",
            str(options.repeats),
        ]
        argv += ["--methods", options.methods, *(["--no-tcp"] if options.no_tcp else [])]
        argv += ["--out", str(Path(options.out).resolve())] if options.out else []
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        sys.exit(Sandbox.spawn([*argv, "--traces", *traces], env=environment).wait())


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    main()
