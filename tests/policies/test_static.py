"""Fixed plans: what each named kind becomes, step by step, and what it refuses."""

import pytest

from testbed.errors import InputError
from testbed.policies import Context, ExitRule, ModelInfo, Observation, Step, make_policy
from testbed.policies.static import compile_plan
from testbed.schema.scenario import PlanSpec, PolicySpec

MODEL = ModelInfo("net", ("a", "b", "c", "d"), {"early": 1, "final": 3}, 100, (200, 50, 20, 10))
CONTEXT = Context("device1", {"device": "device1", "edge": "edge1", "cloud": "cloud1"}, ("device", "edge", "cloud"),
                  {"net": MODEL}, "net", 0.2, 1)


def steps(**spec: object) -> tuple[Step, ...]:
    return compile_plan(PlanSpec.model_validate({"name": "p", **spec}), CONTEXT).steps


@pytest.mark.parametrize(("plan", "node"), [("device-only", "device1"), ("edge-only", "edge1"), ("cloud-only", "cloud1")])
def test_single_place_plans_run_all_stages_there(plan: str, node: str) -> None:
    assert steps(plan=plan) == (Step(node, "net", 0, 4),)


@pytest.mark.parametrize("cut", range(5))
def test_split_at_every_cut_covers_every_stage_once(cut: int) -> None:
    made = steps(plan="split", at=cut, codec="fp16")
    assert [i for s in made for i in range(s.start, s.stop)] == [0, 1, 2, 3]
    assert {s.node for s in made} == ({"edge1"} if cut == 0 else {"device1"} if cut == 4 else {"device1", "edge1"})
    if 0 < cut < 4:
        assert made[1].codec == "fp16" and made[0].codec == "raw"


def test_early_exit_escalates_from_the_exit_to_the_last_tier() -> None:
    assert steps(plan="early-exit", threshold=0.8) == (
        Step("edge1", "net", 0, 2, "raw", ExitRule("max_probability", 0.8)), Step("cloud1", "net", 2, 4))


def test_explicit_steps_may_name_tiers_and_stages() -> None:
    assert steps(plan="steps", steps=[{"tier": "device", "stages": ":1"}, {"tier": "edge", "stages": "1:3", "codec": "int8"},
                                      {"tier": "cloud", "stages": "3:"}]) == (
        Step("device1", "net", 0, 1), Step("edge1", "net", 1, 3, "int8"), Step("cloud1", "net", 3, 4))


@pytest.mark.parametrize(("spec", "says"), [
    ({"plan": "split", "at": 9}, "split point"), ({"plan": "split", "at": "z"}, "a, b, c, d"),
    ({"plan": "early-exit", "threshold": 0.5, "exit": "late"}, "early"), ({"plan": "edge-only", "model": "other"}, "net"),
])
def test_what_the_model_does_not_have_is_refused_with_what_it_has(spec: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        steps(**spec)


def test_a_policy_of_ones_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mine.py"
    file.write_text("from testbed.policies import Plan, Policy, Step\n"
                    "class Alternate(Policy):\n"
                    "    def __init__(self, context, first=0):\n"
                    "        super().__init__(context)\n"
                    "        self.turn = first\n"
                    "    def decide(self, observation):\n"
                    "        self.turn += 1\n"
                    "        tier = ('edge', 'cloud')[self.turn % 2]\n"
                    "        return Plan('alternate', (Step(self.context.nodes[tier], self.context.model, 0, 4),))\n")
    policy = make_policy(PolicySpec(name="mine", policy=f"{file}:Alternate", options={"first": 1}), CONTEXT)
    assert [policy.decide(Observation(0, "r")).steps[0].node for _ in range(3)] == ["edge1", "cloud1", "edge1"]
    with pytest.raises(InputError, match="options"):
        make_policy(PolicySpec(name="mine", policy=f"{file}:Alternate", options={"frist": 1}), CONTEXT)
    with pytest.raises(InputError, match="no class"):
        make_policy(PolicySpec(name="mine", policy=f"{file}:Other"), CONTEXT)
