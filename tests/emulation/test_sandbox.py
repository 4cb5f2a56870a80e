"""The sandbox: what is private in it, what comes out of it, and that nothing is left when its caller dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from testbed.emulation.sandbox import Sandbox
from testbed.errors import EmulationError

pytestmark = pytest.mark.net
GONE_WITHIN_S = 5.0


def run(script: str, **options) -> tuple[int, str]:
    process = Sandbox.spawn(["bash", "-c", script], stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    text = process.stdout.read().decode()
    return process.wait(20), text


def processes_with(mark: str) -> list[int]:
    """Processes whose environment holds the mark: whatever a sandbox started, however it was re-parented."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_the_exit_code_and_output_are_the_commands():
    assert run("echo $((6 * 7)); exit 9") == (9, "42\n")
    assert run("kill -TERM $$")[0] == 128 + signal.SIGTERM


def test_network_processes_and_mounts_are_private(tmp_path):
    outside = os.readlink("/proc/self/ns/net")
    script = f"""
        ls /sys/class/net; cat /sys/class/net/lo/operstate; readlink /proc/self/ns/net
        ls /proc | grep -c '^[0-9]*$'; ip netns add inner && ls /run/netns; mount -t tmpfs none {tmp_path}; echo $EUID"""
    code, text = run(script)
    lines = text.split()
    assert code == 0
    assert lines[:2] == ["lo", "unknown"]  # loopback alone, and up
    assert lines[2] != outside
    assert int(lines[3]) < 8  # of all processes of the machine it sees its own
    assert lines[4:] == ["inner", "0"]
    assert not Path("/run/netns/inner").exists()
    assert not any(str(tmp_path) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_mounts_made_outside_later_are_seen_inside(tmp_path):
    """Container engines bind their namespaces to files after the sandbox has begun; slave mounts let them through."""
    if "shared:" not in Path("/proc/self/mountinfo").read_text():
        subprocess.run(["unshare", "--mount", "--propagation", "shared", "true"], check=True)
    script = textwrap.dedent(f"""
        import subprocess, sys, time, pathlib
        from testbed.emulation.sandbox import Sandbox
        subprocess.run(["mount", "--make-rshared", "/"], check=True)
        p = Sandbox.spawn(["bash", "-c", "for i in $(seq 100); do [ -e {tmp_path}/seen ] && exit 0; sleep 0.05; done; exit 1"])
        subprocess.run(["mount", "-t", "tmpfs", "none", "{tmp_path}"], check=True)
        pathlib.Path("{tmp_path}/seen").touch()
        sys.exit(p.wait(20))
    """)
    # in a mount namespace of its own, so that making it shared changes nothing for the machine
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=30
    )
    assert done.returncode == 0


def test_cgroups_stay_in_place():
    inside = run("ls /sys/fs/cgroup | sort")[1].split()
    assert inside == sorted(os.listdir("/sys/fs/cgroup"))


def test_a_command_that_does_not_exist_is_an_error():
    with pytest.raises(EmulationError, match="no-such-program"):
        Sandbox.spawn(["no-such-program"])


def test_orphans_are_reaped_and_end_with_the_command():
    mark = f"SANDBOX_MARK={os.getpid()}-orphans"
    name, _, value = mark.partition("=")
    code, text = run(
        "(sleep 100 &) ; (true &) ; sleep 0.3; ps ax | grep -c '[d]efunct'", env={**os.environ, name: value}
    )
    assert (code, text) == (1, "0\n")
    assert wait_until(lambda: not processes_with(mark), GONE_WITHIN_S)


def test_terminate_gives_the_command_a_chance():
    process = Sandbox.spawn(
        ["bash", "-c", "trap 'echo cleaned; exit 3' TERM; echo ready; while true; do sleep 0.05; done"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.stdout.read() == b"cleaned\n"
    assert process.wait(5) == 3


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_waiting_caller_reaches_the_command(tmp_path, signal_number):
    script = textwrap.dedent(f"""
        from testbed.emulation.sandbox import Sandbox
        p = Sandbox.spawn(["bash", "-c", "trap 'touch {tmp_path}/cleaned; exit' TERM; touch {tmp_path}/ready; "
                           "while true; do sleep 0.05; done"])
        p.wait()
    """)
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    assert wait_until((tmp_path / "ready").exists, 10)
    caller.send_signal(signal_number)
    assert caller.wait(10) != 0
    assert (tmp_path / "cleaned").exists()


def test_a_command_that_ignores_the_signal_is_killed(tmp_path):
    mark = f"SANDBOX_MARK={os.getpid()}-stubborn"
    name, _, value = mark.partition("=")
    process = Sandbox.spawn(
        ["bash", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"],
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    time.sleep(0.2)
    assert process.returncode is None
    process.kill()
    assert wait_until(lambda: not processes_with(mark), GONE_WITHIN_S)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.1, 0.5])
def test_kill_9_of_the_caller_at_any_instant_leaves_nothing(tmp_path, delay_s):
    """Processes that detach as far as they can (new session, closed descriptors) go as well."""
    mark = f"SANDBOX_MARK={os.getpid()}-{delay_s}"
    name, _, value = mark.partition("=")
    script = textwrap.dedent("""
        import time
        from testbed.emulation.sandbox import Sandbox
        print("go", flush=True)
        p = Sandbox.spawn(["bash", "-c", "ip link add v0 type veth peer name v1; ip netns add deep; "
                           "setsid -f ip netns exec deep sleep 1000; sleep 1000"])
        time.sleep(1000)
    """)
    caller = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
    )
    assert caller.stdout is not None
    caller.stdout.readline()
    time.sleep(delay_s)
    caller.kill()
    caller.wait()
    assert wait_until(lambda: not processes_with(mark), GONE_WITHIN_S)
    assert not Path("/run/netns/deep").exists()
    assert not Path("/sys/class/net/v0").exists()


def test_a_plain_user_gets_a_sandbox_where_the_kernel_allows_it(tmp_path):
    script = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        import subprocess
        from testbed.emulation.sandbox import Sandbox
        from testbed.errors import MissingToolError
        try:
            p = Sandbox.spawn(["bash", "-c", "ip link add v0 type veth peer name v1 && ip link set v0 up && echo $EUID"])
        except MissingToolError as error:
            assert "run as root" in str(error)
            sys.exit(77)
        sys.exit(p.wait(10))
    """)
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
    )
    assert done.returncode in (0, 77), done.stderr
    if done.returncode == 0:
        assert done.stdout == "0\n"
