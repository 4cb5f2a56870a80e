"""`pip install .`: the wheel has all that ships, and `testbed init` of that installation writes a copy that works."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from testbed.experiment.shipped import FOLDERS
from tests.running import ROOT, command


def shipped() -> set[str]:
    """What the repository has in the shipped folders."""
    done = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    return {str(p.relative_to(ROOT)) for name in FOLDERS for p in (ROOT / name).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the project."""
    copy = tmp_path_factory.mktemp("source") / "project"
    for name in ("testbed", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    out = copy.parent / "wheel"
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy)],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("testbed-*.whl"))


def test_the_wheel_has_all_that_ships_and_its_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name.partition("/share/testbed/")[2] for name in names if "/share/testbed/" in name}
    assert shipped() <= inside, f"list these folders in pyproject.toml: {sorted(shipped() - inside)}"
    assert "testbed/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_an_installation_writes_a_copy_that_is_the_same_experiment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
                   check=True, timeout=120, capture_output=True)
    # the dependencies of this environment, after the installation's own folder
    own = next((environment / "lib").glob("python3*/site-packages"))
    paths = [p for p in sys.path if p.endswith("-packages")]
    (own / "dependencies.pth").write_text("".join(f"{p}\n" for p in paths))
    program = [str(environment / "bin" / "testbed")]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def testbed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=clean, check=False)

    where = subprocess.run([str(python), "-c", "import testbed; print(testbed.__file__)"], cwd=tmp_path, env=clean,
                           capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(environment)), where
    made = testbed("init", "lab")
    assert made.returncode == 0, made.stdout + made.stderr
    assert {str(p.relative_to(tmp_path / "lab")) for p in (tmp_path / "lab").rglob("*") if p.is_file()} >= shipped()
    plan = testbed("run", "lab/scenarios/quickstart.yaml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    ours = command("run", ROOT / "scenarios" / "quickstart.yaml", "--dry-run", "--runs", tmp_path / "none")
    hashes = [[line.split()[0] for line in done.stdout.splitlines()[:-1]] for done in (plan, ours)]
    assert hashes[0] == hashes[1] != []
    again = testbed("init", "lab")
    assert again.returncode == 2 and "overwritten" in again.stderr


def test_init_from_a_clone_copies_what_the_clone_has(tmp_path: Path) -> None:
    done = command("init", tmp_path / "lab")
    assert done.returncode == 0, done.stderr
    for name in shipped():
        assert (tmp_path / "lab" / name).read_bytes() == (ROOT / name).read_bytes()
    (tmp_path / "other" / "nodes").mkdir(parents=True)
    refused = command("init", tmp_path / "other")
    assert refused.returncode == 2 and list((tmp_path / "other").iterdir()) == [tmp_path / "other" / "nodes"]
