"""kill -9 of the runner in the middle of a trial: the kernel takes everything away, and the next run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import QUICKSTART, ROOT, SHORT, command, logs, trial_folders

pytestmark = [pytest.mark.net, pytest.mark.container]
TWO_PLANS = ["--set", "policies=[device-only, edge-only]"]


def processes_of(marker: str) -> list[str]:
    """Command lines of living processes that name `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def network_state() -> dict[str, object]:
    """Interfaces of our own namespace, number of network namespaces, control groups of ours."""
    namespaces = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                namespaces.add(os.readlink(entry / "ns" / "net"))
            except OSError:
                continue
    groups = sorted(str(p) for p in Path("/sys/fs/cgroup").glob("**/testbed-quickstart-*"))
    return {"interfaces": sorted(os.listdir("/sys/class/net")), "namespaces": len(namespaces), "groups": groups,
            "state": sorted(p.name for p in Path("/tmp").glob("testbed-*"))}


@pytest.mark.parametrize("when", ["nodes", "load"])
def test_nothing_is_left_and_the_next_run_goes_on(tmp_path: Path, when: str) -> None:
    before = network_state()
    words = [sys.executable, "-m", "testbed", "run", str(QUICKSTART), "--runs", str(tmp_path), *SHORT, *TWO_PLANS]
    runner = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # wait for the second trial: the first is complete then (its work folder is gone) and must stay so
    sign = {"nodes": "work/cloud1.json", "load": "work/device1.done"}[when]
    while not (trial_folders(tmp_path) and list(tmp_path.rglob(sign))):
        assert runner.poll() is None and time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.05)
    first = trial_folders(tmp_path)[0]
    kept = {p: p.stat().st_mtime_ns for p in first.glob("*.csv")}
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    runner.stdout and runner.stdout.close()
    time.sleep(5)
    assert processes_of(str(tmp_path)) == []
    assert network_state() == before
    again = command("run", QUICKSTART, "--runs", tmp_path, *SHORT, *TWO_PLANS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 run, 1 already complete" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in first.glob("*.csv")} == kept


def test_interrupting_leaves_the_same_nothing(tmp_path: Path) -> None:
    before = network_state()
    words = [sys.executable, "-m", "testbed", "run", str(QUICKSTART), "--runs", str(tmp_path), *SHORT, *TWO_PLANS]
    runner = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("work/device1.done")):
        assert runner.poll() is None, logs(tmp_path)
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    _, error = runner.communicate(timeout=20)
    assert runner.returncode == 130 and "stay finished" in error and "Traceback" not in error
    time.sleep(2)
    assert processes_of(str(tmp_path)) == [] and network_state() == before
