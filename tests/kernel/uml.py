"""Boots user-mode Linux, a kernel with netem and Open vSwitch in a process, and runs a command inside it.

The command sees this machine's files (hostfs) under a writable overlay that vanishes with it, is root of its
own kernel, and has its own network. Nothing is loaded into, or changed in, the machine's own kernel.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# First words of the boot, before the overlay: everything that is read here is the machine's, read-only.
_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
modules=$(ls -d /usr/lib/uml/modules/*)
/usr/sbin/insmod "$modules"/kernel/fs/overlayfs/overlay.ko
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 ptmx:5:2; do
    name=${node%%:*}; numbers=${node#*:}
    /usr/bin/mknod -m 666 dev/$name c ${numbers%:*} ${numbers#*:}
done
mkdir dev/pts dev/shm dev/net
/usr/bin/mknod -m 666 dev/net/tun c 10 200
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
/usr/bin/cp SCRIPT run/command.sh
for shown in SHOWN; do mkdir -p run/shown$shown; mount --bind .$shown run/shown$shown; done
mount -t tmpfs tmpfs tmp
for shown in SHOWN; do mkdir -p .$shown; mount --bind run/shown$shown .$shown; done
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p lib/modules
ln -sfn "$modules" lib/modules/$(uname -r)
# not chroot alone: a process that enters a mount namespace (Mininet's hosts) would find itself in the old root
pivot_root . mnt
exec chroot . /bin/sh /run/command.sh
"""

_COMMAND = """
export HOME=/root LANG=C.UTF-8 TESTBED_IN_UML=1 PYTHONDONTWRITEBYTECODE=1
/usr/sbin/depmod -a
/usr/sbin/ip link set lo up
cd DIRECTORY
ENVIRONMENT
COMMAND </dev/null
echo "[[uml-exit $?]]"
while :; do sleep 1; done
"""


@dataclass(frozen=True)
class UmlResult:
    """What the command wrote on its terminal, its exit code, and the seconds from boot to exit."""

    output: str
    returncode: int
    duration_s: float


def run_in_uml(
    command: Sequence[str],
    *,
    folder: Path,
    cwd: Path,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    memory: str = "2G",
) -> UmlResult:
    """Boot, run ``command`` in ``cwd``, and end the kernel. ``folder`` takes scripts and the console's log.

    Raises AssertionError with the console's last lines when the kernel ends or hangs without an exit code.
    """
    script = folder / "command.sh"
    init = folder / "init.sh"
    exports = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in (env or {}).items())
    script.write_text(
        _COMMAND.replace("DIRECTORY", shlex.quote(str(cwd)))
        .replace("ENVIRONMENT", exports)
        .replace("COMMAND", shlex.join(command))
    )
    # a project that lies below /tmp, which is made empty, is shown there all the same
    shown = shlex.quote(str(cwd)) if cwd.is_relative_to("/tmp") else ""
    init.write_text(_INIT.replace("SCRIPT", shlex.quote(str(script))).replace("SHOWN", shown))
    init.chmod(0o755)
    arguments = [
        "linux.uml", f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        f"init={init}", "con=null", "con0=fd:0,fd:1", "quiet", f"uml_dir={folder}/", f"umid=testbed{os.getpid()}",
    ]  # fmt: skip
    console = folder / "console.log"
    started = time.monotonic()
    with console.open("wb") as out:
        # a session of its own: all its processes are one group, which is all that is ever killed
        kernel = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while True:
            output = console.read_text(errors="replace").replace("\r\n", "\n")
            if "[[uml-exit " in output:
                shown, _, code = output.rpartition("[[uml-exit ")
                return UmlResult(shown, int(code.partition("]]")[0]), time.monotonic() - started)
            tail = "\n".join(output.splitlines()[-40:])
            assert kernel.poll() is None, f"user-mode Linux ended by itself:\n{tail}"
            assert time.monotonic() - started < timeout_s, f"no end within {timeout_s:g} s:\n{tail}"
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, signal.SIGKILL)
        kernel.wait()
