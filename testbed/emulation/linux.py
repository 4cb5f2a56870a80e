"""The few Linux calls that Python 3.11 lacks (unshare, setns, mount, prctl, timerfd), through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 1 << 19

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_PR_SET_CHILD_SUBREAPER = 36
_TFD_TIMER_ABSTIME = 1
_CLOCK_MONOTONIC = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Move the calling thread (for CLONE_NEWPID: its future children) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind ``fd``."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, filesystem: str | None, flags: int, data: str | None = None) -> None:
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            filesystem.encode() if filesystem else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {filesystem or source} on {target}",
    )


def die_with_parent(expected_parent: int | None) -> None:
    """Ask the kernel to SIGKILL this process when its parent dies; exit now if the parent is already gone.

    ``expected_parent`` is the pid the parent had when it started us. None skips the check: inside a new pid
    namespace ``getppid`` is 0 whether the parent lives or not, so PID 1 watches a pipe instead.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl(PDEATHSIG)")
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(128 + signal.SIGKILL)


def precise_timers() -> None:
    """Give this thread's sleeps a slack of 1 ns instead of 50 us."""
    _check(_libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0), "prctl(TIMERSLACK)")


def raise_priority(fifo_priority: int = 10, nice: int = -15) -> str:
    """Run ahead of the emulated programs: SCHED_FIFO where permitted, else nice, else as we are.

    Returns which one it became ("fifo", "nice" or "normal"), for the run's record.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(fifo_priority))
        return "fifo"
    except OSError:
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        return "nice"
    except OSError:
        return "normal"


class TimerFd:
    """A timer on CLOCK_MONOTONIC with absolute deadlines, usable in an epoll set."""

    def __init__(self) -> None:
        self.fd = _check(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC), "timerfd_create")
        self._spec = _Itimerspec()
        self._pointer = ctypes.byref(self._spec)
        self._settime = _libc.timerfd_settime
        self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def fileno(self) -> int:
        return self.fd

    def arm(self, deadline_ns: int) -> None:
        """Fire once at ``deadline_ns`` (at once when it has passed)."""
        value = self._spec.value
        value.sec, value.nsec = divmod(max(deadline_ns, 1), 1_000_000_000)
        if self._settime(self.fd, _TFD_TIMER_ABSTIME, self._pointer, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)


def refused(error: OSError) -> bool:
    """Whether the kernel (or a container around us) forbids this, as opposed to a mistake of ours."""
    return error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS)


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("testbed.emulation needs Linux (on other systems: the Vagrant machine)")
