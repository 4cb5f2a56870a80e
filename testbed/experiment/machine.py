"""Facts about the machine and its software, for the manifest; and its CPU over time, for the validity checks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("testbed", "torch", "numpy", "pandas", "aiohttp", "pyroute2", "pydantic", "safetensors", "scipy", "os-ken", "mininet")
POLL_S = 0.1
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages of this project's list that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages and tools that a run depends on."""
    found = package_versions()
    if "mininet" not in found:
        from mininet.net import VERSION

        found["mininet"] = str(VERSION)
    for tool, argv in (("iperf3", ["iperf3", "--version"]), ("iproute2", ["ip", "-V"])):
        if shutil.which(argv[0]):
            text = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout
            found[tool] = text.strip().splitlines()[0] if text.strip() else "unknown"
    return found


def host() -> dict[str, Any]:
    """Kernel, CPU, memory, clock source, load."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
               platform.processor() or platform.machine())
    memory = next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None)
    clock = _lines("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return {"kernel": platform.release(), "system": _system(), "machine": platform.machine(), "cpu_model": cpu,
            "cpu_count": len(os.sched_getaffinity(0)), "memory_bytes": memory, "clock_source": clock[0] if clock else None,
            "load_1min": os.getloadavg()[0], "root": os.geteuid() == 0}


def _system() -> str:
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class MachinePoll:
    """Polls the whole machine's CPU and memory every 100 ms in a thread; rows are `nodes` rows of node `machine`."""

    def __init__(self, also: Callable[[], list[dict[str, Any]]] = list) -> None:
        self.rows: list[dict[str, Any]] = []
        self._also = also
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="machine-poll", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> list[dict[str, Any]]:
        """End and return the rows."""
        self._stop.set()
        self._thread.join(5)
        return self.rows

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.rows.append(machine_row())
            self.rows.extend(self._also())
            due += POLL_S
            self._stop.wait(max(0.0, due - time.monotonic()))


def machine_row() -> dict[str, Any]:
    """Cumulative busy and stolen CPU seconds over all cores, and memory in use."""
    # user nice system idle iowait irq softirq steal (guest is in user already)
    ticks = [int(v) for v in _lines("/proc/stat")[0].split()[1:9]]
    busy = sum(ticks[:3]) + ticks[5] + ticks[6]
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo")[:3]}
    return {"t_ns": time.monotonic_ns(), "node": "machine", "cpu_usage_s": busy * _TICK_S, "cpu_steal_s": ticks[7] * _TICK_S,
            "memory_bytes": memory["MemTotal"] - memory["MemAvailable"]}
