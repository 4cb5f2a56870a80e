"""Nothing of a run stays in the machine, even when its runner and its sandbox are killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.emulation import cgroup
from testbed.emulation.container_podman import PodmanEngine
from testbed.errors import MissingToolError

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

# The runner: a reaper and a sandbox, in which a trial starts a container and waits to be killed.
RUNNER = """
import sys
from pathlib import Path
from testbed.emulation.reaper import Reaper
from testbed.emulation.sandbox import Sandbox
run_id, log = sys.argv[1:]
with Reaper(run_id, "podman"):
    Sandbox.spawn([sys.executable, "-c", Path(log).with_name("trial.py").read_text(), run_id, log]).wait()
"""
TRIAL = """
import subprocess, sys, time
from pathlib import Path
from testbed.emulation.container import choose_engine, NodeNamespace
run_id, log = sys.argv[1:]
holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
time.sleep(0.3)
engine = choose_engine("podman", run_id=run_id)
engine.prepare()
code = "import time; print('here', flush=True); time.sleep(600)  # " + run_id
node = engine.start("node", netns=NodeNamespace("node", f"/proc/{holder.pid}/ns/net"),
                    argv=[sys.executable, "-c", code], log_path=Path(log))
node.wait(600)
"""


def traces_of(run_id: str) -> list[str]:
    """Control groups, processes and mounts that carry the run's id."""
    found = [str(path) for path in cgroup._tops(cgroup.ROOT, cgroup.PREFIX + run_id)]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if run_id in words and int(entry.name) != os.getpid():
            found.append(words)
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "testbed" in line]
    return found


def test_kill_9_of_the_runner_leaves_nothing(tmp_path: Path) -> None:
    try:
        PodmanEngine.probe()
    except MissingToolError as error:
        pytest.skip(f"podman is not tested: {error.problem}")
    run_id = f"reap{os.getpid()}-{time.monotonic_ns()}"
    (tmp_path / "trial.py").write_text(TRIAL)
    log = tmp_path / "node.log"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, run_id, str(log)])
    deadline = time.monotonic() + 60
    while not (log.exists() and "here" in log.read_text()):
        assert runner.poll() is None and time.monotonic() < deadline, log.read_text() if log.exists() else ""
        time.sleep(0.02)
    before = traces_of(run_id)
    assert any("sleep(600)" in trace for trace in before)
    assert any(str(cgroup.ROOT) in trace for trace in before)
    runner.send_signal(signal.SIGKILL)
    runner.wait(5)
    deadline = time.monotonic() + 5
    while left := traces_of(run_id):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_stale_groups_are_removed_and_used_ones_are_not() -> None:
    """A run whose reaper died too: the next run removes its groups, but never one that holds a process."""
    controller = cgroup.ROOT if cgroup.is_unified() else cgroup.ROOT / "cpu"
    stale, used = (controller / f"{cgroup.PREFIX}{word}-{os.getpid()}" for word in ("stale", "used"))
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        stale.mkdir()
        used.mkdir()
        (used / "cgroup.procs").write_text(str(sleeper.pid))
        cgroup.remove_stale(min_age_s=60.0)
        assert stale.exists()  # young: perhaps another run's that is about to be filled
        cgroup.remove_stale(min_age_s=0.0)
        assert not stale.exists()
        assert used.exists()
    finally:
        sleeper.kill()
        sleeper.wait()
        for folder in (stale, used):
            if folder.exists():
                folder.rmdir()
