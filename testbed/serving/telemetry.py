"""Telemetry of a node's own process: queue, CPU time and memory, every 100 ms, as rows of the `nodes` table."""

from __future__ import annotations

import asyncio
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

from testbed.serving.background import Background

COLUMNS = ("t_ns", "node", "cpu_usage_s", "memory_bytes", "queue_depth", "inflight")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


async def write_telemetry(path: Path, node: str, depths: Callable[[], tuple[int, int]], period_s: float = 0.1) -> None:
    """Append a row per period on absolute instants until cancelled. `depths` gives (queue depth, in flight)."""
    with path.open("w", encoding="utf-8", newline="") as stream, Background() as background:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        due = time.monotonic()
        while True:
            queue_depth, inflight = depths()
            background.submit(writer.writerow, [time.monotonic_ns(), node, f"{time.process_time():.6f}", memory_bytes(),
                                                queue_depth, inflight])
            background.submit(stream.flush)
            due = max(due + period_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
