"""Containers by Podman: no daemon, all state in a private folder, processes in the trial's own pid space."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
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
    image_argv,
    last_words,
    need_program,
    open_log,
    read_pid_file,
    signal_tree,
)
from testbed.emulation.host_image import host_mounts, make_root
from testbed.emulation.netns import run_checked
from testbed.errors import EmulationError, MissingToolError

_REMEDY = "apt-get install podman runc"
SYSTEM_STORE = Path("/var/lib/containers/storage")

# What every container is denied, whichever image it runs (docs/containers.md says why each)
CONFINEMENT = (
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--read-only",
    "--tmpfs=/tmp:rw,nosuid,nodev",
)


class PodmanContainer(Container):
    """An attached ``podman run``; the program is a process of ours, seen in /proc."""

    def __init__(self, name: str, client: subprocess.Popen[bytes], log_path: Path, pid_file: Path) -> None:
        super().__init__(name, client, log_path)
        self._pid_file = pid_file
        self._pid: int | None = None
        self._group: cgroup.Cgroup | None = None

    @property
    def pid(self) -> int:
        if self._pid is None:
            self._pid = read_pid_file(self._pid_file, self.client, self.name, self.log_path)
        return self._pid

    def usage(self) -> Usage:
        if self.poll() is not None:
            raise EmulationError(f"{self.name} has ended")
        if self._group is None:
            self._group = cgroup.Cgroup.of_process(self.pid)
        return Usage(*self._group.usage())

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            raise EmulationError(f"{self.name} has ended; it cannot be sent {number.name}")
        signal_tree(self.pid, number, self.name)


class PodmanEngine(Engine):
    """One private Podman per trial: own storage, locks and runtime state; nothing shared, nothing left."""

    name = "podman"

    def __init__(self, run_id: str, state_dir: Path | None, version: str) -> None:
        if state_dir is not None and len(f"{state_dir}/run") > 50:
            state_dir = None  # Podman takes no run folder longer than 50 characters
        super().__init__(run_id, state_dir)
        self.version = version
        self._numbers = itertools.count(1)
        self._host_mounts: list[Mount] = []

    @classmethod
    def probe(cls) -> str:
        """Podman's version, if it answers and has a runtime; nothing of the system's is touched."""
        need_program("podman", _REMEDY)
        need_program("conmon", _REMEDY)
        find_runtime()
        if any(cgroup.ROOT.iterdir()) and not cgroup.may_make_groups():
            raise MissingToolError("podman needs root here, for its control groups", remedy="use sudo")
        with tempfile.TemporaryDirectory(prefix="testbed-podman-") as folder:
            state = Path(folder)
            write_configuration(state)
            try:
                text = run_checked(
                    [*base_command(state, HOST_IMAGE), "info", "--format", "{{.Version.Version}}"],
                    timeout_s=30,
                    env=environment(state),
                )
            except EmulationError as error:
                raise MissingToolError(last_words(error), remedy=_REMEDY) from None
        return text.strip()

    def prepare(self) -> None:
        super().prepare()
        write_configuration(self.state_dir)
        # a sandbox with a fresh sysfs hides the control groups, without which runc starts nothing
        cgroup.mount_hierarchies()
        cgroup.remove_stale()
        self._host_mounts = host_mounts()
        make_root(self.state_dir / "host-image", self._host_mounts)

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
        # a number, because the name of a crashed container is free again only after Podman's own clean-up
        unique = f"{name}.{next(self._numbers)}"
        pid_file = self.state_dir / f"{unique}.pid"
        command = [
            *base_command(self.state_dir, image),
            "run",
            "--interactive",
            "--rm",
            f"--name={unique}",
            f"--hostname={name}",
            f"--label=testbed.run={self.run_id}",
            f"--pidfile={pid_file}",
            f"--network=ns:{netns.path}",
            f"--cgroup-parent=/{cgroup.PREFIX}{self.run_id}",
            # Podman's own defaults may lie above the machine's hard limits, and then nothing starts
            "--ulimit=host",
            "--no-hosts",
            "--dns=none",
            "--pull=never",
            "--log-driver=none",
            *CONFINEMENT,
            *limit_options(limits),
            *(f"--env={key}={value}" for key, value in (env or {}).items()),
        ]
        if cwd is not None:
            command.append(f"--workdir={cwd}")
        if image == HOST_IMAGE:
            command += mount_options([*self._host_mounts, *self._new_points(mounts)])
            command += ["--rootfs", str(self.state_dir / "host-image")]
        else:
            command += [*mount_options(mounts), image]
            argv = image_argv(argv)
        with open_log(log_path) as log:
            client = subprocess.Popen(
                [*command, *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.state_dir),
                cwd=self.state_dir,  # conmon leaves a file named "oom" where it stands
                start_new_session=True,  # Ctrl-C in the terminal is for the runner alone
            )
        container = PodmanContainer(name, client, log_path, pid_file)
        self.containers.append(container)
        return container

    def close(self) -> None:
        super().close()
        cgroup.remove_run(self.run_id)
        unmount_below(self.state_dir)
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def _new_points(self, mounts: Sequence[Mount]) -> list[Mount]:
        """The mounts that host_mounts() does not show already; mount points are made in the common root."""
        new = [
            mount
            for mount in mounts
            if not mount.read_only
            or mount.target != mount.src
            or not any(mount.src.is_relative_to(shown.src) for shown in self._host_mounts)
        ]
        outside = [m for m in new if not any(m.target.is_relative_to(shown.target) for shown in self._host_mounts)]
        make_root(self.state_dir / "host-image", outside)
        return new


def unmount_below(folder: Path) -> None:
    """Podman's overlay driver leaves its own folder mounted (outside a sandbox, that would stay)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{folder}/")), key=len, reverse=True):
        run_checked(["umount", "--lazy", point], timeout_s=5)


def find_runtime() -> str:
    """runc where it is: crun refuses machines whose control groups are v1 and v2 mixed."""
    for runtime in ("runc", "crun"):
        if shutil.which(runtime):
            return runtime
    raise MissingToolError("podman has neither runc nor crun", remedy=_REMEDY)


def write_configuration(state_dir: Path) -> None:
    """A containers.conf of our own, so that the machine's settings do not change a run."""
    # file locks: the default is one segment of shared memory per machine, in which a killed run would leave
    # its locks
    (state_dir / "containers.conf").write_text(
        '[containers]\ndefault_ulimits=[]\ndefault_sysctls=[]\nlog_driver="none"\n'
        f'[engine]\nruntime="{find_runtime()}"\ncgroup_manager="cgroupfs"\nevents_logger="none"\nlock_type="file"\n'
    )
    # images of the machine's own store are used from where they are, where we may read them
    shared = f'additionalimagestores=["{SYSTEM_STORE}"]' if os.access(SYSTEM_STORE, os.R_OK | os.X_OK) else ""
    (state_dir / "storage.conf").write_text(
        f'[storage]\ndriver="overlay"\nrunroot="{state_dir}/run"\ngraphroot="{state_dir}/root"\n'
        f"[storage.options]\n{shared}\n"
    )


def base_command(state_dir: Path, image: str) -> list[str]:
    command = [
        "podman",
        "--log-level=fatal",  # its own complaints would stand in the node's log; a failed start is said anyway
        f"--tmpdir={state_dir}/tmp",
        # runc keeps its state in /run/runc otherwise, for all trials and for ever
        f"--runtime-flag=root={state_dir}/runtime",
    ]
    if image == HOST_IMAGE:
        # the root is a plain folder: no image store is needed, and vfs works on every file system
        command += [f"--root={state_dir}/root", f"--runroot={state_dir}/run", "--storage-driver=vfs"]
    return command


def environment(state_dir: Path) -> dict[str, str]:
    keep = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")}
    keep["CONTAINERS_CONF"] = str(state_dir / "containers.conf")
    keep["CONTAINERS_STORAGE_CONF"] = str(state_dir / "storage.conf")
    return keep


def mount_options(mounts: Sequence[Mount]) -> list[str]:
    return [
        f"--mount=type=bind,src={mount.src},dst={mount.target}{',ro=true' if mount.read_only else ''}"
        for mount in mounts
    ]


def limit_options(limits: Limits | None) -> list[str]:
    """The options that Podman and Docker have in common."""
    if limits is None:
        return []
    options = []
    if limits.cpus is not None:
        options += [f"--cpu-period={CPU_PERIOD_US}", f"--cpu-quota={round(limits.cpus * CPU_PERIOD_US)}"]
    if limits.cpuset is not None:
        options.append(f"--cpuset-cpus={limits.cpuset}")
    if limits.memory_bytes is not None:
        options += [f"--memory={limits.memory_bytes}b"]
    return options
