"""What all tests share: which kinds this machine can run, and a last word on what did not run, and why.

Kinds are markers: ``net`` (namespaces and shaped links), ``container`` (a real engine), ``kernel`` (user-mode
Linux); a test without one is ``unit``. A kind that this machine cannot run is skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
KINDS = ("unit", "net", "container", "kafka", "kernel")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tally(), "testbed-tally")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, obstacle in (("net", no_net), ("container", no_container), ("kernel", no_kernel)):
            if item.get_closest_marker(marker):
                reason = obstacle()
                if reason:
                    item.add_marker(pytest.mark.skip(reason=reason))


@cache
def no_net() -> str:
    """Why namespaces and links cannot be made here ("" when they can)."""
    for program in ("ip", "unshare", "mnexec"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if os.geteuid() != 0:
        return "not root: these tests make network namespaces (run `sudo make test`)"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, timeout=10)
    return "" if done.returncode == 0 else f"this kernel refuses namespaces: {done.stderr.strip()}"


@cache
def no_container() -> str:
    """Why no container can be started here."""
    from testbed.emulation.container import choose_engine
    from testbed.errors import TestbedError

    if no_net():
        return no_net()
    try:
        choose_engine("auto")
    except TestbedError as error:
        return str(error)
    return ""


@cache
def no_kernel() -> str:
    """Why user-mode Linux cannot be booted here."""
    if os.environ.get("TESTBED_IN_UML"):
        return "already inside user-mode Linux"
    if shutil.which("linux.uml") is None:
        return "linux.uml is not installed (Debian: apt-get install user-mode-linux)"
    return ""


@pytest.fixture(scope="session")
def testbed_data() -> Path:
    """The folder of real data sets: TESTBED_DATA, else ../shared/data beside the project."""
    named = os.environ.get("TESTBED_DATA")
    folder = Path(named) if named else PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data here: {folder} does not exist (set TESTBED_DATA)")
    return folder


class Tally:
    """Counts outcomes per kind and prints them after everything else."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        self.deselected = 0

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected += len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kind = next((kind for kind in reversed(KINDS) if kind in report.keywords), "unit")
        self.kinds[report.nodeid] = kind
        if hasattr(report, "wasxfail"):
            self.outcomes[report.nodeid] = "failed as expected" if report.skipped else "passed"
        elif report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self.outcomes[report.nodeid] = "skipped"
            self.reasons[kind][skip_reason(report)] += 1
        elif report.when == "call":
            self.outcomes.setdefault(report.nodeid, "passed")

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or config.option.collectonly or hasattr(config, "workerinput"):
            return
        terminal.write_line("")
        terminal.write_line("What was tested:")
        for line in self.lines():
            terminal.write_line(f"  {line}")

    def lines(self) -> list[str]:
        lines = []
        for kind in KINDS:
            counts = Counter(self.outcomes[test] for test, its_kind in self.kinds.items() if its_kind == kind)
            shown = ", ".join(
                f"{counts[outcome]} {outcome}"
                for outcome in ("passed", "failed", "skipped", "failed as expected")
                if counts[outcome] or outcome == "passed"
            )
            lines.append(f"{kind:<9} {shown}" if counts else f"{kind:<9} none collected")
            lines += [f"          {count} not run: {why}" for why, count in self.reasons[kind].most_common()]
        if self.deselected:
            lines.append(f"{self.deselected} more were deselected by the command line")
        return lines


def skip_reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
