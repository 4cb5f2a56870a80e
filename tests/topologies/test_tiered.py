"""`topologies/tiered.py` under Mininet's own `mn` command, in a sandbox with a private Open vSwitch."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from testbed.emulation.sandbox import Sandbox

PROJECT = Path(__file__).parents[2]
TIERED = PROJECT / "topologies" / "tiered.py"


def test_it_needs_nothing_but_mininet() -> None:
    """`mn` runs with the system's Python, which has no testbed."""
    imports = [n for n in ast.walk(ast.parse(TIERED.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [n.module for n in imports if isinstance(n, ast.ImportFrom)] == ["mininet.topo"] and len(imports) == 1


@pytest.mark.net
@pytest.mark.parametrize(("arguments", "hosts", "links"), [("2,1", 4, 5), ("devices=5,edges=2", 8, 10)])
def test_mn_builds_it_and_all_hosts_reach_each_other(tmp_path: Path, arguments: str, hosts: int, links: int) -> None:
    script = """
        import subprocess, sys
        from testbed.emulation.ovs import OpenVSwitch
        with OpenVSwitch(sys.argv[1] + "/ovs", sys.argv[1] + "/logs", datapath="netdev") as ovs:
            sys.exit(subprocess.run(["mn", "--custom", sys.argv[2], "--topo", "tiered," + sys.argv[3], "--controller", "none",
                                     "--switch", "ovs,datapath=user,failMode=standalone", "--test", "pingall"],
                                    env=ovs.environment, stderr=subprocess.STDOUT, timeout=60).returncode)
    """
    process = Sandbox.spawn([sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(TIERED), arguments],
                            cwd=PROJECT, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        text = process.stdout.read().decode()
        assert process.wait(70) == 0, text
    assert f"0% dropped ({hosts * (hosts - 1)}/{hosts * (hosts - 1)} received)" in text
    assert text.split("Adding links:\n")[1].splitlines()[0].count("(") == links


@pytest.mark.net
def test_rates_of_the_command_line_reach_the_links_of_mn() -> None:
    script = """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("tiered", sys.argv[1])
        tiered = importlib.util.module_from_spec(spec); spec.loader.exec_module(tiered)
        topo = tiered.topos["tiered"](devices=3, edges=2, access=20, wan=100, wan_delay="10ms")
        options = {tuple(sorted(pair)): info for *pair, info in topo.links(withInfo=True)}
        for a, b in (("device1", "s1"), ("device2", "s2"), ("device3", "s1"), ("s1", "s3"), ("edge1", "s1")):
            found = options[tuple(sorted((a, b)))]
            print(a, b, found.get("bw"), found.get("delay"))
    """
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", textwrap.dedent(script), str(TIERED)], capture_output=True,
                          text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == ["device1 s1 20 None", "device2 s2 20 None", "device3 s1 20 None",
                                        "s1 s3 100 10ms", "edge1 s1 None None"], done.stderr
