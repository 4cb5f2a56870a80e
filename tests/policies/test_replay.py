"""Decisions made again from a written log: identical where nothing changed, and every kind of change is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.experiment.gather import merge_decisions
from testbed.policies import Plan, Policy, Step, make_policy
from testbed.policies.knowledge import to_json
from testbed.policies.registry import with_defaults
from testbed.policies.rehearsal import Rehearsal, made_up_context
from testbed.policies.replay import replay_decisions
from testbed.schema.scenario import PlanSpec, PolicySpec

CONTEXT = made_up_context()
SPECS = {"random": {"name": "r", "policy": "random"}, "layercake": {"name": "l", "policy": "layercake", "fallback": "device"},
         "neurosurgeon": {"name": "n", "policy": "neurosurgeon", "retries": 2}, "fixed": {"name": "s", "plan": "split", "at": 2}}


def written(path: Path, spec: dict[str, Any], device: str = "device1", count: int = 40) -> list[dict[str, Any]]:
    """The log of a rehearsal, as a device writes it."""
    context = replace(CONTEXT, device=device, nodes={**CONTEXT.nodes, "device": device},
                      compute={**CONTEXT.compute, device: replace(CONTEXT.compute["device1"], name=device)})
    kind = PlanSpec.model_validate(spec) if "plan" in spec else PolicySpec.model_validate(spec)
    policy: Policy = make_policy(kind, context)
    lines: list[dict[str, Any]] = [{"kind": "policy", "t_ns": 0, "device": device, "spec": kind.model_dump(mode="json"),
                                    "context": to_json(context)}]
    world = Rehearsal(context, policy.probes, 7, trouble=True)
    for _ in range(count):
        seen = world.observation()
        plan = with_defaults(policy.decide(seen), kind, context)
        lines.append({"kind": "decide", "t_ns": seen.t_ns, "device": device, "request_id": seen.request_id,
                      "observation": to_json(seen), "plan": to_json(plan), "scores": dict(policy.scores())})
        outcome, late, probe = world.consequences(plan)
        policy.observe(outcome)
        lines.append({"kind": "outcome", "t_ns": outcome.t_ns, "device": device, "outcome": to_json(outcome)})
        if late is not None:
            policy.observe_late(late)
            lines.append({"kind": "late", "t_ns": late.t_ns, "device": device, "outcome": to_json(late)})
        if probe is not None:
            policy.observe_probe(probe)
            lines.append({"kind": "probe", "t_ns": probe.t_ns, "device": device, "probe": to_json(probe)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.mark.parametrize("name", SPECS)
def test_the_same_policy_decides_the_same_again(tmp_path: Path, name: str) -> None:
    log = tmp_path / "decisions.jsonl"
    written(log, SPECS[name])
    (found,) = replay_decisions(log)
    assert (found.device, found.same_policy, len(found.decisions), found.differing) == ("device1", True, 40, [])


def test_devices_are_told_apart_in_a_merged_log(tmp_path: Path) -> None:
    parts = []
    for device in ("device1", "device2"):
        written(tmp_path / device, SPECS["random"], device)
        parts.append((tmp_path / device).read_text().splitlines())
    merged = merge_decisions(parts)
    for device, part in zip(("device1", "device2"), parts, strict=True):
        assert [line for line in merged if json.loads(line)["device"] == device] == part  # its own order, always
    decided = merge_decisions([[line for line in part if json.loads(line)["kind"] == "decide"] for part in parts])
    times = [json.loads(line)["t_ns"] for line in decided]
    assert times == sorted(times) and len(times) == 80
    (tmp_path / "decisions.jsonl").write_text("\n".join(merged))
    assert [(r.device, r.differing) for r in replay_decisions(tmp_path / "decisions.jsonl")] == [("device1", []), ("device2", [])]


@pytest.mark.parametrize(("field", "value"), [("plan", None), ("scores", {"bps": 1.0}), ("retries", 5), ("name", "other")])
def test_one_changed_decision_is_the_one_that_differs(tmp_path: Path, field: str, value: Any) -> None:
    log = tmp_path / "decisions.jsonl"
    lines = written(log, SPECS["neurosurgeon"])
    line = [line for line in lines if line["kind"] == "decide"][11]
    if field == "plan":
        value = to_json(Plan("x", (Step("cloud1", "base", 0, 6, "fp16"),)))
    target = line if field in ("plan", "scores") else line["plan"]
    target[field] = value
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = replay_decisions(log)
    assert [d.index for d in found.differing] == [11]


def test_scores_may_differ_in_the_last_bit_only(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    lines = written(log, SPECS["layercake"])
    for number, line in enumerate(line for line in lines if line["kind"] == "decide"):
        line["scores"] = {k: v * (1 + (1e-12 if number != 7 else 1e-6)) for k, v in line["scores"].items()}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [d.index for d in replay_decisions(log)[0].differing] == [7]


def test_other_options_and_other_policies_are_compared_by_what_their_plans_do(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    written(log, SPECS["fixed"])
    edge = tmp_path / "always.py"
    edge.write_text("from testbed.policies import Plan, Policy, Step\n\n\nclass Split(Policy):\n"
                    "    def __init__(self, context, cut=2):\n        super().__init__(context)\n        self.cut = cut\n\n"
                    "    def decide(self, observation):\n"
                    "        return Plan('mine', (Step('device1', 'base', 0, self.cut), Step('edge1', 'base', self.cut, 6)))\n")
    assert replay_decisions(log, f"{edge}:Split")[0].differing == []  # another name, the same steps
    assert len(replay_decisions(log, f"{edge}:Split", {"cut": 3})[0].differing) == 40
    with pytest.raises(InputError, match="fixed plan"):
        replay_decisions(log, None, {"cut": 3})
    with pytest.raises(InputError, match="no such policy"):
        replay_decisions(log, "nothing")
    with pytest.raises(InputError, match="refuses its options"):
        replay_decisions(log, f"{edge}:Split", {"speed": 3})


@pytest.mark.parametrize(("text", "says"), [
    ("", "empty"), ("hello", "line 1"), ('{"device": "d", "t_ns": 1, "plan": []}', "does not begin"),
    ('{"device": "d", "kind": "policy", "t_ns": 0, "spec": {}, "context": {"device": 3}}', "context"),
    (None, "cannot be read"),
])
def test_what_is_no_log_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    log = tmp_path / "decisions.jsonl"
    if text is not None:
        log.write_text(text)
    with pytest.raises(InputError, match=says):
        replay_decisions(log)


REMOTE = Plan("p", (Step("device1", "base", 0, 2), Step("edge1", "base", 2, 6)))
LOCAL = Plan("p", (Step("device1", "base", 0, 6),))


@pytest.mark.parametrize(("plan", "spec", "expected"), [
    (REMOTE, {}, REMOTE), (LOCAL, {"fallback": "device", "retries": 2}, LOCAL),
    (REMOTE, {"fallback": "device"}, replace(REMOTE, fallback=LOCAL.steps)),
    (REMOTE, {"retries": 2}, replace(REMOTE, retries=2)), (replace(REMOTE, retries=1), {"retries": 2}, replace(REMOTE, retries=1)),
    (replace(REMOTE, fallback=REMOTE.steps[:1]), {"fallback": "device"}, replace(REMOTE, fallback=REMOTE.steps[:1])),
    (replace(REMOTE, backup=LOCAL.steps), {"fallback": "device"}, replace(REMOTE, backup=LOCAL.steps)),
])
def test_the_scenarios_fallback_and_retries_fill_what_a_plan_leaves_open(plan: Plan, spec: dict[str, Any], expected: Plan) -> None:
    assert with_defaults(plan, PolicySpec(name="p", policy="random", **spec), CONTEXT) == expected
