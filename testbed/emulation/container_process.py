"""Node programs as plain processes in the network namespace of their Mininet host: no other isolation."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.emulation import cgroup
from testbed.emulation.container import (
    CPU_PERIOD_US,
    HOST_IMAGE,
    Container,
    Engine,
    Limits,
    Mount,
    NodeNamespace,
    Usage,
    open_log,
    process_tree,
    signal_tree,
)
from testbed.errors import EmulationError, InputError

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessContainer(Container):
    """A child of ours; its group of control is known only when it has limits."""

    def __init__(self, name: str, client: subprocess.Popen[bytes], log_path: Path) -> None:
        super().__init__(name, client, log_path)
        self._group: cgroup.Cgroup | None = None

    @property
    def pid(self) -> int:
        return self.client.pid

    def usage(self) -> Usage:
        if self.poll() is not None:
            raise EmulationError(f"{self.name} has ended")
        if self._group is None:
            self._group = cgroup.Cgroup.of_process(self.pid)
        if self._group.ours:
            return Usage(*self._group.usage())
        return usage_from_proc(self.pid, self.name)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            raise EmulationError(f"{self.name} has ended; it cannot be sent {number.name}")
        signal_tree(self.pid, number, self.name)


class ProcessEngine(Engine):
    """``runtime: process``."""

    name = "process"
    version = platform.python_version()

    @property
    def runtime(self) -> str:
        return "process"

    def start(
        self,
        name: str,
        *,
        netns: NodeNamespace,
        argv: Sequence[str],
        log_path: Path,
        mounts: Sequence[Mount] = (),
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        image: str = HOST_IMAGE,
        cwd: Path | None = None,
    ) -> Container:
        if image != HOST_IMAGE:
            raise InputError(
                "a plain process has no image", key=name, value=image, remedy="say `runtime: container`"
            )
        for mount in mounts:
            if mount.target != mount.src:
                raise InputError(
                    "a plain process sees files where they are", key=name, value=str(mount.target)
                )
        limits = limits or Limits()
        prefix = ["nsenter", f"--net={netns.path}", "--"]
        if limits.cpuset is not None:
            prefix += ["taskset", "-c", limits.cpuset]
        if limits.cpus is not None or limits.memory_bytes is not None:
            cgroup.mount_hierarchies()
            members = cgroup.make_limited(
                self.run_id, name, period_us=CPU_PERIOD_US, cpus=limits.cpus, memory_bytes=limits.memory_bytes
            )
            # the shell enters the group itself, before the program exists, so nothing runs outside its limits
            enter = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1"; shift; n=$((n-1)); done; exec "$@"'
            prefix += ["sh", "-c", enter, "sh", str(len(members)), *map(str, members)]
        with open_log(log_path) as log:
            client = subprocess.Popen(
                [*prefix, *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,  # Ctrl-C in the terminal is for the runner alone
            )
        container = ProcessContainer(name, client, log_path)
        self.containers.append(container)
        return container

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.state_dir, ignore_errors=True)
        cgroup.remove_run(self.run_id, timeout_s=1.0)


def usage_from_proc(pid: int, name: str) -> Usage:
    """CPU seconds (ended children included) and resident memory of a process and its descendants."""
    ticks, pages = 0, 0
    for member in process_tree(pid):
        try:
            # after the command's closing bracket: state is field 3; utime, stime, cutime, cstime are 14 to 17
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(value) for value in fields[11:15])
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except OSError:
            if member == pid:
                raise EmulationError(f"{name} has ended") from None
    return Usage(ticks * _TICK_S, 0.0, pages * _PAGE_BYTES)
