"""`check-policy` and `replay-decisions`: exit codes, and what bad input is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.cli import main

BAD = """
import itertools
from testbed.policies import Plan, Policy, Step

COUNT = itertools.count()


class Global(Policy):
    def decide(self, observation):
        where = "device1" if next(COUNT) % 3 else "edge1"
        return Plan("p", (Step(where, "base", 0, 6),))
"""


def test_a_policy_that_conforms_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-policy", "neurosurgeon"]) == 0
    assert "conforms" in capsys.readouterr().out


def test_a_policy_that_does_not_ends_with_1_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    assert main(["check-policy", f"{tmp_path}/bad.py:Global"]) == 1
    out = capsys.readouterr().out
    assert "does not conform" in out and "FAILED deterministic" in out and "ok     plans" in out


@pytest.mark.parametrize(("words", "says"), [
    (["check-policy", "nothing"], "no such policy"), (["check-policy", "a b"], "no name of a policy"),
    (["check-policy", "none.py:Mine"], "no such policy file"),
    (["check-policy", "neurosurgeon", "--set", "speed=1"], "not one option"),
    (["check-policy", "neurosurgeon", "--set", "options.initial_bps=1,2"], "not one option"),
    (["check-policy", "neurosurgeon", "--set", "options.nonsense=1"], "refuses its options"),
    (["check-policy", "neurosurgeon", "--scenario", "none.yaml"], "no such file"),
    (["replay-decisions", "nowhere"], "no such run directory"),
])
def test_bad_input_ends_with_2_and_a_remedy(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error and "; " in error and "Traceback" not in error


def test_a_scenario_gives_its_own_nodes_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"
    assert main(["check-policy", "random", "--scenario", str(scenario)]) == 0
    assert "different plans" in capsys.readouterr().out
