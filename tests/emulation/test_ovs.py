"""The private Open vSwitch: its own database and daemons, two side by side, and clear words when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from testbed.emulation.ovs import OpenVSwitch, in_sandbox
from testbed.emulation.sandbox import Sandbox
from testbed.errors import EmulationError, MissingToolError

PROJECT = Path(__file__).parents[2]


def in_a_sandbox(script: str, *arguments: object) -> dict[str, object]:
    """Run a script in a sandbox; it prints JSON."""
    process = Sandbox.spawn([sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], cwd=PROJECT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None and process.stderr is not None
        text, problem = process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 0, problem.decode()
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.net
def test_two_instances_know_nothing_of_each_other(tmp_path: Path) -> None:
    """One is used by Mininet's own switch class, through the environment alone."""
    seen = in_a_sandbox("""
        import json, os, subprocess, sys
        from pathlib import Path
        from testbed.emulation.ovs import OpenVSwitch
        one = OpenVSwitch(Path(sys.argv[1]) / "one", Path(sys.argv[1]) / "logs1", datapath="netdev")
        two = OpenVSwitch(Path(sys.argv[1]) / "two", Path(sys.argv[1]) / "logs2", datapath="netdev")
        with one, two:
            one.vsctl("add-br", "s1", "--", "set", "bridge", "s1", "datapath_type=netdev")
            subprocess.run(["ovs-vsctl", "add-br", "s2", "--", "set", "bridge", "s2", "datapath_type=netdev"],
                           env=two.environment, check=True, timeout=20)
            print(json.dumps({"one": one.vsctl("list-br").split(), "two": two.vsctl("list-br").split(),
                              "running": one.running() and two.running(), "datapath": one.manifest()["datapath"],
                              "dpif": "netdev@" in one.appctl("dpif/show"),
                              "ports": "LOCAL" in one.ofctl("show", "s1") if one.vsctl(
                                  "set", "bridge", "s1", "protocols=OpenFlow13") == "" else None}))
    """, tmp_path)
    assert seen == {"one": ["s1"], "two": ["s2"], "running": True, "datapath": "netdev", "dpif": True, "ports": True}
    assert not list((tmp_path / "one").iterdir())  # it was a tmpfs of the sandbox


@pytest.mark.net
def test_daemons_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Even when that is killed and the sandbox lives on."""
    seen = in_a_sandbox("""
        import json, subprocess, sys, time
        from pathlib import Path
        child = subprocess.Popen([sys.executable, "-c", '''if True:
            import sys, time
            from testbed.emulation.ovs import OpenVSwitch
            OpenVSwitch(sys.argv[1] + "/ovs", sys.argv[1] + "/logs", datapath="netdev").start()
            print("up", flush=True)
            time.sleep(60)
        ''', sys.argv[1]], stdout=subprocess.PIPE, text=True)
        up = child.stdout.readline()
        def daemons():
            names = [(p / "comm").read_text().strip() for p in Path("/proc").iterdir() if p.name.isdigit()]
            return sorted(n for n in names if n.startswith("ovs"))
        before = daemons()
        child.kill()
        deadline = time.monotonic() + 5
        while daemons() and time.monotonic() < deadline:
            time.sleep(0.02)
        print(json.dumps({"up": up, "before": before, "after": daemons()}))
    """, tmp_path)
    assert seen == {"up": "up\n", "before": ["ovs-vswitchd", "ovsdb-server"], "after": []}


@pytest.mark.net
def test_a_daemon_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    seen = in_a_sandbox("""
        import json, os, sys
        from pathlib import Path
        from testbed.emulation.ovs import OpenVSwitch
        from testbed.errors import EmulationError
        tools = Path(sys.argv[1]) / "tools"
        tools.mkdir()
        (tools / "ovs-vswitchd").write_text("#!/bin/sh\\n[ $1 = --version ] && echo x 1 && exit; echo no memory >&2; exit 3\\n")
        (tools / "ovs-vswitchd").chmod(0o755)
        os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
        ovs = OpenVSwitch(Path(sys.argv[1]) / "ovs", Path(sys.argv[1]) / "logs", datapath="netdev")
        try:
            ovs.start()
        except EmulationError as error:
            print(json.dumps({"error": str(error), "running": ovs.running()}))
    """, tmp_path)
    assert seen == {"error": "ovs-vswitchd does not answer (exit code 3): no memory", "running": False}


def test_without_open_vswitch_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"ovsdb-tool.*apt-get install openvswitch-switch.*switch: bridge"):
        OpenVSwitch(tmp_path / "ovs", tmp_path / "logs").start()
    assert not (tmp_path / "ovs").exists()


def test_outside_a_sandbox_nothing_is_mounted() -> None:
    assert not in_sandbox()


@pytest.mark.net
def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match=r"ovs-vsctl --db=unix:.*list-br: .*connection"):
        OpenVSwitch(tmp_path / "ovs", tmp_path / "logs").vsctl("list-br")
