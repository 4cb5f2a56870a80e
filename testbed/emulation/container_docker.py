"""Containers by Docker: a pause container holds each node's network namespace, node programs join it."""

from __future__ import annotations

import array
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.emulation import cgroup
from testbed.emulation.container import (
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
)
from testbed.emulation.container_podman import CONFINEMENT, limit_options, mount_options
from testbed.emulation.host_image import host_mounts, make_archive
from testbed.emulation.netns import run_checked
from testbed.errors import EmulationError, MissingToolError

LABEL = "testbed.run"
_REMEDY = "start Docker (`systemctl start docker`), or set DOCKER_HOST, or use Podman"
_STARTED, _ENDED = ("running", "paused"), ("exited", "dead", "removing")

# Runs in the pause container: hands the descriptor of its network namespace over a socket, then sleeps until
# its stdin ends. A path would not do: Docker's processes are not in the trial's pid space, nor its mounts in
# ours.
_PAUSE = """
import array, os, socket, sys
peer = socket.socket(socket.AF_UNIX); peer.connect("/handover/socket")
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
peer.sendmsg([b"n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
sys.stdin.buffer.read()
"""


class DockerContainer(Container):
    """An attached ``docker run``; the program is the daemon's, so figures and signals go by its API."""

    def __init__(
        self, name: str, client: subprocess.Popen[bytes], log_path: Path, api: DockerApi, unique: str
    ) -> None:
        super().__init__(name, client, log_path)
        self.api = api
        self.unique = unique
        self._group: cgroup.Cgroup | None = None
        self._group_sought = False

    @property
    def pid(self) -> int:
        """As the daemon's machine numbers it: not visible in the trial's own pid space."""
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            status, answer = self.api.call("GET", f"/containers/{self.unique}/json")
            if status == 200 and answer["State"]["Status"] in _STARTED:
                return int(answer["State"]["Pid"])
            ended = status == 200 and answer["State"]["Status"] in _ENDED
            if ended or self.poll() is not None:
                raise EmulationError(f"{self.name} ended before it ran: {self.log_tail(3)}")
            time.sleep(0.01)
        raise EmulationError(f"{self.name} was not started within 30 s")

    def usage(self) -> Usage:
        if not self._group_sought:
            status, answer = self.api.call("GET", f"/containers/{self.unique}/json")
            if status != 200:
                raise EmulationError(f"{self.name} is not running")
            self._group, self._group_sought = cgroup.Cgroup.of_container(answer["Id"]), True
        if self._group is not None:
            return Usage(*self._group.usage())
        # the API answers the same in some 0.7 s, because the daemon samples anew
        status, answer = self.api.call("GET", f"/containers/{self.unique}/stats?stream=false&one-shot=true")
        if status != 200 or not answer.get("memory_stats"):
            raise EmulationError(f"{self.name} has ended")
        cpu, memory = answer["cpu_stats"], answer["memory_stats"]
        detail = memory.get("stats", {})
        cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))
        return Usage(
            cpu["cpu_usage"]["total_usage"] / 1e9,
            cpu.get("throttling_data", {}).get("throttled_time", 0) / 1e9,
            max(0, memory["usage"] - cache),
        )

    def _signal(self, number: signal.Signals) -> None:
        self._post(f"kill?signal={int(number)}")

    def pause(self) -> None:
        self._post("pause")

    def unpause(self) -> None:
        self._post("unpause")

    def kill(self, timeout_s: float = 10.0) -> int:
        if self.poll() is None:
            # a client that is killed before the daemon has started its container would leave it running
            _ = self.pid
        return super().kill(timeout_s)

    def _post(self, action: str) -> None:
        status, answer = self.api.call("POST", f"/containers/{self.unique}/{action}")
        if status >= 300:
            what = action.split("?")[0]
            raise EmulationError(f"{self.name}: docker refused {what}: {answer.get('message', status)}")


class DockerEngine(Engine):
    """Needs root: only root may join a namespace that the daemon owns."""

    name = "docker"

    def __init__(self, run_id: str, state_dir: Path | None, version: str) -> None:
        super().__init__(run_id, state_dir)
        self.version = version
        self.api = DockerApi.from_environment()
        self._count = 0
        self._image = f"testbed-host:{run_id}"
        self._host_mounts: list[Mount] = []
        self._descriptors: list[int] = []

    @classmethod
    def probe(cls) -> str:
        """The engine's version; a client that reaches no engine is as good as none."""
        need_program("docker", _REMEDY)
        try:
            version = run_checked(["docker", "version", "--format", "{{.Server.Version}}"], timeout_s=10)
        except EmulationError as error:
            raise MissingToolError(last_words(error), remedy=_REMEDY) from None
        if os.geteuid() != 0:
            raise MissingToolError("docker answers, but only root can join its namespaces", remedy="use sudo")
        DockerApi.from_environment()
        return version.strip()

    def prepare(self) -> None:
        super().prepare()
        done = subprocess.run(
            ["docker", "import", "-", self._image], input=make_archive(), capture_output=True, timeout=60
        )
        if done.returncode != 0:
            raise EmulationError(f"docker import failed: {done.stderr.decode(errors='replace').strip()}")
        self._host_mounts = host_mounts()
        cgroup.mount_hierarchies()

    def create_netns(self, node: str) -> NodeNamespace:
        log_path = self.state_dir / f"{node}-net.log"
        # in the machine's own /tmp, which the daemon sees too; a socket's path must be short
        with tempfile.TemporaryDirectory(prefix="testbed-", dir=_shared_folder()) as folder:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/socket")
                listener.listen(1)
                listener.settimeout(0.1)
                client, unique = self._run(
                    f"{node}-net",
                    ["--network=none"],
                    [sys.executable, "-c", _PAUSE],
                    [*self._host_mounts, Mount(Path(folder), Path("/handover"), read_only=False)],
                    HOST_IMAGE,
                    log_path,
                )
                pause = DockerContainer(f"{node}-net", client, log_path, self.api, unique)
                self.containers.append(pause)
                descriptor = _receive_descriptor(listener, pause)
        self._descriptors.append(descriptor)
        return NodeNamespace(node, f"/proc/{os.getpid()}/fd/{descriptor}", holder=unique)

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
        if netns.holder is None:
            raise EmulationError(f"{name}: with Docker, the namespace must come from create_netns()")
        options = [f"--network=container:{netns.holder}", *limit_options(limits)]
        options += [f"--env={key}={value}" for key, value in (env or {}).items()]
        if cwd is not None:
            options.append(f"--workdir={cwd}")
        shown = self._host_mounts if image == HOST_IMAGE else []
        argv = argv if image == HOST_IMAGE else image_argv(argv)
        client, unique = self._run(name, options, argv, [*shown, *mounts], image, log_path)
        container = DockerContainer(name, client, log_path, self.api, unique)
        self.containers.append(container)
        return container

    def _run(
        self,
        name: str,
        options: Sequence[str],
        argv: Sequence[str],
        mounts: Sequence[Mount],
        image: str,
        log_path: Path,
    ) -> tuple[subprocess.Popen[bytes], str]:
        self._count += 1
        unique = f"testbed-{self.run_id}-{name}-{self._count}"
        command = [
            "docker",
            "run",
            "--interactive",
            "--rm",
            f"--name={unique}",
            f"--label={LABEL}={self.run_id}",
            "--log-driver=none",
            "--pull=never",
            *CONFINEMENT,
            *options,
            *docker_mounts(mounts),
            self._image if image == HOST_IMAGE else image,
            *argv,
        ]
        with open_log(log_path) as log:
            client = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return client, unique

    def close(self) -> None:
        # node programs first, then the namespaces that they are in
        self.containers.sort(key=lambda container: container.name.endswith("-net"))
        super().close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        remove_run(self.run_id)
        shutil.rmtree(self.state_dir, ignore_errors=True)


def docker_mounts(mounts: Sequence[Mount]) -> list[str]:
    # the same notation, but for the word that makes a mount read-only
    return [option.replace(",ro=true", ",readonly") for option in mount_options(mounts)]


def remove_run(run_id: str) -> None:
    """Remove every container, and the image, that carries a run's label: what a killed run may have left."""
    found = run_checked(["docker", "ps", "-aq", "--filter", f"label={LABEL}={run_id}"], timeout_s=30).split()
    if found:
        subprocess.run(["docker", "rm", "--force", "--volumes", *found], capture_output=True, timeout=60)
    subprocess.run(["docker", "rmi", "--force", f"testbed-host:{run_id}"], capture_output=True, timeout=60)


class DockerApi:
    """The few calls that must be fast, over the daemon's own socket (`docker stats` takes seconds)."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    @classmethod
    def from_environment(cls) -> DockerApi:
        # DOCKER_HOST, or the chosen context: the same engine that the `docker` command talks to
        asked = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
        address = os.environ.get("DOCKER_HOST") or run_checked(asked, timeout_s=10).strip()
        if not address.startswith("unix://"):
            raise MissingToolError(
                f"Docker at {address} is not this machine's, and the links are this kernel's",
                remedy="unset DOCKER_HOST or point it to a unix:// socket",
            )
        return cls(address.removeprefix("unix://"))

    def call(self, method: str, path: str, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        """One request; returns the status and the decoded answer ({} when it has none)."""
        connection = http.client.HTTPConnection("docker", timeout=timeout_s)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout_s)
            connection.sock.connect(self.socket_path)
            connection.request(method, f"/v1.41{path}")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise EmulationError(f"Docker at {self.socket_path} does not answer: {error}") from None
        finally:
            connection.close()
        decoded = json.loads(body) if body else {}
        return answer.status, decoded if isinstance(decoded, dict) else {}


def _receive_descriptor(listener: socket.socket, pause: DockerContainer, timeout_s: float = 30.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            if pause.poll() is not None:
                raise EmulationError(f"{pause.name} did not start: {pause.log_tail(3)}") from None
            continue
        with peer:
            peer.settimeout(timeout_s)
            descriptors = array.array("i")
            _, ancillary, _, _ = peer.recvmsg(1, socket.CMSG_LEN(descriptors.itemsize))
            for _level, _kind, data in ancillary:
                descriptors.frombytes(data[: descriptors.itemsize])
        if descriptors:
            return descriptors[0]
    raise EmulationError(
        f"{pause.name} handed over no namespace within {timeout_s:g} s; is Docker in a virtual machine?"
    )


def _shared_folder() -> str:
    """A folder that the trial and the daemon see alike, although the trial has its own mounts."""
    return os.environ.get("TESTBED_DOCKER_DIR", "/tmp")
