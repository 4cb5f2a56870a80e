"""A helper process of the fabric: started with a job, dies with its parent, answers requests over a socket pair."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.emulation import linux
from testbed.errors import EmulationError

_MESSAGE_BYTES = 1 << 20


class Helper:
    """The parent's side: start the module's process, and ask it things."""

    def __init__(self, module: str, job: Mapping[str, Any], fds: Sequence[int], log: Path) -> None:
        self._lock = threading.Lock()
        self._name = module.rpartition(".")[2]
        self._log = log
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_BYTES)
        job_fd = os.memfd_create("helper-job")
        text = json.dumps({**job, "parent": os.getpid(), "control_fd": theirs.fileno()})
        with os.fdopen(os.dup(job_fd), "w") as job_file:
            job_file.write(text)
        os.lseek(job_fd, 0, os.SEEK_SET)
        log.parent.mkdir(parents=True, exist_ok=True)
        source_root = str(Path(__file__).resolve().parents[2])
        with theirs, log.open("ab") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(job_fd)],
                env={**os.environ, "PYTHONPATH": source_root},
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(theirs.fileno(), job_fd, *fds),
            )
        os.close(job_fd)
        self._socket = ours
        self.ready = self._answer(timeout_s=30)

    def ask(self, op: str, *, timeout_s: float = 10, **values: Any) -> dict[str, Any]:
        """Send a request and return its answer. Raises EmulationError when the helper refuses or has died."""
        with self._lock:
            try:
                self._socket.send(json.dumps({"op": op, **values}).encode())
            except OSError as error:
                raise self._dead() from error
            return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(_MESSAGE_BYTES)
        except (OSError, TimeoutError) as error:
            raise self._dead() from error
        if not data:
            raise self._dead()
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise EmulationError(f"{self._name}: {answer['error']}")
        return answer

    def _dead(self) -> EmulationError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        tail = self._log.read_text(errors="replace").strip().splitlines()[-1:] if self._log.exists() else []
        return EmulationError(
            f"the {self._name} process does not answer (exit code {self.process.returncode}); {' '.join(tail)}"
            f" (see {self._log})"
        )

    def stop(self) -> dict[str, Any]:
        """Ask for the summary and end the process."""
        try:
            return self.ask("stop", timeout_s=30)
        finally:
            self.kill()

    def kill(self) -> None:
        self._socket.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Control:
    """The helper's side of the socket pair."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_BYTES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> dict[str, Any] | None:
        """The next request, or None when the parent has gone."""
        data = self._socket.recv(_MESSAGE_BYTES)
        if not data:
            return None
        request: dict[str, Any] = json.loads(data)
        return request

    def reply(self, **values: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._socket.send(json.dumps(values).encode())


def enter(job_fd: int) -> tuple[dict[str, Any], Control, str]:
    """First thing a helper does: its job, its control socket, and the priority it got."""
    with os.fdopen(job_fd, "rb") as job_file:
        job: dict[str, Any] = json.loads(job_file.read())
    linux.die_with_parent(job["parent"])
    priority = linux.raise_priority()
    linux.precise_timers()
    return job, Control(job["control_fd"]), priority


def cpu_seconds() -> float:
    """CPU time that this process has used."""
    return time.process_time()


class Waiter:
    """Sleep until an absolute instant, or until one of some descriptors has something to read."""

    def __init__(self) -> None:
        self._timer = linux.TimerFd()
        self._poll = select.epoll()
        self._poll.register(self._timer.fd, select.EPOLLIN)
        self._armed = 0

    def add(self, fd: int) -> None:
        self._poll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        self._poll.unregister(fd)

    def wait(self, deadline_ns: int | None) -> list[int]:
        """Readable descriptors; empty when the deadline has come."""
        if deadline_ns is not None and deadline_ns != self._armed:
            self._timer.arm(deadline_ns)
            self._armed = deadline_ns
        ready = [fd for fd, _ in self._poll.poll()]
        if self._timer.fd in ready:
            self._timer.drain()
            self._armed = 0
            ready.remove(self._timer.fd)
        return ready
