"""On a kernel that has netem and Open vSwitch, the same links do the same: proven inside user-mode Linux.

Times of compute mean nothing there (an exec costs 40 ms, an import of torch ten seconds); kernel paths do.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .uml import run_in_uml

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(640)]

PROJECT = Path(__file__).resolve().parents[2]

SMOKE = """
set -e
modprobe sch_netem; modprobe openvswitch; modprobe ifb
ip netns add far
ip link add near0 type veth peer name far0 netns far
ip addr add 10.1.1.1/24 dev near0; ip link set near0 up
ip -n far addr add 10.1.1.2/24 dev far0; ip -n far link set far0 up
tc qdisc add dev near0 root netem delay 25ms
ip netns exec far tc qdisc add dev far0 root netem delay 25ms
ping -q -c 5 -i 0.2 10.1.1.2
tc qdisc replace dev near0 root tbf rate 1mbit burst 3000 latency 50ms
tc qdisc replace dev near0 root handle 1: htb default 10
ovs-dpctl add-dp probe && ovs-dpctl show probe | head -1
"""


def test_the_kernel_has_what_we_boot_it_for(tmp_path: Path) -> None:
    done = run_in_uml(["sh", "-c", SMOKE], folder=tmp_path, cwd=PROJECT, timeout_s=90)
    assert done.returncode == 0, done.output[-3000:]
    found = re.search(r"min/avg/max/mdev = ([\d.]+)/", done.output)
    assert found is not None, done.output[-3000:]
    assert (
        50.0 <= float(found[1]) < 60.0
    )  # 25 ms each way; the shortest, because a shared machine adds its own pauses
    assert "system@probe" in done.output  # the kernel's datapath, not the one in user space


def test_containers_with_the_second_version_of_control_groups(tmp_path: Path) -> None:
    """Usage and limits, where this machine may have the first version only."""
    options = [
        "-q",
        "--color=no",
        "-p",
        "no:cacheprovider",
        "-k",
        "(usage or limits) and (podman or process)",
    ]
    command = [sys.executable, "-m", "pytest", *options, "tests/emulation/test_container.py"]
    done = run_in_uml(command, folder=tmp_path, cwd=PROJECT, timeout_s=200)
    print(done.output)
    assert done.returncode == 0, done.output[-6000:]
    assert "4 passed" in done.output


def test_links_pass_their_own_tests_with_netem(tmp_path: Path) -> None:
    """The tests of the links, which may run with the delay line on this machine, with netem instead."""
    tests = sorted(
        str(path.relative_to(PROJECT)) for path in (PROJECT / "tests/emulation").glob("test_link*.py")
    )
    assert tests, "tests/emulation/test_link*.py have gone; what shall run inside?"
    options = ["-q", "--color=no", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = run_in_uml(command, folder=tmp_path, cwd=PROJECT, timeout_s=560, env={"TESTBED_BACKEND": "netem"})
    print(done.output)  # shown by pytest when this fails, and with -s
    assert done.returncode == 0, done.output[-6000:]
    passed = re.search(r"(\d+) passed", done.output)
    assert passed is not None and int(passed[1]) > 0
