"""Network namespaces held by file descriptor, and running a function inside one."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from testbed.emulation import linux
from testbed.errors import EmulationError, MissingToolError

T = TypeVar("T")


class NetNamespace:
    """A network namespace that lives at least as long as this object's descriptor is open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> NetNamespace:
        """A new, empty namespace (``lo`` is down). Needs CAP_SYS_ADMIN in the current user namespace."""

        def make() -> int:
            linux.unshare(linux.CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        try:
            return cls(_in_thread(make))
        except OSError as error:
            raise MissingToolError(
                f"the kernel refuses a new network namespace ({error})",
                remedy="run inside testbed.emulation.Sandbox, or as root",
            ) from error

    @classmethod
    def of_process(cls, pid: int) -> NetNamespace:
        """The namespace that process ``pid`` is in."""
        try:
            return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise EmulationError(f"no network namespace of process {pid}: {error}") from error

    @classmethod
    def current(cls) -> NetNamespace:
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @property
    def path(self) -> str:
        """A path that names this namespace for other programs while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` inside, in a thread of its own, and return its result (or raise its exception).

        A socket made by the function stays in the namespace; child processes started by it do too.
        """

        def inside() -> T:
            linux.setns(self.fd, linux.CLONE_NEWNET)
            return function()

        return _in_thread(inside)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 20.0,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
    ) -> str:
        """Run a command inside and return its stdout; EmulationError with its stderr when it fails."""
        return self.call(lambda: run_checked(argv, timeout_s=timeout_s, env=env, stdin=stdin))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run_checked(
    argv: Sequence[str], *, timeout_s: float = 20.0, env: dict[str, str] | None = None, stdin: str | None = None
) -> str:
    """Run a command here; its stdout, or an error with its stderr."""
    try:
        done = subprocess.run(
            list(argv), capture_output=True, text=True, timeout=timeout_s, check=False, env=env, input=stdin or ""
        )
    except FileNotFoundError as error:
        raise MissingToolError(
            f"the program {argv[0]!r} is not installed", remedy="install iproute2 (run `make setup`)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EmulationError(f"`{' '.join(argv)}` did not end within {timeout_s} s") from error
    if done.returncode != 0:
        raise EmulationError(f"`{' '.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def _in_thread(function: Callable[[], T]) -> T:
    """A namespace belongs to a thread: use a short-lived one, so that the caller never leaves its own."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
