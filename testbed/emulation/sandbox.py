"""Private namespaces for one run: when its caller dies, however it dies, the kernel takes everything away.

Chain of processes: caller -> supervisor (in the new namespaces, same pid namespace as the caller) -> init (PID 1 of
the new pid namespace, reaps orphans) -> command. Supervisor and init ask the kernel for SIGKILL when their parent
dies; the death of PID 1 kills every process in its pid namespace, and with the last process the kernel removes
network namespaces, interfaces and mounts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from testbed.emulation import linux
from testbed.errors import EmulationError, MissingToolError

GRACE_S = 5.0
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_PRIVATE_DIRECTORIES = ("/run/netns",)
_REMEDY = (
    "run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0); inside Docker use --privileged"
)


class SandboxProcess:
    """A command running in its sandbox.

    ``pid`` is the supervisor (SIGTERM to it is passed on to the command; its death ends the sandbox), ``init_pid`` is
    the sandbox's PID 1 as seen from outside (``nsenter --target init_pid --net --mount --pid``).
    """

    def __init__(self, process: subprocess.Popen[bytes], init_pid: int) -> None:
        self._process = process
        self.pid = process.pid
        self.init_pid = init_pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    @property
    def stdout(self) -> IO[bytes] | None:
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        return self._process.stderr

    def wait(self, timeout: float | None = None, *, grace_s: float = GRACE_S) -> int:
        """Wait for the command and return its exit code (128 + N when signal N killed it).

        While waiting in the main thread, SIGINT and SIGTERM to the caller are passed on as SIGTERM; after ``grace_s``
        (or at a second signal) the sandbox is killed, and then KeyboardInterrupt or SystemExit(143) is raised.
        Raises subprocess.TimeoutExpired after ``timeout`` seconds, leaving the command running.
        """
        got: list[int] = []
        with _noting_signals(got):
            deadline = None if timeout is None else time.monotonic() + timeout
            kill_at: float | None = None
            while True:
                if got and kill_at is None:
                    kill_at = time.monotonic() + grace_s
                    self.terminate()
                if kill_at is not None and (len(got) > 1 or time.monotonic() > kill_at):
                    self.kill()
                try:
                    code = self._process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    if deadline is not None and kill_at is None and time.monotonic() >= deadline:
                        raise subprocess.TimeoutExpired(self._process.args, timeout or 0.0) from None
        if got:
            if got[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + got[0])
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM)."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End everything in the sandbox now, and wait until it is gone."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Sandbox:
    """Starts commands in namespaces of their own: network, mounts, processes, and user when we are not root."""

    @staticmethod
    def spawn(
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | IO[str] | None = None,
        stderr: int | IO[bytes] | IO[str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        private_dirs: Sequence[str] = _PRIVATE_DIRECTORIES,
        pass_fds: Sequence[int] = (),
    ) -> SandboxProcess:
        """Run ``argv`` in new namespaces; returns once the command has started.

        The thread that calls this must outlive the sandbox: the kernel's parent-death signal is tied to the thread.
        ``private_dirs`` get an empty tmpfs of their own. Raises MissingToolError when the kernel refuses namespaces,
        EmulationError when the command cannot be started.
        """
        read_fd, write_fd = os.pipe()
        job_fd = os.memfd_create("sandbox-job")  # not on the command line: the environment is nobody else's business
        job = {
            "argv": list(argv),
            "env": dict(os.environ if env is None else env),
            "private_dirs": list(private_dirs),
            "parent": os.getpid(),
            "status_fd": write_fd,
        }
        os.write(job_fd, json.dumps(job).encode())
        os.lseek(job_fd, 0, os.SEEK_SET)
        source_root = str(Path(__file__).resolve().parents[2])
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "testbed.emulation.sandbox", str(job_fd)],
                env={**os.environ, "PYTHONPATH": source_root},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                pass_fds=(write_fd, job_fd, *pass_fds),
                start_new_session=True,  # a terminal's Ctrl-C reaches the caller alone, which passes it on
            )
        finally:
            os.close(write_fd)
            os.close(job_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            answer = pipe.read()
        try:
            status = json.loads(answer)
        except ValueError:
            status = {"error": f"the sandbox's supervisor died before it could start {argv[0]!r}"}
        if "started" in status:
            return SandboxProcess(process, int(status["started"]))
        process.kill()
        process.wait()
        if status.get("refused"):
            raise MissingToolError(f"the kernel refuses private namespaces ({status['error']})", remedy=_REMEDY)
        raise EmulationError(str(status["error"]))


@contextlib.contextmanager
def _noting_signals(got: list[int]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _frame: FrameType | None) -> None:
        got.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- supervisor: runs in a fresh Python process


class _Job:
    def __init__(self, fields: dict[str, Any]) -> None:
        self.argv: list[str] = fields["argv"]
        self.env: dict[str, str] = fields["env"]
        self.private_dirs: list[str] = fields["private_dirs"]
        self.parent: int = fields["parent"]
        self.status_fd: int = fields["status_fd"]


def _supervise(job: _Job) -> NoReturn:
    linux.die_with_parent(job.parent)
    os.set_inheritable(job.status_fd, False)
    user_id, group_id = os.geteuid(), os.getegid()
    flags = linux.CLONE_NEWNET | linux.CLONE_NEWNS | linux.CLONE_NEWPID
    try:
        if user_id == 0:
            linux.unshare(flags)
        else:
            linux.unshare(flags | linux.CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user_id} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group_id} 1")
            linux.die_with_parent(job.parent)  # the change of credentials has cleared the request
    except OSError as error:
        _report(job.status_fd, {"error": str(error), "refused": linux.refused(error)})
        os._exit(125)
    alive_read, alive_write = os.pipe()  # the write end is held here alone: its closing tells init that we are gone
    answer_read, answer_write = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(alive_write)
        os.close(answer_read)
        os.close(job.status_fd)
        _init(job, alive_read, answer_write)
    os.close(alive_read)
    os.close(answer_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(init, signal.SIGTERM))
    with os.fdopen(answer_read, "rb") as pipe:
        problem = pipe.read()  # empty once the command has been exec'ed: every write end is then closed
    _report(job.status_fd, json.loads(problem) if problem else {"started": init})
    os._exit(_exit_code(os.waitpid(init, 0)[1]))


def _init(job: _Job, alive_fd: int, answer_fd: int) -> NoReturn:
    """PID 1 of the sandbox: prepare the mounts, start the command, reap until it ends."""
    linux.die_with_parent(None)
    if select.select([alive_fd], [], [], 0)[0]:  # the supervisor died before the request above was in place
        os._exit(128 + signal.SIGKILL)
    try:
        _private_mounts(job.private_dirs)
        _loopback_up()
    except OSError as error:
        _report(answer_fd, {"error": str(error), "refused": linux.refused(error)})
        os._exit(125)
    command = os.fork()
    if command == 0:
        try:
            os.execvpe(job.argv[0], job.argv, job.env)
        except OSError as error:
            _report(answer_fd, {"error": f"cannot start {job.argv[0]!r} in the sandbox: {error.strerror}"})
        os._exit(127)
    os.close(answer_fd)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(command, signal.SIGTERM))
    while True:
        pid, wait_status = os.waitpid(-1, 0)
        if pid == command:
            os._exit(_exit_code(wait_status))


def _private_mounts(private_dirs: Sequence[str]) -> None:
    # Slave: what is mounted outside later (for example a container engine's network namespaces) appears here too,
    # what is mounted here never appears outside.
    linux.mount("none", "/", None, linux.MS_SLAVE | linux.MS_REC)
    hardened = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", "/proc", "proc", hardened)
    cgroups = _submounts("/sys/fs/cgroup")
    kept = [(os.open(target, os.O_PATH | os.O_CLOEXEC), target) for target in cgroups]
    linux.mount("sysfs", "/sys", "sysfs", hardened)  # a fresh one shows the interfaces of the new namespace
    for fd, target in kept:
        if os.path.isdir(target):
            linux.mount(f"/proc/self/fd/{fd}", target, None, linux.MS_BIND | linux.MS_REC)
        os.close(fd)
    for directory in private_dirs:
        try:
            os.makedirs(directory, exist_ok=True)
        except PermissionError:
            continue  # a plain user cannot make it, and nobody else has: there is nothing to hide
        linux.mount("tmpfs", directory, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")


def _submounts(prefix: str) -> list[str]:
    """The outermost mount points at or below ``prefix`` (a bind that is recursive brings the inner ones along)."""
    points: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if not (point == prefix or point.startswith(prefix + "/")):
            continue
        if not any(point == outer or point.startswith(outer + "/") for outer in points):
            points.append(point)
    return points


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _report(fd: int, status: Mapping[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the caller is gone; the death signal is on its way
        os.write(fd, json.dumps(status).encode())
    os.close(fd)


def _exit_code(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def _main() -> NoReturn:
    with os.fdopen(int(sys.argv[1]), "rb") as job_file:
        job = _Job(json.loads(job_file.read()))
    _supervise(job)


if __name__ == "__main__":
    _main()
