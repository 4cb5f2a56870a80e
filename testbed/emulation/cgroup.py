"""Control groups (v1 and v2): what a container used, limits of plain processes, removal after a dead run."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation.netns import run_checked
from testbed.errors import EmulationError

ROOT = Path("/sys/fs/cgroup")
PREFIX = "testbed-"
"""Every control group of ours is below one whose name starts so: only those are ever removed."""


def is_unified(root: Path = ROOT) -> bool:
    """True where the machine has cgroup v2 only (not the v1 or hybrid layout)."""
    return (root / "cgroup.controllers").exists()


def may_make_groups(root: Path = ROOT) -> bool:
    """Whether we may make groups at the top (root may; a plain user may not, in a user namespace neither)."""
    return os.access(root if is_unified(root) else root / "cpu", os.W_OK)


def controllers_v1() -> list[str]:
    """Names of the v1 hierarchies in use, as mounted below /sys/fs/cgroup (``cpu,cpuacct`` is one)."""
    names = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names_field, _ = line.split(":", 2)
        if names_field:
            names.append(names_field)
    return names


@dataclass(frozen=True)
class Cgroup:
    """The control group of one container: one folder (v2) or one per controller (v1)."""

    folders: dict[str, Path]  # v2: {"": folder}; v1: {"cpu": ..., "cpuacct": ..., "memory": ...}

    @classmethod
    def of_process(cls, pid: int, root: Path = ROOT) -> Cgroup:
        """The groups that a process is in, from /proc/PID/cgroup."""
        unified, folders = is_unified(root), {}
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except FileNotFoundError:
            raise EmulationError(f"process {pid} has ended") from None
        for line in lines:
            _, names, path = line.split(":", 2)
            if unified and not names:
                folders[""] = root / path.lstrip("/")
            elif names and not unified:
                for name in names.split(","):
                    mounted = root / name if (root / name).is_dir() else root / names
                    folders[name] = mounted / path.lstrip("/")
        return cls(folders)

    @classmethod
    def of_container(cls, container_id: str, root: Path = ROOT) -> Cgroup | None:
        """The groups of a Docker container, in the layouts of Docker's two drivers; None if elsewhere."""
        for path in (f"docker/{container_id}", f"system.slice/docker-{container_id}.scope"):
            if (root / path).is_dir():
                return cls({"": root / path})
            if (root / "cpuacct" / path).is_dir():
                return cls({name: root / name / path for name in ("cpu", "cpuacct", "memory")})
        return None

    @property
    def ours(self) -> bool:
        """False for a group that others share, whose figures are not this container's."""
        return any(PREFIX in str(folder) for folder in self.folders.values())

    def usage(self) -> tuple[float, float, int]:
        """CPU seconds, throttled seconds, memory bytes (without page cache that can be dropped)."""
        try:
            if "" in self.folders:
                folder = self.folders[""]
                stat = _table(folder / "cpu.stat")
                memory = 0
                if (folder / "memory.current").exists():
                    cache = _table(folder / "memory.stat").get("inactive_file", 0)
                    memory = max(0, int((folder / "memory.current").read_text()) - cache)
                return stat["usage_usec"] / 1e6, stat.get("throttled_usec", 0) / 1e6, memory
            cpu_ns = int((self.folders["cpuacct"] / "cpuacct.usage").read_text())
            throttled_ns = _table(self.folders["cpu"] / "cpu.stat").get("throttled_time", 0)
            cache = _table(self.folders["memory"] / "memory.stat").get("total_inactive_file", 0)
            memory = max(0, int((self.folders["memory"] / "memory.usage_in_bytes").read_text()) - cache)
            return cpu_ns / 1e9, throttled_ns / 1e9, memory
        except (OSError, KeyError) as error:
            raise EmulationError(f"the control group's figures cannot be read: {error}") from None


def make_limited(
    run_id: str, name: str, *, period_us: int, cpus: float | None, memory_bytes: int | None, root: Path = ROOT
) -> list[Path]:
    """Make a group with limits for a plain process; returns the files that its process id goes into."""
    path = Path(PREFIX + run_id) / name
    try:
        if is_unified(root):
            parent = root / path.parent
            parent.mkdir(exist_ok=True)
            (parent / "cgroup.subtree_control").write_text("+cpu +memory")
            (root / path).mkdir(exist_ok=True)
            if cpus is not None:
                (root / path / "cpu.max").write_text(f"{round(cpus * period_us)} {period_us}")
            if memory_bytes is not None:
                (root / path / "memory.max").write_text(str(memory_bytes))
            return [root / path / "cgroup.procs"]
        members = []
        for controller in ("cpu", "cpuacct", "memory"):
            folder = root / controller / path
            folder.mkdir(parents=True, exist_ok=True)
            members.append(folder / "cgroup.procs")
        if cpus is not None:
            (root / "cpu" / path / "cpu.cfs_period_us").write_text(str(period_us))
            (root / "cpu" / path / "cpu.cfs_quota_us").write_text(str(round(cpus * period_us)))
        if memory_bytes is not None:
            (root / "memory" / path / "memory.limit_in_bytes").write_text(str(memory_bytes))
        return members
    except OSError as error:
        raise EmulationError(f"no control group with limits can be made for {name}: {error}") from None


def remove_run(run_id: str, *, timeout_s: float = 5.0, root: Path = ROOT) -> list[Path]:
    """Remove the groups of a run, once their processes have gone; returns what could not be removed."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = [path for path in _tops(root, PREFIX + run_id) if not _remove_tree(path)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.05)


def remove_stale(min_age_s: float = 60.0, root: Path = ROOT) -> None:
    """Remove groups of runs that died without their reaper: the kernel refuses those that still have a
    process.

    min_age_s: younger ones may be another run's that is about to fill them.
    """
    for path in _tops(root, PREFIX + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= min_age_s:
                _remove_tree(path)


def mount_hierarchies(root: Path = ROOT) -> None:
    """Mount the control groups where a fresh sysfs hides them. Only for a private mount namespace."""
    if any(root.iterdir()):
        return
    names = controllers_v1()
    if not names:
        run_checked(["mount", "-t", "cgroup2", "cgroup2", str(root)], timeout_s=5)
        return
    run_checked(["mount", "-t", "tmpfs", "-o", "mode=755,size=1m", "cgroup", str(root)], timeout_s=5)
    for names_field in names:
        folder = root / names_field.removeprefix("name=")
        folder.mkdir()
        option = f"none,{names_field}" if names_field.startswith("name=") else names_field
        run_checked(["mount", "-t", "cgroup", "-o", option, "cgroup", str(folder)], timeout_s=5)
        if "," in names_field:
            for single in names_field.split(","):
                (root / single).symlink_to(names_field)


def _tops(root: Path, pattern: str) -> list[Path]:
    # "*/": v1 has a folder per controller; a link (cpu -> cpu,cpuacct) would list the same group twice
    found = list(root.glob(pattern)) + [p for p in root.glob(f"*/{pattern}") if not p.parent.is_symlink()]
    return [path for path in found if path.is_dir()]


def _remove_tree(path: Path) -> bool:
    """Remove a group and those below it, deepest first (files in a group cannot and need not be removed)."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not path.exists()


def _table(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split()[:2] for line in path.read_text().splitlines())}
