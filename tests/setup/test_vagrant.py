"""The Vagrantfile: valid for each provider that it names, and its provisioning is the project's own set-up.

Vagrant looks at the chosen provider only, and only if that seems to be installed. Stand-ins answer in its place: a
`VBoxManage` that gives a version, a `systemctl` that knows an NFS server, and, for the two providers whose plugins Debian
does not carry, plugins with their documented settings. No machine is made.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import ROOT

PLUGINS = """
{"parallels" => [:cpus, :memory], "vmware_desktop" => [:vmx]}.each do |provider_name, settings|
  settings_class = Class.new(Vagrant.plugin("2", :config)) do
    attr_accessor(*settings)
    define_method(:initialize) { @vmx = {} if settings.include?(:vmx) }
  end
  provider_class = Class.new(Vagrant.plugin("2", :provider)) { define_method(:state) { Vagrant::MachineState.new(:not_created, "", "") } }
  Class.new(Vagrant.plugin("2")) do
    name provider_name
    provider(provider_name.to_sym) { provider_class }
    config(provider_name.to_sym, :provider) { settings_class }
  end
end
"""
PROVIDERS = ["virtualbox", "libvirt", "parallels", "vmware_desktop"]
needs_vagrant = pytest.mark.skipif(shutil.which("vagrant") is None,
                                   reason="vagrant is not installed (apt-get install vagrant vagrant-libvirt): the Vagrantfile was not validated")


def validate(folder: Path, provider: str, text: str) -> subprocess.CompletedProcess[str]:
    programs = folder / "bin"
    programs.mkdir()
    for name, says in (("VBoxManage", "7.0.20r163906"), ("systemctl", "nfs-server.service enabled"), ("modinfo", "")):
        (programs / name).write_text(f"#!/bin/sh\necho {says}\n")
        (programs / name).chmod(0o755)
    (folder / "Vagrantfile").write_text(PLUGINS + text)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "VAGRANT_HOME": str(folder / "home"), "VAGRANT_DEFAULT_PROVIDER": provider,
           "VAGRANT_CHECKPOINT_DISABLE": "1"}
    return subprocess.run(["vagrant", "validate"], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@needs_vagrant
@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_is_valid_for_each_provider(provider: str, tmp_path: Path) -> None:
    text = (ROOT / "Vagrantfile").read_text()
    assert provider in text
    done = validate(tmp_path, provider, text)
    assert done.returncode == 0 and "validated successfully" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "runs").is_dir(), "the folder that results are shared through"


@needs_vagrant
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_setting_of_a_provider_is_noticed(provider: str, tmp_path: Path) -> None:
    text = (ROOT / "Vagrantfile").read_text()
    wrong = re.sub(rf'(config\.vm\.provider\("{provider}"\) (?:do|\{{) \|machine\|)', r"\1 machine.no_such_setting = 1;", text)
    assert wrong != text
    done = validate(tmp_path, provider, wrong)
    assert done.returncode != 0 and "no_such_setting" in done.stdout + done.stderr


def provisioning() -> list[str]:
    found = re.search(r"<<~SHELL\n(.*?)^ *SHELL$", (ROOT / "Vagrantfile").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return [line.strip() for line in found[1].splitlines()]


def test_provisioning_is_the_set_up_of_make() -> None:
    lines = provisioning()
    assert lines[0] == "set -eu", "the first failure ends it"
    wanted = [f"tools/setup.sh {goal}" for goal in ("run", "test")]
    assert [line for line in lines if line.startswith("tools/")] == wanted
    for goal in ("run", "test"):
        shown = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"tools/setup.sh {goal}" in shown


def test_the_check_in_a_clean_root_runs_the_same_lines() -> None:
    script = (ROOT / "tools" / "try_provisioning.sh").read_text()
    command = re.search(r"^lines\(\) \{ (.*); \}$", script, re.MULTILINE)
    assert command
    done = subprocess.run(["sh", "-c", f"project={ROOT}; {command[1]}"], capture_output=True, text=True, check=True)
    assert [line.strip() for line in done.stdout.splitlines()] == provisioning()


def test_the_box_has_all_files_that_set_up_reads() -> None:
    """What is not copied in must not be needed: nothing tracked is excluded."""
    excluded = re.search(r"rsync__exclude: \[(.*?)\]", (ROOT / "Vagrantfile").read_text())
    assert excluded
    names = re.findall(r'"([^"]+)/"', excluded[1])
    tracked = {path.parts[0] for path in map(Path, subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())}
    assert not tracked & set(names)
