"""SYNTHETIC run directories: made-up numbers with the shape of real ones, so that measurement is tested alone.

A tiny fluid model stands in for the network (a transfer takes as long as the rate's integral needs), so hops
add up to the latency, kernel counters agree with the payload, and every check has something true to look at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.measurement.atomic import write_json_atomic
from testbed.measurement.records import HOPS, LINKS, NODES, REQUESTS, write_table

START_NS = 5_000_000_000_000
SECOND = 1_000_000_000
POLICIES = ("device-only", "edge-only", "cloud-only", "split", "early-exit")
TIERS = (("device", 2), ("edge", 1), ("cloud", 1))
NODES_BY_TIER = {"device1": "device", "device2": "device", "edge1": "edge", "cloud1": "cloud"}
# per policy: (stages on the device, on the edge, on the cloud, bytes up to the edge, accuracy)
SHAPE = {
    "device-only": (0.180, 0.0, 0.0, 0, 0.952),
    "edge-only": (0.0, 0.021, 0.0, 4_300, 0.953),
    "cloud-only": (0.0, 0.0, 0.008, 4_300, 0.953),
    "split": (0.048, 0.0, 0.007, 16_600, 0.953),
    "early-exit": (0.0, 0.012, 0.006, 4_300, 0.934),
}
WIRE = 1.05  # wire bytes per message byte


@dataclass
class Wire:
    """One direction of a link: cumulative bytes on a 1 ms grid, FIFO, and a record of what it carried."""

    rate_bps: np.ndarray
    delay_ns: int
    free_ns: int = 0
    sent: list[tuple[int, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cumulative = np.concatenate(([0.0], np.cumsum(self.rate_bps / 8e3)))  # bytes by the end of each ms

    def send(self, t_ns: int, size: float) -> int:
        """Return the arrival of the last byte of a message handed over at t_ns."""
        begin = max(t_ns, self.free_ns)
        at = np.interp(begin / 1e6, np.arange(len(self.cumulative)), self.cumulative)
        end = int(np.interp(at + size, self.cumulative, np.arange(len(self.cumulative))) * 1e6)
        self.sent.append((begin, end, size))
        self.free_ns = end
        return end + self.delay_ns

    def tx_bytes(self, grid_ns: np.ndarray) -> np.ndarray:
        """Bytes sent by each instant of the grid."""
        total = np.zeros(len(grid_ns))
        level = np.interp(grid_ns / 1e6, np.arange(len(self.cumulative)), self.cumulative)
        for begin, end, size in self.sent:
            lo, hi = (np.interp(x / 1e6, np.arange(len(self.cumulative)), self.cumulative) for x in (begin, end))
            total += np.clip((level - lo) / max(hi - lo, 1e-9), 0, 1) * size
        return total

    def backlog(self, grid_ns: np.ndarray) -> np.ndarray:
        """Bytes waiting at each instant of the grid."""
        left = np.zeros(len(grid_ns))
        for begin, end, size in self.sent:
            inside = (grid_ns >= begin) & (grid_ns < end)
            left[inside] += size * (end - grid_ns[inside]) / max(end - begin, 1)
        return left


def lte_rate(rng: np.random.Generator, duration_ms: int, mean_bps: float) -> np.ndarray:
    """A bursty rate on a 1 ms grid: an exponentiated AR(1) process of 10 ms steps with a slow fade."""
    steps = duration_ms // 10 + 1
    noise = rng.normal(size=steps) * 0.12
    level = np.zeros(steps)
    for i in range(1, steps):
        level[i] = 0.985 * level[i - 1] + noise[i]
    fade = 0.35 * np.sin(np.arange(steps) * 10 / 1000 * 2 * np.pi / 17)
    return np.repeat(mean_bps * np.exp(level + fade - 0.3), 10)[:duration_ms]


def make_run(root: Path, *, requests_per_device: int = 120, policies: tuple[str, ...] = POLICIES, repeats: int = 1,
             sweep: tuple[dict[str, Any], ...] = ({},), seed: int = 1, backend: str = "tap") -> Path:
    """Write a whole synthetic run below `root` and return its directory."""
    run = root / "runs" / "synthetic"
    for p, policy in enumerate(policies):
        for s, point in enumerate(sweep):
            for repeat in range(repeats):
                make_trial(run / f"cfg{p}{s}" / str(repeat), policy, requests_per_device=requests_per_device,
                           repeat=repeat, sweep_point=point, seed=seed, backend=backend)
    return run


def make_trial(path: Path, policy: str, *, requests_per_device: int = 120, repeat: int = 0, seed: int = 1,
               sweep_point: dict[str, Any] | None = None, rate_per_s: float = 4.0, backend: str = "tap",
               failing: int = 0) -> Path:
    """Write one synthetic trial; `failing` requests of each device time out."""
    point = sweep_point or {}
    scale = float(point.get("trace_scale", 1.0))
    rng = np.random.default_rng([seed, repeat, POLICIES.index(policy)])
    world = np.random.default_rng([seed, 77])  # the same traces for all policies
    span_s = requests_per_device / rate_per_s
    duration_ms = int(span_s * 1000) + 20_000
    wires: dict[tuple[str, str], Wire] = {}
    for device in ("device1", "device2"):
        wires[f"{device}-edge1", "up"] = Wire(lte_rate(world, duration_ms, 4e6 * scale), 15_000_000)
        wires[f"{device}-edge1", "down"] = Wire(lte_rate(world, duration_ms, 14e6 * scale), 15_000_000)
    for direction in ("up", "down"):
        wires["edge1-cloud1", direction] = Wire(np.full(duration_ms, 100e6), 20_000_000)

    run_id = f"synthetic-{policy}-{repeat}"
    requests: list[dict[str, Any]] = []
    hops: list[dict[str, Any]] = []
    free = dict.fromkeys(NODES_BY_TIER, 0)
    schedule = []
    for device in ("device1", "device2"):
        gaps = np.random.default_rng([seed, repeat, int(device[-1])]).exponential(1 / rate_per_s, requests_per_device)
        schedule += [(int(t * 1e9), device, i) for i, t in enumerate(np.cumsum(gaps) + 1.0)]
    for number, (scheduled, device, sample) in enumerate(sorted(schedule)):
        request_id = f"{device}-{sample}"
        issued = scheduled + int(rng.gamma(2, 150_000))
        rows, now, exit_id, final, tiers = _walk(policy, rng, wires, free, device, issued + 80_000)
        failed = sample < failing
        label = int(rng.integers(10))
        easy = exit_id == "exit1"
        correct = bool(rng.random() < SHAPE[policy][4] + (0.03 if easy else 0.0))
        latency = (now + 60_000 - scheduled) / 1e9
        requests.append({
            "run_id": run_id, "request_id": request_id, "sample_index": sample, "device": device,
            "phase": "measure" if number >= 4 else "warmup", "scheduled_ns": START_NS + scheduled,
            "issued_ns": START_NS + issued,
            "completed_ns": START_NS + (scheduled + 10 * SECOND if failed else now + 60_000),
            "status": "failed" if failed else "ok", "error_type": "timeout" if failed else None, "policy": policy,
            "plan": policy, "model": "digits-branchy", "exit_id": None if failed else exit_id,
            "exit_confidence": None if failed else round(float(rng.uniform(0.6, 1)), 4),
            "final_node": None if failed else final, "tiers_used": "+".join(tiers), "codec": "raw",
            "request_bytes": SHAPE[policy][3] or None, "response_bytes": 120 if SHAPE[policy][3] else None,
            "prediction": None if failed else (label if correct else (label + 1) % 10), "label": label,
            "correct": None if failed else correct, "deadline_s": 0.25,
            "deadline_met": (not failed) and latency <= 0.25, "decision_duration_s": 80e-6,
        })
        for index, row in enumerate(rows):
            hops.append({"run_id": run_id, "request_id": request_id, "hop_index": index}
                        | {k: v + START_NS if k.endswith("_ns") and k != "service_ns" else v for k, v in row.items()})

    grid = np.arange(0, int((span_s + 3) * 1e9), 100_000_000)
    links = _link_rows(run_id, wires, grid, rng)
    nodes = _node_rows(run_id, grid, rng)
    write_table(path / "requests.csv", REQUESTS, requests)
    write_table(path / "hops.csv", HOPS, hops)
    write_table(path / "links.csv", LINKS, links)
    write_table(path / "nodes.csv", NODES, nodes)
    write_json_atomic(path / "fabric.json", fabric())
    write_json_atomic(path / "manifest.json", manifest(run_id, policy, repeat, seed, point, backend, path.parent.name))
    write_json_atomic(path / "status.json", {"status": "complete"})
    return path


def edit_json(path: Path, change: Any) -> None:
    """Read a JSON file, let `change` mutate it, write it back."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def fabric() -> dict[str, Any]:
    """A fabric summary of a shaper that kept up."""
    side = {"updates": 3000, "apply_lag_p50_ns": 90_000, "apply_lag_p99_ns": 700_000, "apply_lag_max_ns": 2_100_000,
            "missed_steps": 0, "rate_readback_bps": None}
    names = ("device1-edge1", "device2-edge1", "edge1-cloud1")
    return {
        "links": {name: {"up": dict(side), "down": dict(side)} for name in names},
        "delay_line": {"late_p50_ns": 40_000, "late_p99_ns": 400_000, "late_max_ns": 3_000_000, "frames": 41_000},
        "cpu_s": {"replay": 0.9, "delay_line": 2.1},
    }


def manifest(run_id: str, policy: str, repeat: int, seed: int, point: dict[str, Any], backend: str,
             config_hash: str) -> dict[str, Any]:
    """A manifest as the engine writes it."""
    def side(rate: float | None, delay: float, trace: str | None = None) -> dict[str, Any]:
        replayed = {"path": trace, "sha256": "ab" * 32, "offset_ns": 0, "mean_rate_bps": 4_000_000}
        return {"rate_bps": rate, "trace": replayed if trace else None, "delay_s": delay,
                "jitter_s": 0.0, "loss": 0.0, "queue": "200ms"}

    links = [{"name": f"{d}-edge1", "src": d, "dst": "edge1", "backend": backend,
              "up": side(None, 0.015, "traces/synthetic-lte-up.csv"),
              "down": side(None, 0.015, "traces/synthetic-lte-down.csv")} for d in ("device1", "device2")]
    links.append({"name": "edge1-cloud1", "src": "edge1", "dst": "cloud1", "backend": backend,
                  "up": side(1e8, 0.02), "down": side(1e8, 0.02)})
    calibration = [{"link": link["name"], "direction": d, "asked_rate_bps": asked, "measured_rate_bps": asked * 0.983,
                    "asked_rtt_s": rtt, "measured_rtt_s": rtt + 0.0006}
                   for link in links for d in ("up", "down")
                   for asked, rtt in [(1e8, 0.04) if link["name"] == "edge1-cloud1" else (8e6, 0.03)]]
    return {
        "schema_version": 1, "run_id": run_id, "scenario": "synthetic", "config_hash": config_hash,
        "config": {"name": "synthetic", "description": "Synthetic numbers for tests of the measurement room.",
                   "topology": {"tiers": [{"name": n, "count": c} for n, c in TIERS]},
                   "policies": [{"name": name} for name in POLICIES], "validity": {}},
        "repeat": repeat, "seed": seed, "policy": policy, "sweep_point": point,
        "started_utc": "2026-01-01T12:00:00Z", "finished_utc": "2026-01-01T12:00:40Z",
        "clock": {"start_ns": START_NS, "unix_ns_at_start": 1_767_268_800 * SECOND},
        "versions": {"testbed": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "host": {"kernel": "6.1.0", "cpu_model": "Example CPU", "cpu_count": 2, "memory_bytes": 8_000_000_000},
        "links": links,
        "nodes": [{"name": name, "tier": tier, "address": f"10.0.0.{i + 1}", "runtime": "container",
                   "engine": "podman 4.3.1", "compute": {"profile": "raspberry-pi-4"} if tier == "device" else "real"}
                  for i, (name, tier) in enumerate(NODES_BY_TIER.items())],
        "calibration": {"links": calibration, "nodes": []},
        "files": {}, "validity": {},
    }


def _walk(policy: str, rng: np.random.Generator, wires: dict[tuple[str, str], Wire], free: dict[str, int],
          device: str, now: int) -> tuple[list[dict[str, Any]], int, str, str, list[str]]:
    """Take one request through its plan; return its hop rows, its end, exit, last node and tiers."""
    on_device, on_edge, on_cloud, size, _ = SHAPE[policy]
    rows: list[dict[str, Any]] = []
    tiers, final, exit_id = ["device"], device, "final"

    def compute(node: str, seconds: float, stage: str) -> None:
        nonlocal now
        real = int(seconds * 1e9 * (1 if node == device else rng.gamma(40, 1 / 40)))
        start = max(now, free[node])
        rows.append({"kind": "compute", "src_node": node, "dst_node": node, "stage": stage, "queue_start_ns": now,
                     "compute_start_ns": start, "compute_end_ns": start + real,
                     "service_ns": int(seconds * 1e9) if node == device else None})
        now = free[node] = start + real

    def transfer(src: str, dst: str, links: list[str], direction: str, payload: int) -> None:
        nonlocal now
        begin = now
        sent = begin + 90_000
        at = sent
        for link in links:
            at = wires[link, direction].send(at, (payload + 310) * WIRE)
        rows.append({"kind": "transfer", "src_node": src, "dst_node": dst, "link": "+".join(links),
                     "direction": direction, "payload_bytes": payload, "header_bytes": 310, "encode_start_ns": begin,
                     "encode_end_ns": begin + 80_000, "send_start_ns": sent,
                     "recv_first_ns": max(sent, at - 2_000_000), "recv_last_ns": at})
        now = at

    access = f"{device}-edge1"
    if on_device:
        compute(device, on_device, "0:2" if policy == "split" else "0:4")
    if policy in ("cloud-only", "split"):
        transfer(device, "cloud1", [access, "edge1-cloud1"], "up", size)
        compute("cloud1", on_cloud, "2:4" if policy == "split" else "0:4")
        transfer("cloud1", device, ["edge1-cloud1", access], "down", 120)
        tiers, final = [*tiers, "cloud"] if policy == "split" else ["cloud"], "cloud1"
    elif policy in ("edge-only", "early-exit"):
        transfer(device, "edge1", [access], "up", size)
        compute("edge1", on_edge, "0:2")
        tiers, final = ["edge"], "edge1"
        if policy == "early-exit" and rng.random() < 0.35:
            transfer("edge1", "cloud1", ["edge1-cloud1"], "up", 8_300)
            compute("cloud1", on_cloud, "2:4")
            transfer("cloud1", "edge1", ["edge1-cloud1"], "down", 120)
            tiers, final = ["edge", "cloud"], "cloud1"
        elif policy == "early-exit":
            exit_id = "exit1"
        transfer("edge1", device, [access], "down", 120)
    return rows, now, exit_id, final, tiers


def _link_rows(run_id: str, wires: dict[tuple[str, str], Wire], grid: np.ndarray,
               rng: np.random.Generator) -> pd.DataFrame:
    parts = []
    for (link, direction), wire in wires.items():
        tx = wire.tx_bytes(grid)
        milliseconds = np.arange(len(wire.cumulative))
        trace = None if link == "edge1-cloud1" else f"traces/synthetic-lte-{direction}.csv"
        allowed = np.interp(grid / 1e6, milliseconds, wire.cumulative)
        before = np.concatenate(([0], np.diff(allowed) * 8 / 0.1))
        lag = rng.gamma(2, 80_000, len(grid)).astype("int64")
        parts.append(pd.DataFrame({
            "run_id": run_id, "t_ns": START_NS + grid, "link": link, "direction": direction, "trace": trace,
            "trace_offset_ns": grid if trace else None, "target_rate_bps": before if trace else 1e8,
            "applied_rate_bps": before if trace else 1e8, "apply_lag_ns": lag if trace else None,
            "apply_lag_p50_ns": lag // 3 if trace else None, "target_delay_s": wire.delay_ns / 1e9,
            "tx_bytes": tx.astype("int64"), "tx_packets": (tx / 900).astype("int64"), "dropped_packets": 0,
            "backlog_bytes": wire.backlog(grid).astype("int64"), "allowed_bytes": allowed.astype("int64"),
        }))
    return pd.concat(parts).sort_values("t_ns", kind="stable")


def _node_rows(run_id: str, grid: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    parts = []
    for node, share in {"machine": 0.9, "device1": 0.1, "device2": 0.1, "edge1": 0.3, "cloud1": 0.2}.items():
        used = np.cumsum(rng.gamma(8, share / 8, len(grid)) * 0.1)
        parts.append(pd.DataFrame({
            "run_id": run_id, "t_ns": START_NS + grid, "node": node, "cpu_usage_s": used, "cpu_throttled_s": 0.0,
            "cpu_steal_s": 0.0 if node == "machine" else np.nan, "memory_bytes": 300_000_000, "queue_depth": 0,
            "inflight": 0,
        }))
    return pd.concat(parts)
