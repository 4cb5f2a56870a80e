"""A stranger's mistakes, through the command: one line that says where, what and what would be right; nothing touched."""

import shutil
from pathlib import Path

import pytest

from tests.running import ROOT, command


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An editable copy of the shipped content, as `testbed init` would give."""
    for name in ("scenarios", "topologies", "traces"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "nodes").symlink_to(ROOT / "nodes")
    return tmp_path


SCENARIO, TOPOLOGY = "scenarios/quickstart.yaml", "topologies/lte_three_tier.yaml"
CASES = {
    "unknown key": (SCENARIO, "seed: 7", "seed: 7\nsede: 7", ["sede", "unknown key", "seed"]),
    "wrong unit": (TOPOLOGY, "delay: 20ms", "delay: 20mbit", ["both.delay", "20mbit", "ms"]),
    "no unit": (SCENARIO, "deadline: 150ms", "deadline: 150", ["load.deadline", "150", "unit"]),
    "tier that no link reaches": (TOPOLOGY, "links:", "  - {name: fog}\nlinks:", ["fog", "no link reaches"]),
    "missing trace": (TOPOLOGY, "synthetic-lte-driving.up", "synthetic-lte-flying.up", ["up.trace", "flying"]),
    "malformed trace": ("traces/synthetic-lte-driving.up", "\n20,4810000\n", "\nbogus\n", ["synthetic-lte-driving.up", "line 100", "bogus"]),
    "split point that the model does not have": (SCENARIO, "at: 3", "at: 33", ["policies.split.at", "33", "0 to"]),
    "unknown model": (SCENARIO, "model: digits_branchy", "model: digits_brunchy", ["model", "digits_brunchy", "digits_branchy"]),
    "unknown profile": (TOPOLOGY, "compute: raspberry-pi-zero-2", "compute: raspberry-pi-5000", ["compute", "raspberry-pi-4"]),
    "unknown plan": (SCENARIO, "  - edge-only", "  - egde-only", ["policies[1]", "egde-only", "edge-only"]),
    "threshold that is no number": (SCENARIO, "threshold: 0.8", "threshold: high", ["threshold", "'high'"]),
    "not YAML": (SCENARIO, "load:", "load: [", ["quickstart.yaml", "line", "YAML"]),
    "codec that is not there": (SCENARIO, "at: 3,", "at: 3, codec: mp3,", ["codec", "mp3", "raw"]),
    "policy file that is not there": (SCENARIO, "  - edge-only", "  - {name: mine, policy: mine.py:Mine}", ["mine.py", "policy"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("verb", ["validate", "run"])
def test_bad_files(copy: Path, case: str, verb: str) -> None:
    name, old, new, says = CASES[case]
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1))
    done = command(verb, SCENARIO, cwd=copy)
    error = done.stderr.strip()
    assert done.returncode == 2, done.stdout + done.stderr
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error, error
    for word in says:
        assert word in error, error
    assert not (copy / "runs").exists(), "nothing may be touched"


@pytest.mark.parametrize(("words", "says"), [
    (["run", "scenarios/none.yaml"], "no such file"),
    (["run", SCENARIO, "--set", "load.rate_per_s"], "key=value"),
    (["run", SCENARIO, "--set", "load.rate=3"], "unknown key"),
    (["run", SCENARIO, "--engine", "kubernetes"], "engine"),
    (["validate", "traces/synthetic-lte-driving.up"], "mapping"),
    (["report", "nowhere"], "nowhere"),
    (["schema", "planet"], "scenario, topology"),
    (["traces", "info", "nothing.up"], "nothing.up"),
    (["models", "train", "gpt"], "gpt"),
])
def test_bad_words(copy: Path, words: list[str], says: str) -> None:
    done = command(*words, cwd=copy)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (copy / "runs").exists()


def test_an_unknown_command_lists_the_commands() -> None:
    done = command("rum")
    assert done.returncode == 2 and "run" in done.stderr and "Traceback" not in done.stderr
