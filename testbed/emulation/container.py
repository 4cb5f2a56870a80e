"""Where a node's program runs: one small interface over Podman, Docker and plain processes.

A node has a network namespace (:class:`NodeNamespace`, that of its Mininet host) and, in it, a
:class:`Container` that may crash and be started again without the network noticing. A container has no
network of its own: it joins that namespace, so no packet can by-pass the emulated links.

======== ============================= ============================================= ====================
engine   who owns the namespace        dies with its trial because                   limits and usage from
======== ============================= ============================================= ====================
podman   the Mininet host              its processes live in the trial's pid space   cgroup of the container
docker   a "pause" container           stdin ends; :class:`~.reaper.Reaper` as well  Docker's API
process  the Mininet host              its processes live in the trial's pid space   cgroup, else /proc
======== ============================= ============================================= ====================
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from testbed.emulation.netns import run_checked
from testbed.errors import EmulationError, InputError, MissingToolError

HOST_IMAGE = "host"
"""The image that is this machine's interpreter and environment, mounted read-only (host_image.py)."""

# Docker's --cpus takes a 100 ms period, within which a short inference is not slowed at all; see
# docs/containers.md
CPU_PERIOD_US = 10_000

_INSTALL = "install Podman (`make run` does: podman, runc), or start Docker, or say `runtime: process`"

_NOT_ROOT = "run with sudo (containers want root), or say `runtime: process`"


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, seen in the container (by default at the same path)."""

    src: Path
    dst: Path | None = None
    read_only: bool = True

    @property
    def target(self) -> Path:
        return self.dst if self.dst is not None else self.src


@dataclass(frozen=True)
class NodeNamespace:
    """The network namespace of one node.

    path: valid for this process and its children (``/proc/PID/ns/net`` or ``/proc/PID/fd/N``).
    holder: the container that owns it (Docker), None where the Mininet host does.
    """

    node: str
    path: str
    holder: str | None = None


@dataclass(frozen=True)
class Limits:
    """Hard limits of a container; None means none. ``cpuset`` is in the kernel's notation (``0-1,3``)."""

    cpus: float | None = None
    cpuset: str | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and not 0.01 <= self.cpus <= 4096:
            raise InputError("a CPU share must lie between 0.01 and the number of cores", key="cpus", value=self.cpus)
        if self.memory_bytes is not None and self.memory_bytes < 6 * 2**20:
            raise InputError("a memory limit below 6 MiB starts no container", key="memory", value=self.memory_bytes)


class Usage(NamedTuple):
    """What a container has used since it started."""

    cpu_usage_s: float
    cpu_throttled_s: float
    memory_bytes: int


class Container(ABC):
    """A running (or ended) program of a node.

    ``client`` is the process on our side: the program itself, or the attached ``podman run`` / ``docker run``
    whose exit code is the program's. Its stdin is a pipe that ends when we end: programs with
    ``--die-with-stdin`` then exit.
    """

    def __init__(self, name: str, client: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.client = client
        self.log_path = log_path

    @property
    @abstractmethod
    def pid(self) -> int:
        """The program's process id as this process sees it; waits until the program has been started."""

    @abstractmethod
    def usage(self) -> Usage:
        """CPU seconds, throttled seconds and memory so far; raises EmulationError when it has ended."""

    @abstractmethod
    def _signal(self, number: signal.Signals) -> None:
        """Deliver a signal to the program (and, for STOP, CONT and KILL, to its children)."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs (or is still starting)."""
        return self.client.poll()

    def wait(self, timeout_s: float) -> int:
        try:
            return self.client.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EmulationError(f"{self.name} did not end within {timeout_s:g} s") from None

    def stop(self, timeout_s: float = 2.0) -> int:
        """Ask the program to end (end of stdin, then TERM); kill it when it has not after ``timeout_s``."""
        if self.client.stdin is not None and not self.client.stdin.closed:
            self.client.stdin.close()
        if self.poll() is None:
            with contextlib.suppress(EmulationError):  # it may just have ended by itself
                self._signal(signal.SIGTERM)
            try:
                return self.client.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return self.kill()
        return self.wait(1.0)

    def kill(self, timeout_s: float = 10.0) -> int:
        """SIGKILL, as in a crash; returns the exit code. The network namespace stays."""
        if self.poll() is None:
            try:
                self._signal(signal.SIGKILL)
            except EmulationError:
                # it ended just now (then so does the client), or it was never started
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self.client.wait(timeout_s)
                self.client.kill()
        return self.wait(timeout_s)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def unpause(self) -> None:
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that the program wrote, for error messages."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class Engine(ABC):
    """Starts containers of one trial. Use as a context manager: leaving it kills what still runs."""

    name: str
    version: str

    def __init__(self, run_id: str, state_dir: Path | None = None) -> None:
        """run_id: unique per trial, in names and labels. state_dir: private folder; see own_state_dir()."""
        self.run_id = run_id
        self._state_dir = state_dir
        self.containers: list[Container] = []

    @property
    def runtime(self) -> str:
        """``container`` or ``process``, as in the manifest."""
        return "container"

    def prepare(self) -> None:
        """Make what the engine needs before the first start; called once, inside the sandbox."""
        if self._state_dir is None:
            self._state_dir = own_state_dir()
        self._state_dir.mkdir(parents=True, exist_ok=True)

    @property
    def state_dir(self) -> Path:
        assert self._state_dir is not None, "prepare() comes first"
        return self._state_dir

    def create_netns(self, node: str) -> NodeNamespace | None:
        """The namespace that the Mininet host must join, or None: it makes its own (see NodeHost)."""
        return None

    @abstractmethod
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
        """Start a program and return at once (several start side by side); output goes to ``log_path``."""

    def stop_all(self) -> None:
        for container in self.containers:
            if container.poll() is None:
                container.kill()

    def close(self) -> None:
        """End all containers and give back what is outside the sandbox."""
        self.stop_all()

    def __enter__(self) -> Self:
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def choose_engine(preference: str = "auto", *, run_id: str = "probe", state_dir: Path | None = None) -> Engine:
    """The engine that really answers.

    preference: ``auto`` (Podman, which needs no daemon and dies with its trial, else Docker), ``podman``,
    ``docker`` or ``process``. Raises MissingToolError with every engine's own reason.
    """
    from testbed.emulation.container_docker import DockerEngine
    from testbed.emulation.container_podman import PodmanEngine
    from testbed.emulation.container_process import ProcessEngine

    if preference == "process":
        return ProcessEngine(run_id, state_dir)
    makers: dict[str, type[PodmanEngine | DockerEngine]] = {"podman": PodmanEngine, "docker": DockerEngine}
    if preference != "auto" and preference not in makers:
        raise InputError("unknown container engine", key="engine", value=preference,
                         remedy="say auto, podman, docker or process")  # fmt: skip
    reasons = []
    for name, maker in makers.items():
        if preference not in ("auto", name):
            continue
        try:
            version = maker.probe()
        except MissingToolError as error:
            reasons.append(f"{name}: {error.problem}")
        else:
            return maker(run_id, state_dir, version)
    raise MissingToolError(
        f"no container engine answers ({'; '.join(reasons)})", remedy=_INSTALL if os.geteuid() == 0 else _NOT_ROOT
    )


def in_sandbox() -> bool:
    """Whether this process lives in a Sandbox, whose mounts nobody else sees."""
    return b"testbed.emulation.sandbox" in Path("/proc/1/cmdline").read_bytes()


def own_state_dir() -> Path:
    """A short path (Podman refuses long ones) for an engine's files.

    In a sandbox it is on a tmpfs that dies with it, so that nothing is left even after kill -9; elsewhere
    (tests) a fresh folder below /tmp, which Engine.close removes.
    """
    if not in_sandbox():
        return Path(tempfile.mkdtemp(prefix="testbed-"))
    base = Path("/run/testbed") if os.access("/run", os.W_OK) else Path(f"/tmp/testbed-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    if not os.path.ismount(base):
        run_checked(["mount", "-t", "tmpfs", "-o", "mode=700,nosuid,nodev", "testbed", str(base)], timeout_s=5)
    return Path(tempfile.mkdtemp(prefix="e-", dir=base))


def open_log(log_path: Path) -> IO[bytes]:
    """Appending: a node that is started again continues its own log."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    return log_path.open("ab")


def read_pid_file(
    path: Path, client: subprocess.Popen[bytes], name: str, log_path: Path, timeout_s: float = 30.0
) -> int:
    """Wait for an engine to write the process id of the program that ``client`` starts."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            text = path.read_text().strip()
        except FileNotFoundError:
            text = ""
        if text:
            return int(text)
        if client.poll() is not None:
            tail = log_path.read_text(errors="replace").strip().splitlines()[-3:] if log_path.exists() else []
            raise EmulationError(f"{name} ended with code {client.returncode} before it ran: {' / '.join(tail)}")
        time.sleep(0.005)
    raise EmulationError(f"{name} was not started within {timeout_s:g} s")


def process_tree(pid: int) -> list[int]:
    """A process and all its living descendants (as far as /proc shows them), parents first."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                found += [int(child) for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()]
        except OSError:
            continue  # ended meanwhile
    return found


def signal_tree(pid: int, number: signal.Signals, name: str) -> None:
    """Signal a program; STOP, CONT and KILL reach its children as well."""
    whole = number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL)
    for target in process_tree(pid) if whole else [pid]:
        try:
            os.kill(target, number)
        except ProcessLookupError:
            if target == pid:
                raise EmulationError(f"{name} has ended; it cannot be sent {number.name}") from None


def image_argv(argv: Sequence[str]) -> list[str]:
    """The command for an image with an environment of its own: its python3 in place of this machine's."""
    return ["python3" if word == sys.executable else word for word in argv[:1]] + list(argv[1:])


def last_words(error: EmulationError) -> str:
    """What an engine itself said, without the command that was run."""
    return str(error).splitlines()[-1].rpartition("): ")[2]


def need_program(program: str, remedy: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise MissingToolError(f"{program} is not installed", remedy=remedy)
    return path
