"""The live view: what it makes of given rows, that it fits its terminal, and a real run seen through a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from testbed.cli.live import LiveView, draw
from testbed.cli.live_state import LATENCY_REQUESTS, PLANS_WINDOW_S, Tail, TrialState
from testbed.emulation.replay import COLUMNS
from testbed.measurement.tables import REQUESTS, TableWriter
from tests.running import ROOT, command

S = 1_000_000_000


def link_row(t_s: float, link: str = "device1-edge1", direction: str = "up", *, target: object = "", applied: object = None,
             tx: int = 0, dropped: int = 0, backlog: int = 0, allowed: object = "") -> str:
    row = {"t_ns": int(t_s * S), "link": link, "direction": direction, "trace": "", "trace_offset_ns": "", "target_rate_bps": target,
           "applied_rate_bps": target if applied is None else applied, "apply_lag_ns": "", "target_delay_s": 0, "target_loss": 0,
           "tx_bytes": tx, "tx_packets": 0, "dropped_packets": dropped, "backlog_bytes": backlog, "allowed_bytes": allowed,
           "apply_lag_p50_ns": ""}
    return ",".join(str(row[name]) for name in COLUMNS.split(",")) + "\n"


def usage(t_s: float, **cpu_s: float) -> list[dict[str, object]]:
    return [{"t_ns": int(t_s * S), "node": node, "cpu_usage_s": used} for node, used in cpu_s.items()]


def trial(folder: Path = Path("nowhere"), devices: tuple[str, ...] = ("device1",), servers: tuple[str, ...] = ("edge1",)) -> TrialState:
    state = TrialState("[1/1] edge-only", folder, devices, servers)
    state.event({"event": "phase", "phase": "load"})
    return state


def live(state: TrialState, links: str = "", *rows: dict[str, object]) -> TrialState:
    state.event({"event": "live", "links": links, "usage": list(rows)})
    return state


def shown(state: TrialState, lines: int = 50, width: int = 120) -> list[str]:
    console = Console(width=width, height=lines, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(draw(state, lines, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_rates_are_what_the_counters_say() -> None:
    state = live(trial(), link_row(10, target=8e6, tx=1000, dropped=7) + link_row(10, direction="down", target=5e6, allowed=0))
    live(state, link_row(12, target=8e6, tx=501_000, dropped=9, backlog=3000) + link_row(12, direction="down", target=1, allowed=250_000))
    up, down = state.links().values()
    assert (up.rate_bps, up.target_bps, up.backlog_bytes, up.dropped, up.down) == (500_000 * 8 / 2, 8e6, 3000, 2, False)
    assert down.target_bps == 250_000 * 8 / 2, "of a trace, the mean over the same time"
    line = next(line for line in shown(state) if line.startswith("device1-edge1"))
    assert re.split(r"\s{2,}", line) == ["device1-edge1", "2.00 / 8.00", "3.00 kB", "2", "0.00 / 1.00", "0 B", "0"]


def test_rates_follow_the_last_two_seconds_only() -> None:
    state = trial()
    sent = 0
    for tick in range(20):  # 1 MB/s for 7 s, then nothing
        sent += 500_000 if tick < 14 else 0
        live(state, link_row(tick / 2, tx=sent))
    assert next(iter(state.links().values())).rate_bps == 0


@pytest.mark.parametrize(("row", "down"), [({"target": 8e6, "applied": 0}, True), ({"target": 0, "applied": 0}, False), ({}, False)])
def test_a_link_that_is_down_is_told_from_one_without_a_rate(row: dict[str, object], down: bool) -> None:
    state = live(trial(), link_row(1, **row) + link_row(1, direction="down"))  # type: ignore[arg-type]
    assert next(iter(state.links().values())).down is down
    assert ("link down" in "".join(shown(state))) is down


def test_cpu_is_used_time_per_time_and_survives_a_restart() -> None:
    state = live(trial(), link_row(1) + link_row(1, direction="down"), *usage(1, machine=50.0, edge1=3.0))
    live(state, "", *usage(2, machine=51.5, edge1=3.25))
    assert state.cpu() == {"machine": 1.5, "edge1": 0.25}
    live(state, "", *usage(3, machine=52.5, edge1=0.1))  # started again: its count begins anew
    live(state, "", *usage(3.5, machine=53.0, edge1=0.6))
    assert state.cpu()["edge1"] == pytest.approx(1.0)


def test_a_server_without_rows_is_gone_and_a_device_has_ended(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "edge1.nodes.csv").write_text("t_ns,node,queue_depth,inflight\n1,edge1,4,6\n")
    state = trial(tmp_path)
    state.read()
    live(state, link_row(1) + link_row(1, direction="down"), *usage(1, machine=1, edge1=1, device1=1))
    assert any(re.fullmatch(r"edge1 +- +4 +6", line) for line in shown(state))
    live(state, "", *usage(2.5, machine=2))
    assert state.gone() == {"edge1", "device1"}
    lines = shown(state)
    assert any(re.match(r"edge1 +gone", line) for line in lines) and any(re.match(r"device1 +ended", line) for line in lines)


def test_latency_plans_and_exits_are_of_the_requests_in_their_windows(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    state = trial(tmp_path, devices=("device1", "device2"))
    now_ns = time.monotonic_ns()
    # warm-up does not count; then one request per 100 ms: 10, 20, ... ms; the last of them ends now
    count = 150
    for device in (1, 2):
        with TableWriter(tmp_path / "work" / f"device{device}.requests.csv", REQUESTS, run_id="r") as writer:
            writer.write({"phase": "warmup", "scheduled_ns": now_ns - 60 * S, "completed_ns": now_ns, "status": "failed", "plan": "never"})
            for i in range(device - 1, count, 2):
                end_ns = now_ns - (count - 1 - i) * S // 10
                writer.write({"phase": "measure", "scheduled_ns": end_ns - (i + 1) * S // 100, "completed_ns": end_ns, "plan": f"p{i % 4 == 0}",
                              "exit_id": "early", "deadline_met": i % 5 > 0, "status": "ok", "error_type": "fallback:timeout" if i % 10 == 0 else None})
    state.read()
    live(state, link_row(1) + link_row(1, direction="down"))
    last = range(count - LATENCY_REQUESTS, count)
    assert [round(r.latency_s * 100) - 1 for r in state.requests[-LATENCY_REQUESTS:]] == list(last), "of both devices, in order of their ends"
    in_window = [i for i in range(count) if (count - 1 - i) / 10 <= PLANS_WINDOW_S]
    assert len(state.recent(now_ns)) == len(in_window)
    text = "\n".join(shown(state))
    # numbers 51 to 150 times 10 ms: the median is 1.005 s
    assert re.search(r"latency  p50 1\.0[01] s  p95 1\.4\d s  in time 80%  \(last 100 requests\)  fallback 10%$", text, re.MULTILINE)
    assert re.search(r"plans    pFalse 7\d%, pTrue 2\d%  \(last 5 s", text) and "never" not in text and "exits" not in text


def test_a_tail_gives_whole_lines_once_and_begins_again_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text("a,b\n1,2\n3,")
    assert tail.read() == [{"a": "1", "b": "2"}]
    assert tail.read() == []
    with path.open("a") as stream:
        stream.write('"4,5"\n')
    assert tail.read() == [{"a": "3", "b": "4,5"}]
    path.write_text("a,b\n9,9\n")
    assert tail.read() == [{"a": "9", "b": "9"}]


@settings(max_examples=60, deadline=None)
@given(links=st.integers(1, 60), nodes=st.integers(1, 60), lines=st.integers(9, 60), width=st.sampled_from([80, 100, 140]))
def test_it_fits_and_says_how_much_is_not_shown(links: int, nodes: int, lines: int, width: int) -> None:
    state = trial(servers=())
    names = [f"device{i}-edge1" for i in range(links)]
    live(state, "".join(link_row(1, n, d, target=1e6, tx=i) for i, n in enumerate(names) for d in ("up", "down")),
         *usage(1, machine=0.0, **{f"n{i}": 0.0 for i in range(nodes)}))
    live(state, "".join(link_row(2, n, d, target=1e6, tx=1000 * i) for i, n in enumerate(names) for d in ("up", "down")),
         *usage(2, machine=1.0, **{f"n{i}": i / 100 for i in range(nodes)}))
    text = shown(state, lines, width)
    assert len(text) <= lines and all(len(line) <= width for line in text)
    seen_links = set(re.findall(r"device\d+-edge1", "\n".join(text)))
    seen_nodes = set(re.findall(r"\bn\d+\b", "\n".join(text)))
    more = re.search(r"and (?:(\d+) links?)?(?: and )?(?:(\d+) nodes?)? less busy", text[-1])
    hidden = [int(more[1] or 0), int(more[2] or 0)] if more else [0, 0]
    assert [len(seen_links) + hidden[0], len(seen_nodes) + hidden[1]] == [links, nodes]
    # those with the highest rates are the ones that stay
    assert seen_links == set(names[links - len(seen_links):]) and seen_nodes == {f"n{i}" for i in range(nodes - len(seen_nodes), nodes)}
    if 3 + 2 + links + nodes <= lines:
        assert not more


def test_trials_stand_in_their_order_and_leave_when_they_end() -> None:
    console = Console(width=100, height=40, color_system=None, force_terminal=True)
    view = LiveView(console, Progress(console=console), {"a": 1, "b": 2})
    for name in ("b", "a"):
        state = TrialState(f"[{name}]", Path("nowhere"), ("device1",), ("edge1",))
        view.add(name, state)
        view.event(name, {"event": "phase", "phase": f"phase-{name}"})

    def text() -> str:
        with console.capture() as capture:
            console.print(view)
        return capture.get()

    assert re.search(r"\[a\]  phase-a.*\[b\]  phase-b", text(), re.DOTALL)
    view.remove("a")
    assert not view.shows("a") and "[a]" not in text() and "[b]" in text()


def test_ray_is_refused() -> None:
    done = command("run", ROOT / "scenarios" / "quickstart.yaml", "--engine", "ray", "--live")
    assert done.returncode == 2 and "--live" in done.stderr and "leave it out" in done.stderr


SCENARIO = {
    "name": "watched", "catalogue": str(ROOT / "nodes" / "models" / "catalogue.yaml"), "model": "digits_branchy", "dataset": "digits", "seed": 3,
    "topology": {
        "tiers": [{"name": "device", "count": 1, "runtime": "process"}, {"name": "edge", "count": 1, "runtime": "process"}],
        "links": [{"between": ["device", "edge"], "both": {"rate": "20mbit", "delay": "2ms"}}]},
    "policies": ["edge-only", {"name": "split", "plan": "split", "at": 3, "head": "device", "tail": "edge"}],
    "load": {"requests_per_device": 40, "warmup_requests": 0, "arrivals": "poisson", "rate_per_s": 8, "deadline": "100ms"},
    "calibration": {"mode": "off"},
}


@pytest.mark.net
@pytest.mark.timeout(300)
def test_a_real_run_is_seen_in_a_terminal(tmp_path: Path) -> None:
    scenario = tmp_path / "watched.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    words = ["run", str(scenario), "--runs", str(tmp_path / "runs"), "--live"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-m", "testbed", *words, "--jobs", "2"], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
                               start_new_session=True, env=env)
    os.close(slave)
    seen = ""
    deadline = time.monotonic() + 240
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 1.0)[0]:
                try:
                    seen += os.read(master, 65536).decode(errors="replace")
                except OSError:  # the terminal's other end is closed
                    break
        assert process.wait(30) == 0, seen[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
        os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "")
    assert re.search(r"^device1-edge1 +0\.\d\d / 20\.00 +[\d.]+ k?B +0 +0\.\d\d / 20\.00", text, re.MULTILINE), "rate now and target"
    assert re.search(r"^device1 +\d+% +- +-$", text, re.MULTILINE) and re.search(r"^edge1 +\d+% +\d+ +\d+$", text, re.MULTILINE)
    assert "plans    edge1[0:5] 100%" in text and "plans    device1[0:3]>edge1[3:5] 100%" in text
    assert re.search(r"latency  p50 [\d.]+ ms .*in time \d+%  \(last \d+ requests\)", text)
    for head in (r"\[1/2\] edge-only", r"\[2/2\] split"):
        assert re.search(rf"{head}  load \d+/40 requests", text, re.MULTILINE), head
    assert re.search(r"\[1/2\] edge-only .*\n(?:(?!\[1/2\]).*\n)+\[2/2\] split ", text, re.MULTILINE), "both in one picture"
    assert "2 trials: 2 run" in text

    # without a terminal it says so, and goes on with lines
    piped = command(*words)
    assert piped.returncode == 0 and "2 already complete" in piped.stdout
    assert "--live needs a terminal" in piped.stderr and "\x1b" not in piped.stdout
