"""The interactive lab, driven through a terminal as a person would; and drawings of topologies."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from testbed.schema.files import load_topology
from tests.running import ROOT, command

TOPOLOGY = {
    "tiers": [{"name": "device", "count": 1, "runtime": "process"}, {"name": "edge", "count": 1, "runtime": "process"}],
    "links": [{"between": ["device", "edge"], "both": {"rate": "20mbit", "delay": "2ms"}}],
}
PROMPT = "testbed> "


class Terminal:
    """`testbed shell` on a pseudo-terminal."""

    def __init__(self, file: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-m", "testbed", "shell", str(file)], cwd=ROOT, stdin=slave, stdout=slave,
                                        stderr=slave, start_new_session=True)
        os.close(slave)

    def until(self, end: str, timeout_s: float = 180) -> str:
        """What is shown until `end` has appeared."""
        seen, deadline = "", time.monotonic() + timeout_s
        while end not in seen:
            assert time.monotonic() < deadline, f"{end!r} did not appear: {seen}"
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    seen += os.read(self._master, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the shell ended: {seen}") from None
        return seen

    def say(self, line: str) -> str:
        """Type a line; what is shown until the next prompt."""
        self.type(f"{line}\r")
        return self.until(PROMPT)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(TOPOLOGY))
    terminal = Terminal(file)
    yield terminal
    terminal.close()


def uplink_ms(answer: str) -> float:
    found = re.search(r"device-edge up\s+([\d.]+) ms", answer)
    assert found, answer
    return float(found[1])


@pytest.mark.net
@pytest.mark.timeout(600)
def test_a_changed_rate_is_seen_in_an_inference(terminal: Terminal) -> None:
    terminal.until(PROMPT)
    assert "device1-edge1" in terminal.say("links")
    fast = terminal.say("infer device1 edge")
    sent = re.search(r"(\d+) bytes sent", fast)
    assert sent and "answered by edge1" in fast, fast
    assert "error" not in terminal.say("link device1-edge1 rate 200kbit up")
    slow = terminal.say("infer device1 edge")
    # no message is faster than the link (at most two packets pass at once): bytes * 8 / 200 kbit/s, and 2 ms of delay
    least_ms = (int(sent[1]) - 2 * 1500) * 8 / 200e3 * 1e3 + 2
    assert uplink_ms(slow) >= least_ms > 5 * (int(sent[1]) * 8 / 20e6 * 1e3), (slow, least_ms)
    terminal.say("link device1-edge1 rate own")
    assert uplink_ms(terminal.say("infer")) < least_ms / 2

    assert "refused" in terminal.say("fail edge1") + terminal.say("infer edge")
    terminal.say("heal edge1")
    assert "answered by edge1" in terminal.say("infer edge")
    assert "answered by device1" in terminal.say("infer device-only")
    for wrong, says in (("link moon rate 1mbit", "device1-edge1"), ("link device1-edge1 rate fast", "error"), ("infer moon", "is no plan"),
                        ("fail device1", "is no server")):
        assert says in terminal.say(wrong), wrong

    # Ctrl-C ends the command that runs, not the lab
    terminal.type("device1 ping edge1\r")
    terminal.until("icmp_seq=2")
    terminal.type("\x03")
    terminal.until(PROMPT)
    assert "answered by edge1" in terminal.say("infer edge"), "the links are still there"
    terminal.type("exit\r")
    assert terminal.process.wait(60) == 0


@pytest.mark.parametrize("file", sorted((ROOT / "topologies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_topology_is_drawn_with_all_nodes_and_links(file: Path, tmp_path: Path, testbed_data: Path) -> None:
    topology = load_topology(file)
    done = command("topo", "show", file, "--svg", tmp_path / "t.svg")
    assert done.returncode == 0, done.stderr
    for tier in topology.tiers:
        assert f"{tier.name}: " in done.stdout
    root = ElementTree.parse(tmp_path / "t.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert sorted(t.text or "" for t in root.iter(f"{space}text") if t.get("class") == "node") == sorted(topology.node_names)
    titles = [t.text or "" for t in root.iter(f"{space}title")]
    assert [t.splitlines()[0] for t in titles] == [f"{a}-{b}" for _, a, b in topology.node_links()]
    boxes = [(float(r.get("x", 0)), float(r.get("y", 0))) for r in root.iter(f"{space}rect") if r.get("rx")]
    assert len(set(boxes)) == len(topology.node_names), "no two nodes lie on each other"


def test_a_wrong_name_for_the_drawing_is_refused(tmp_path: Path) -> None:
    done = command("topo", "show", ROOT / "topologies" / "star.yaml", "--svg", tmp_path / "t.png")
    assert done.returncode == 2 and ".svg" in done.stderr
