"""`check_policy`: passes every policy that ships, and finds each fault in a policy that has it."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.policies import (
    Context,
    Observation,
    Outcome,
    Plan,
    Policy,
    Probe,
    ProbeSpec,
    Step,
    check_policy,
    make_policy,
)
from testbed.policies.check import CHECKS, plan_problems
from testbed.policies.knowledge import from_json, to_json
from testbed.policies.plan import ExitRule
from testbed.policies.registry import BUILT_IN
from testbed.policies.rehearsal import Rehearsal, made_up_context
from testbed.schema.scenario import Load, PolicySpec
from testbed.serving.plan import PlanError, parse_steps

CONTEXT = made_up_context()
WHOLE = Step("device1", "base", 0, 6)


class Good(Policy):
    """Sends the input to the edge, with a backup when the deadline is near."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.probes = ProbeSpec(period_s=2.0)
        self.seen = 0

    def decide(self, observation: Observation) -> Plan:
        near = observation.budget_s(self.context) < 1.0
        backup = {"backup": (WHOLE,), "backup_after_s": max(0.0, observation.budget_s(self.context) / 2)} if near else {}
        return Plan("good", (Step("edge1", "base", 0, 6),), **backup)

    def observe(self, outcome: Outcome) -> None:
        self.seen += 1

    def observe_probe(self, probe: Probe) -> None:
        self.seen += 1

    def scores(self) -> dict[str, float]:
        return {"seen": float(self.seen)}


class Dice(Good):
    def decide(self, observation: Observation) -> Plan:
        return Plan("dice", (WHOLE if random.random() < 0.5 else Step("edge1", "base", 0, 6),))


class Clock(Good):
    def scores(self) -> dict[str, float]:
        return {"now": time.monotonic()}


class Slow(Good):
    max_decision_s = 1e-4

    def decide(self, observation: Observation) -> Plan:
        end = time.thread_time() + 3e-4
        while time.thread_time() < end:
            pass
        return super().decide(observation)


class Trusting(Good):
    def decide(self, observation: Observation) -> Plan:
        return super().decide(observation) if observation.nodes["edge1"].queue_depth < 99 else Plan("x", (WHOLE,))


class Unlucky(Good):
    def observe(self, outcome: Outcome) -> None:
        assert outcome.status == "ok"


class Beyond(Good):
    def decide(self, observation: Observation) -> Plan:
        return Plan("beyond", (Step("edge1", "base", 0, 7),))


class Afar(Good):
    def decide(self, observation: Observation) -> Plan:
        return Plan("afar", (Step("edge1", "base", 0, 6),), backup=(Step("cloud1", "base", 0, 6),), backup_after_s=0.1)


class Broken(Good):
    def decide(self, observation: Observation) -> Plan:
        raise RuntimeError("broken")


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"orchestrated"}))  # needs a trained policy: tests/policies/orchestration
def test_every_policy_that_ships_conforms(name: str) -> None:
    report = check_policy(BUILT_IN[name], decisions=100)
    assert report.ok, str(report)


def test_a_good_policy_passes_every_check() -> None:
    report = check_policy(Good)
    assert report.ok, str(report)
    assert [finding.check for finding in report.findings] == list(CHECKS)


def test_the_policy_on_the_documentation_page_conforms(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    (tmp_path / "my_policy.py").write_text(page.split("```python\n")[1].split("```")[0])
    policy = make_policy(PolicySpec(name="mine", policy=f"{tmp_path}/my_policy.py:NearFirst"), CONTEXT)
    report = check_policy(type(policy), {"longest_queue": 2})
    assert report.ok and "2 different plans" in str(report), str(report)


def test_the_load_on_the_documentation_page_is_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    load = Load.model_validate(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["load"])
    assert load.queue.workers == 2 and load.deadlines is not None and load.deadlines.pivot[0].requests == (200, 400)


@pytest.mark.parametrize(("cls", "failed", "says"), [
    (Dice, {"deterministic"}, "context.seed"), (Clock, {"deterministic"}, "scores"), (Slow, {"time"}, "stated"),
    (Trusting, {"missing observations"}, "KeyError"), (Unlucky, {"missing observations"}, "AssertionError"),
    (Beyond, {"plans"}, "0:7"), (Afar, {"backups"}, "cloud1"),
    (Broken, {"calls", "time", "missing observations"}, "RuntimeError"),
])
def test_each_fault_is_found_and_named(cls: type[Policy], failed: set[str], says: str) -> None:
    report = check_policy(cls, decisions=60)
    assert {finding.check for finding in report.findings if not finding.passed} == failed, str(report)
    assert says in str(report) and not report.ok


EXITS = [None, ExitRule("max_probability", 0.8), ExitRule("max_probability", 0.0), ExitRule("always", 0.0)]


def test_what_is_found_executable_is_what_nodes_accept() -> None:
    """On random plans `parse_steps`, which nodes use, and `plan_problems` agree, as far as a node can know."""
    rng, agreed = random.Random(1), {True: 0, False: 0}
    for _ in range(4000):
        cut = rng.randrange(0, 7)
        steps = [Step(rng.choice(["device1", "edge1", "cloud1"]), rng.choice(["base", "small"]), rng.randrange(0, 3), cut,
                      rng.choice(["raw", "int8", "mp3"]), rng.choice(EXITS))]
        if rng.random() < 0.7:
            start, model = rng.choice([cut, 0, rng.randrange(0, 7)]), rng.choice([steps[0].model, "large"])
            steps.append(Step(rng.choice(["edge1", "cloud1"]), model, start, 6, "raw", rng.choice(EXITS)))
        plan = Plan("p", tuple(steps))
        try:
            parse_steps(plan.wire())
            accepted = True
        except PlanError:
            accepted = False
        if steps[-1].stop != 6:  # what a plan's end must be is not the parser's business
            continue
        assert accepted == (not plan_problems(plan, CONTEXT)), plan
        agreed[accepted] += 1
    assert min(agreed.values()) > 300


@pytest.mark.parametrize(("change", "says"), [
    ({"steps": ()}, "1 to 16"), ({"steps": (replace(WHOLE, node="mars"),)}, "mars"),
    ({"steps": (replace(WHOLE, model="huge"),)}, "huge"), ({"steps": (replace(WHOLE, stop=2),)}, "neither"),
    ({"steps": (replace(WHOLE, stop=2, exit=ExitRule("always", 0.0)),)}, "neither"),  # the early exit is after stage 2
    ({"retries": -1}, "retries"), ({"backup": (WHOLE,), "backup_after_s": float("nan")}, "backup_after_s"),
    ({"backup_after_s": 0.1}, "without a backup"), ({"fallback": (replace(WHOLE, node="edge1"),)}, "fallback"),
])
def test_problems_of_plans_are_named(change: dict[str, Any], says: str) -> None:
    plan = replace(Plan("p", (WHOLE,)), **change)
    assert any(says in problem for problem in plan_problems(plan, CONTEXT)), plan_problems(plan, CONTEXT)


def test_an_exit_that_always_answers_ends_a_plan() -> None:
    for rule in (ExitRule("always", 0.0), ExitRule("max_probability", 0.0), ExitRule("entropy", 1.0)):
        assert plan_problems(Plan("p", (replace(WHOLE, stop=3, exit=rule),)), CONTEXT) == []
    assert plan_problems(Plan("p", (replace(WHOLE, stop=3, exit=ExitRule("entropy", 0.9)),)), CONTEXT)


def test_models_that_nodes_do_not_have_are_found() -> None:
    assert plan_problems(Plan("p", (replace(WHOLE, model="large"),)), CONTEXT, ("base",)) == [
        "step 0: models() does not name large, so nodes do not have it"]


def test_everything_that_is_logged_survives_the_way_to_json_and_back() -> None:
    rehearsal = Rehearsal(CONTEXT, ProbeSpec(period_s=1.0), 3, trouble=True)
    plan = Plan("p", (Step("device1", "base", 0, 3, "raw", ExitRule("max_probability", 0.9)), Step("edge1", "base", 3, 6, "int8")),
                fallback=(WHOLE,), backup=(WHOLE,), backup_after_s=0.01)
    kinds = set()
    for _ in range(50):
        values = [rehearsal.observation(), *rehearsal.consequences(plan), CONTEXT, plan]
        for value in values:
            if value is not None:
                assert from_json(type(value), to_json(value)) == value
                kinds.add(type(value).__name__)
    assert kinds == {"Observation", "Outcome", "Probe", "Context", "Plan"}
