"""Set-up by `make`: everything once, nothing twice, on from where it was cut off, and clear words otherwise.

apt, sudo and pip are stand-ins that write down how they were called: these tests install nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = "sh env dirname sed grep tr head tail cat sha256sum cut uname timeout mkdir mv rm id touch chmod"


# In place of the environment's interpreter: pip is only noted; all else is the system's Python.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *"-m pip"*) echo "pip $*" >>"$CALLS"; [ ! -e "$FAIL" ] || exit 1; touch PROJECT/.venv/bin/testbed
                chmod +x PROJECT/.venv/bin/testbed ;;
    *"import mininet"*) ;;
    *) exec SYSTEM_PYTHON "$@" ;;
esac
"""
SYSTEM_PYTHON = os.path.realpath(sys.executable)
NOTED = '#!/bin/sh\necho "NAME $*" >>"$CALLS"\n'


class Machine:
    """A copy of the project on a Debian 12 with nothing real in its PATH that could change this machine."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        self.fail_pip = folder / "pip-fails"
        self.os_release = folder / "os-release"
        (self.project / "tools").mkdir(parents=True)
        for name in ("tools/setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(PROJECT / name, self.project / name)
        environment = self.project / ".venv/bin"
        environment.mkdir(parents=True)
        self.program(
            environment / "python",
            FAKE_PYTHON.replace("PROJECT", str(self.project)).replace("SYSTEM_PYTHON", SYSTEM_PYTHON),
        )
        self.program(environment / "pip", f"#!{environment}/python\n")
        (self.project / ".venv/pyvenv.cfg").write_text("include-system-site-packages = true\n")
        self.system("debian", "12")
        self.bin.mkdir()
        for name in TOOLS.split():
            shutil.copy(shutil.which(name) or f"/bin/{name}", self.bin / name)  # never a link to be written through
        for name in ("mnexec", "iperf3", "ip", "docker"):
            self.program(self.bin / name, "#!/bin/sh\n")
        for name in ("apt-get", "dpkg"):
            self.program(self.bin / name, NOTED.replace("NAME", name))
        self.program(self.bin / "apt-cache", "#!/bin/sh\necho '  Candidate: 1.0'\n")
        self.program(self.bin / "dpkg-query", "#!/bin/sh\nprintf installed\n")

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def system(self, name: str, version: str) -> None:
        self.os_release.write_text(f'ID={name}\nVERSION_ID="{version}"\nPRETTY_NAME="{name} {version}"\n')

    def set_up(self, goal: str = "test", **env: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": str(self.bin), "TESTBED_OS_RELEASE": str(self.os_release), "CALLS": str(self.calls),
            "FAIL": str(self.fail_pip), **env,
        }  # fmt: skip
        return subprocess.run(
            [self.project / "tools/setup.sh", goal],
            env=variables, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def noted(self, program: str) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.startswith(program + " ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_second_time_nothing_is_done(machine: Machine) -> None:
    first = machine.set_up()
    assert first.returncode == 0, first.stderr
    assert len(machine.noted("pip")) == 1
    assert "-c constraints.txt" in machine.noted("pip")[0]
    second = machine.set_up()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(machine.noted("pip")) == 1
    assert machine.noted("apt-get") == []  # everything was there


def test_changed_pins_are_installed(machine: Machine) -> None:
    machine.set_up()
    with (machine.project / "constraints.txt").open("a") as pins:
        pins.write("something==1.0\n")
    assert machine.set_up().returncode == 0
    assert len(machine.noted("pip")) == 2


def test_it_goes_on_after_an_interruption(machine: Machine) -> None:
    machine.fail_pip.touch()
    broken = machine.set_up()
    assert broken.returncode == 3
    assert "pip could not install" in broken.stderr
    machine.fail_pip.unlink()
    assert machine.set_up().returncode == 0
    assert len(machine.noted("pip")) == 2


def test_missing_packages_are_installed_after_an_update_of_the_lists(machine: Machine) -> None:
    machine.program(machine.bin / "dpkg-query", "#!/bin/sh\n")
    machine.program(machine.bin / "id", "#!/bin/sh\necho 0\n")
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    update, install = machine.noted("apt-get")
    assert "update" in update
    for package in ("mininet", "openvswitch-switch", "iperf3", "ethtool", "python3", "user-mode-linux", "vagrant", "vagrant-libvirt"):
        assert package in install
    assert "podman" not in install  # Docker answers on this machine


def test_what_tests_alone_need_is_left_out_where_the_archive_lacks_it(machine: Machine) -> None:
    machine.program(machine.bin / "dpkg-query", "#!/bin/sh\n")
    machine.program(machine.bin / "id", "#!/bin/sh\necho 0\n")
    machine.program(machine.bin / "apt-cache", "#!/bin/sh\n[ $2 = vagrant ] && echo '  Candidate: (none)' || echo '  Candidate: 1.0'\n")
    assert machine.set_up().returncode == 0
    packages = machine.noted("apt-get")[-1].split()
    assert "vagrant" not in packages and {"vagrant-libvirt", "user-mode-linux", "mininet"} <= set(packages)


@pytest.mark.parametrize("answer", ["#!/bin/sh\nexit 1\n", None], ids=["client only", "none"])
def test_podman_is_installed_where_no_engine_answers(machine: Machine, answer: str | None) -> None:
    (machine.bin / "docker").unlink()
    if answer is not None:
        machine.program(machine.bin / "docker", answer)
    machine.program(machine.bin / "dpkg-query", "#!/bin/sh\n")
    machine.program(machine.bin / "id", "#!/bin/sh\necho 0\n")
    assert machine.set_up("run").returncode == 0
    assert "podman runc" in machine.noted("apt-get")[-1]
    assert "user-mode-linux" not in machine.noted("apt-get")[-1]  # for tests alone


def test_without_root_and_sudo_it_says_what_root_must_do(machine: Machine) -> None:
    machine.program(machine.bin / "dpkg-query", "#!/bin/sh\n")
    machine.program(machine.bin / "id", "#!/bin/sh\necho 1000\n")
    done = machine.set_up()
    assert done.returncode == 3
    assert "there is no sudo" in done.stderr and "apt-get install -y --no-install-recommends mininet" in done.stderr


def test_without_root_sudo_is_used_for_apt_alone_and_announced(machine: Machine) -> None:
    machine.program(machine.bin / "dpkg-query", "#!/bin/sh\n")
    machine.program(machine.bin / "id", "#!/bin/sh\necho 1000\n")
    machine.program(machine.bin / "sudo", '#!/bin/sh\necho "sudo $*" >>"$CALLS"\nexec "$@"\n')
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert "sudo is used for apt" in done.stdout
    assert all("apt-get" in call or "dpkg" in call for call in machine.noted("sudo"))


@pytest.mark.parametrize("system", [("fedora", "40"), ("debian", "11"), ("ubuntu", "20.04"), ("macos", "14")])
def test_other_systems_are_told_of_the_virtual_machine(machine: Machine, system: tuple[str, str]) -> None:
    machine.system(*system)
    done = machine.set_up("run")
    assert done.returncode == 3
    assert " ".join(system) in done.stderr and "vagrant up" in done.stderr
    assert not machine.calls.exists() and not (machine.project / ".setup").exists()


@pytest.mark.parametrize("system", [("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")])
def test_the_other_supported_systems_are_accepted(machine: Machine, system: tuple[str, str]) -> None:
    machine.system(*system)
    assert machine.set_up("run").returncode == 0


def test_an_unknown_system_can_be_insisted_on(machine: Machine) -> None:
    machine.system("arch", "rolling")
    done = machine.set_up("run", TESTBED_ANY_SYSTEM="1")
    assert done.returncode == 0, done.stderr
    assert machine.noted("apt-get") == []


def test_make_sets_up_before_it_runs_anything() -> None:
    for goal, command in (("run", "testbed run scenarios/quickstart.yaml"), ("test", "tools/test.sh")):
        shown = subprocess.run(["make", "-n", goal], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        assert shown.index(f"tools/setup.sh {goal}") < shown.index(command)


def test_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "tools/setup.sh", "tools/try_provisioning.sh", ".ci/run"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_pin_is_exact_and_every_dependency_is_pinned() -> None:
    import re
    import tomllib

    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[=<>\[;! ]", name)[0]).lower()

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    assert {plain(name) for name in wanted} <= {plain(pin) for pin in pins}


def test_ci_runs_make_test_without_a_terminal() -> None:
    assert os.access(PROJECT / ".ci/run", os.X_OK)
    assert (PROJECT / ".ci/run").read_text().rstrip().endswith("exec make test </dev/null")
