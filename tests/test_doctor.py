"""The doctor says what is there, what is used in its place, and whether the quickstart can run."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.doctor import Check, Diagnosis, decide, diagnose, machine_checks


def found(**good: bool) -> dict[str, Check]:
    names = ("podman", "docker", "netem", "tap", "user", "bridge", "ovs-vswitchd", "ovs kernel", "tbf")
    return {
        name: Check("g", name, "1.0", good.get(name.replace(" ", "_").replace("-", "_"), False))
        for name in names
    }


def test_netem_is_preferred_and_the_delay_line_takes_its_place() -> None:
    assert decide(found(netem=True, tap=True))["delay, jitter, loss"].startswith("netem")
    assert decide(found(tap=True))["delay, jitter, loss"].startswith("our delay line")
    assert decide(found())["delay, jitter, loss"].startswith("none")


def test_the_engine_that_answers_is_named_with_its_version() -> None:
    assert decide(found(podman=True, docker=True))["containers"] == "podman 1.0"
    assert decide(found(docker=True))["containers"] == "docker 1.0"
    assert decide(found())["containers"].startswith("none")


def test_only_what_is_needed_stops_the_quickstart() -> None:
    optional = Check("kernel", "ifb", "no", good=False)
    needed = Check("kernel", "tbf", "no", good=False, needed=True)
    assert Diagnosis((optional,), {}).quickstart_runs
    assert not Diagnosis((optional, needed), {}).quickstart_runs


def test_figures_are_the_kernels_own() -> None:
    checks = {check.name: check for check in machine_checks()}
    assert (
        checks["kernel"].value == platform.release() == Path("/proc/sys/kernel/osrelease").read_text().strip()
    )
    assert checks["cores"].value == str(len(os.sched_getaffinity(0)))


@pytest.mark.net
def test_it_leaves_no_interface_and_no_namespace() -> None:
    before = sorted(os.listdir("/sys/class/net"))
    diagnosis = diagnose()
    assert sorted(os.listdir("/sys/class/net")) == before
    assert all(check.remedy for check in diagnosis.checks if not check.good)


def test_json_and_exit_code_agree(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert code == (0 if findings["quickstart_runs"] else 3)
    assert {"name", "value", "good", "remedy"} <= findings["checks"][0].keys()
