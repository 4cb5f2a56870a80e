"""The engines keep their promises: confinement, one network namespace per node, usage, crash and restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.emulation import cgroup, container_podman
from testbed.emulation.container import Container, Engine, Limits, Mount, NodeNamespace, choose_engine
from testbed.emulation.container_docker import DockerEngine
from testbed.emulation.container_podman import PodmanEngine
from testbed.emulation.host_image import make_archive
from testbed.errors import EmulationError, InputError, MissingToolError

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

UNTIL_EOF = "import sys; print('here', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private daemon without bridge and firewall rules where dockerd is installed, else what answers."""
    if shutil.which("dockerd") is None:
        try:
            DockerEngine.probe()
        except MissingToolError as error:
            pytest.skip(f"docker is not tested: {error.problem}, and there is no dockerd to start")
        yield os.environ.get("DOCKER_HOST", "")
        return
    folder = tmp_path_factory.mktemp("docker")
    address = f"unix://{folder}/socket"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--bridge=none", "--iptables=false", f"--data-root={folder}/data",
             f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host={address}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        command = ["docker", f"--host={address}", "version", "--format", "{{.Server.Version}}"]
        while subprocess.run(command, capture_output=True).returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        yield address
    finally:
        daemon.terminate()
        daemon.wait(20)


@pytest.fixture(params=["podman", "docker", "process"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if request.param == "docker":
        address = request.getfixturevalue("docker_daemon")
        if address:
            monkeypatch.setenv("DOCKER_HOST", address)
    elif request.param == "podman":
        try:
            PodmanEngine.probe()
        except MissingToolError as error:
            pytest.skip(f"podman is not tested: {error.problem}")
    run_id = f"t{os.getpid()}-{time.monotonic_ns()}"
    with choose_engine(request.param, run_id=run_id) as chosen:
        yield chosen
    assert not chosen.state_dir.exists()
    # whatever the test did, nothing of this run may be left in the machine
    assert cgroup.remove_run(run_id, timeout_s=0) == []
    if request.param == "docker":
        assert docker("ps", "-aq", "--filter", f"label=testbed.run={run_id}") == ""


@pytest.fixture
def netns(engine: Engine) -> Iterator[NodeNamespace]:
    """A node's namespace with one address, 10.9.9.9/24, on a veth that leads nowhere."""
    given = engine.create_netns("node")
    if given is None:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.005)
        given = NodeNamespace("node", f"/proc/{holder.pid}/ns/net")
    else:
        holder = None
    for command in (
        "ip link set lo up",
        "ip link add eth0 type veth peer name far",
        "ip addr add 10.9.9.9/24 dev eth0",
        "ip link set eth0 up",
        "ip link set far up",
    ):
        subprocess.run(["nsenter", f"--net={given.path}", "--", *command.split()], check=True)
    yield given
    if holder is not None:
        holder.kill()
        holder.wait()


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def run(engine: Engine, netns: NodeNamespace, code: str, log: Path, **options: object) -> str:
    """Run Python code in a container to its end; returns what it printed."""
    argv = [sys.executable, "-c", code]
    container = engine.start("node", netns=netns, argv=argv, log_path=log, **options)  # type: ignore[arg-type]
    assert container.wait(60) == 0, container.log_tail(20)
    return log.read_text()


def wait_for(log: Path, word: str, container: Container) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and word in log.read_text()):
        assert container.poll() is None and time.monotonic() < deadline, container.log_tail(20)
        time.sleep(0.02)


def test_only_the_emulated_network_is_in_reach(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    code = """
import json, socket, subprocess
def show(*what):
    return json.loads(subprocess.run(["ip", "-j", *what], capture_output=True, text=True).stdout or "[]")
links = {link["ifname"] for link in show("link")}
addresses = {a["local"] for link in show("-4", "addr") for a in link["addr_info"]}
routes = {r["dst"] for r in show("-4", "route")}
def answers(address):
    try:
        socket.create_connection(address, timeout=0.5).close()
        return "connected"
    except OSError as error:
        return type(error).__name__ if not error.errno else error.strerror
outside = answers(("192.0.2.1", 80))
unix = [line.split()[-1] for line in open("/proc/net/unix").read().splitlines()[1:] if "@" in line]
print(json.dumps([sorted(links), sorted(addresses), sorted(routes), outside, unix]))
"""
    links, addresses, routes, outside, abstract = json.loads(run(engine, netns, code, tmp_path / "log"))
    assert links == ["eth0", "far", "lo"]
    assert addresses == ["10.9.9.9", "127.0.0.1"]
    assert routes == ["10.9.9.0/24"]
    assert outside == "Network is unreachable"
    assert abstract == []  # abstract sockets belong to the network namespace: none of the machine's is there


# a plain process promises no confinement but the network's
@pytest.mark.parametrize("engine", ["podman", "docker"], indirect=True)
def test_a_container_is_confined(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "written").mkdir()
    code = f"""
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
def try_write(path):
    try:
        open(path, "w").close()
        return "written"
    except OSError as error:
        return error.strerror
print(json.dumps([[int(status[c], 16) for c in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
    status["NoNewPrivs"].strip(), status["Seccomp"].strip(), os.getpid(),
    [try_write(f"{{d}}/x") for d in ("", "/etc", "/usr", "/tmp", "{tmp_path}/shown", "{tmp_path}/written")],
    os.path.exists("/etc/shadow"), os.path.exists("/var/run/docker.sock"), sorted(os.listdir("/root"))]))
"""
    mounts = [Mount(tmp_path / "shown"), Mount(tmp_path / "written", read_only=False)]
    capabilities, no_new, seccomp, pid, writes, shadow, socket_seen, home = json.loads(
        run(engine, netns, code, tmp_path / "log", mounts=mounts)
    )
    assert capabilities == [0, 0, 0, 0]
    assert (no_new, seccomp) == ("1", "2")  # a filter is installed
    assert pid == 1  # its own process space
    refused = "Read-only file system"
    assert writes == [refused, refused, refused, "written", refused, "written"]
    assert (shadow, socket_seen, home) == (False, False, [])


def test_the_hosts_environment_works_inside(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    code = """
import os, sys, torch, testbed
print(sys.prefix, testbed.__file__, torch.ones(2).sum().item(), os.environ["WHO"])
"""
    shown = run(engine, netns, code, tmp_path / "log", env={"WHO": "me"}, cwd=Path("/tmp")).split()
    import testbed

    assert shown == [sys.prefix, testbed.__file__, "2.0", "me"]


@pytest.mark.parametrize("engine", ["podman", "docker"], indirect=True)
def test_an_image_of_ones_own_is_run_with_its_own_python(
    engine: Engine, netns: NodeNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No registry is in reach, so the image is made here: an archive in which /usr is left to a mount."""
    name = "localhost/testbed-own:1"
    if engine.name == "podman":
        store = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        monkeypatch.setattr(container_podman, "SYSTEM_STORE", store)
        container_podman.write_configuration(engine.state_dir)
        base = ["podman", f"--root={store}", f"--runroot={store}/run", "--storage-driver=overlay"]
        environment = {**os.environ, "CONTAINERS_CONF": str(engine.state_dir / "containers.conf")}
    else:
        base, environment, store = ["docker"], dict(os.environ), None
    subprocess.run(
        [*base, "import", "-", name], input=make_archive(), check=True, capture_output=True, env=environment
    )
    try:
        code = "import sys; print(sys.executable)"
        shown = run(
            engine, netns, code, tmp_path / "log", image=name, mounts=[Mount(Path("/usr")), Mount(tmp_path)]
        )
        assert shown.strip() == "/usr/bin/python3"
        missing = engine.start(
            "node", netns=netns, argv=["true"], log_path=tmp_path / "log2", image="localhost/none:1"
        )
        assert missing.wait(30) == 125 and "localhost/none" in missing.log_tail()
    finally:
        if store is None:
            docker("rmi", name)
        else:
            subprocess.run([*base, "rmi", "--all", "--force"], capture_output=True, env=environment)
            container_podman.unmount_below(store)
            shutil.rmtree(store, ignore_errors=True)


def test_a_crashed_node_starts_again_in_the_same_network(
    engine: Engine, netns: NodeNamespace, tmp_path: Path
) -> None:
    listen = """
import socket, sys
server = socket.create_server(("10.9.9.9", 7000)); print("here", flush=True); sys.stdin.read()
"""
    argv = [sys.executable, "-c", listen]
    for attempt in (1, 2):
        log = tmp_path / f"log{attempt}"
        node = engine.start("node", netns=netns, argv=argv, log_path=log)
        wait_for(log, "here", node)
        inode = subprocess.run(
            ["nsenter", f"--net={netns.path}", "ip", "-j", "link", "show", "eth0"],
            check=True,
            capture_output=True,
        ).stdout
        assert json.loads(inode)[0]["operstate"] == "UP"
        assert node.kill() in (137, -signal.SIGKILL)
        assert node.poll() is not None
        with pytest.raises(EmulationError):
            node.usage()


def test_it_ends_when_its_stdin_ends(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    node = engine.start(
        "node", netns=netns, argv=[sys.executable, "-c", UNTIL_EOF], log_path=tmp_path / "log"
    )
    wait_for(tmp_path / "log", "here", node)
    assert node.client.stdin is not None
    node.client.stdin.close()
    assert node.wait(20) == 0


def test_stop_kills_what_does_not_listen(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    deaf = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN); print("here", flush=True); time.sleep(600)
"""
    node = engine.start("node", netns=netns, argv=[sys.executable, "-c", deaf], log_path=tmp_path / "log")
    wait_for(tmp_path / "log", "here", node)
    assert node.stop(timeout_s=0.3) in (137, -signal.SIGKILL)


def test_usage_counts_cpu_and_memory(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    burn = """
import sys, time
held = bytearray(64 * 2**20)
while time.process_time() < 0.5: pass
print("here", flush=True); sys.stdin.read()
"""
    began_s = time.monotonic()
    node = engine.start("node", netns=netns, argv=[sys.executable, "-c", burn], log_path=tmp_path / "log")
    wait_for(tmp_path / "log", "here", node)
    usage = node.usage()
    # 0.5 s burnt and the start of the interpreter (seconds in user-mode Linux); one thread, so never more than has passed
    assert 0.49 <= usage.cpu_usage_s <= time.monotonic() - began_s + 0.05
    assert usage.memory_bytes >= 64 * 2**20
    assert usage.cpu_throttled_s == 0.0


def test_limits_are_enforced(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    burn = """
import time
start = time.monotonic()
while time.monotonic() - start < 1.0: pass
print("here", flush=True); time.sleep(60)
"""
    controllers = cgroup.ROOT / "cgroup.controllers"  # user-mode Linux has no cpuset
    with_cpuset = not controllers.exists() or "cpuset" in controllers.read_text()
    limits = Limits(cpus=0.25, memory_bytes=256 * 2**20, cpuset="0" if with_cpuset else None)
    began_s = time.monotonic()
    node = engine.start(
        "node", netns=netns, argv=[sys.executable, "-c", burn], log_path=tmp_path / "log", limits=limits
    )
    wait_for(tmp_path / "log", "here", node)
    usage = node.usage()
    # a start and 1 s of burning, all held to a quarter of a core (half: some clocks count in coarse ticks)
    assert usage.cpu_throttled_s > 0.3
    assert usage.cpu_usage_s < 0.5 * (time.monotonic() - began_s)
    greedy = "held = bytearray(1 << 30); held[::4096] = b'x' * (1 << 18)"
    other = engine.start(
        "greedy", netns=netns, argv=[sys.executable, "-c", greedy], log_path=tmp_path / "log2", limits=limits
    )
    assert other.wait(30) in (137, -signal.SIGKILL)


def test_pause_freezes_and_unpause_continues(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tick = "import time\nwhile True: print('tick', flush=True); time.sleep(0.01)"
    node = engine.start("node", netns=netns, argv=[sys.executable, "-c", tick], log_path=log)
    wait_for(log, "tick", node)
    node.pause()
    time.sleep(0.1)  # what was in the engine's pipes arrives
    frozen = log.stat().st_size
    time.sleep(0.3)
    assert log.stat().st_size == frozen
    node.unpause()
    deadline = time.monotonic() + 10
    while log.stat().st_size == frozen:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_start_side_by_side(engine: Engine, netns: NodeNamespace, tmp_path: Path) -> None:
    logs = [tmp_path / f"log{n}" for n in range(5)]
    nodes = [
        engine.start(f"node{n}", netns=netns, argv=[sys.executable, "-c", UNTIL_EOF], log_path=log)
        for n, log in enumerate(logs)
    ]
    for node, log in zip(nodes, logs, strict=True):
        wait_for(log, "here", node)
    assert len({node.pid for node in nodes}) == 5
    # end of stdin (0) or TERM, whichever the interpreter sees first
    assert {node.stop() for node in nodes} <= {0, 143, -signal.SIGTERM}


def test_a_program_that_cannot_start_is_an_error_with_its_reason(
    engine: Engine, netns: NodeNamespace, tmp_path: Path
) -> None:
    node = engine.start("node", netns=netns, argv=["/no/such/program"], log_path=tmp_path / "log")
    assert node.wait(30) != 0
    assert "no/such/program" in node.log_tail()
    if engine.runtime == "container":
        with pytest.raises(EmulationError, match="node"):
            _ = node.pid


def test_unknown_engines_and_impossible_limits_are_refused() -> None:
    with pytest.raises(InputError, match="auto, podman, docker or process"):
        choose_engine("lxc")
    with pytest.raises(InputError, match="cpus"):
        Limits(cpus=0)
    with pytest.raises(InputError, match="memory"):
        Limits(memory_bytes=1000)


def test_a_client_without_an_engine_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError) as caught:
        choose_engine("auto")
    assert "podman is not installed" in str(caught.value)
    assert "Cannot connect to the Docker daemon" in str(caught.value)
