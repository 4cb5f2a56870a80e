"""SPINN: equals enumeration under constraints, plans that nodes can run, a local answer without the server, trying again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.policies import Observation, Outcome, Plan, Probe, Transfer
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.edgent import Edgent
from testbed.policies.exits_math import reach_of
from testbed.policies.spinn import METRICS, Spinn
from testbed.serving.plan import parse_steps
from tests.policies.branchy import CODEC, Branchy


def table(made: Branchy, bps: float, rtt_s: float) -> list[dict[str, float]]:
    """Every split and threshold with its metrics, written out."""
    rows = []
    full = made.info.exit_curve[-1].accuracy
    for split in range(made.stages + 1):
        for point in made.info.exit_curve:
            reach = [*reach_of(made.info, point), 0.0]
            heads = [{after: t[n] for n, after in made.exits.items()} if point.threshold <= 1 else {}
                     for t in (made.device_head_s, made.server_head_s)]
            device = [made.device_s[i] + heads[0].get(i, 0) for i in range(split)]
            server = [made.server_s[i] + heads[1].get(i, 0) for i in range(split, made.stages)]
            size = (0 if split == made.stages else made.packed[split])
            away = 8 * (size + MESSAGE_BYTES) / bps + rtt_s if split < made.stages else 0
            busy = sum(t * r for t, r in zip(server, reach[split:made.stages], strict=True))
            rows.append({"split": split, "threshold": point.threshold, "accuracy_loss": full - point.accuracy, "server": busy,
                         "bytes": reach[split] * size, "worst": sum(device) + away + sum(server),
                         "latency": sum(t * r for t, r in zip(device, reach[:split], strict=True)) + busy + reach[split] * away})
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_the_enumeration(seed: int) -> None:
    made, rng = Branchy(seed), np.random.default_rng(seed)
    bps, rtt_s = float(10 ** rng.uniform(5, 8)), float(rng.uniform(0, 0.1))
    rows = table(made, bps, rtt_s)
    for objective in METRICS:
        limits = {name: float(np.quantile([r[name] for r in rows], rng.uniform(0.1, 0.9)))
                  for name in rng.permutation(METRICS)[:2]}
        policy = Spinn(made.context, [{name: limit} for name, limit in limits.items()], str(objective), initial_bps=bps,
                       initial_rtt_s=rtt_s)
        plan = policy.decide(Observation(0, "r", deadline_s=10.0))
        scores, left = policy.scores(), rows
        for name, limit in limits.items():  # the first one is met; the second where it can be, else nearly
            nearest = min(r[name] for r in left)
            left = [r for r in left if r[name] <= limit + 1e-9] or [r for r in left if r[name] <= 1.1 * nearest + 1e-9]
        mine = next(r for r in rows if (r["split"], r["threshold"]) == (scores["split"], scores["threshold"]))
        assert any(mine is r for r in left)
        assert mine[str(objective)] == pytest.approx(min(r[str(objective)] for r in left), abs=1e-9)
        assert scores["predicted_s"] == pytest.approx(mine["latency"]) and scores["worst_s"] == pytest.approx(mine["worst"])
        assert scores["server_s"] == pytest.approx(mine["server"]) and scores["sent_bytes"] == pytest.approx(mine["bytes"])
        assert scores["unmet"] == sum(mine[name] > limit + 1e-9 for name, limit in limits.items())
        assert sum(s.stop - s.start for s in plan.steps) == made.stages


@pytest.mark.parametrize("seed", range(8))
def test_plans_can_be_executed_and_fallbacks_are_local(seed: int) -> None:
    made = Branchy(seed)
    for bps in (2e5, 5e6, 1e9):
        for deadline_s in (0.002, 0.05, 5.0):
            policy = Spinn(made.context, [], "latency", initial_bps=bps)
            plan = policy.decide(Observation(0, "r", deadline_s=deadline_s))
            steps = parse_steps(plan.wire())
            assert [i for s in steps for i in range(s.start, s.stop)] == list(range(made.stages))
            threshold = policy.scores()["threshold"]
            assert all((s.rule.kind, s.rule.threshold) == (("max_probability", threshold) if threshold <= 1 else ("none", 0))
                       for s in steps)
            remote = [s for s in steps if s.node == "edge1"]
            assert len(remote) == (policy.scores()["split"] < made.stages) and all(s.codec == CODEC for s in remote)
            assert bool(plan.fallback) == bool(remote)
            for spare in (plan.fallback, plan.backup):
                if spare:
                    step, = parse_steps([{**spare_step} for spare_step in plan.fallback_wire()])
                    assert (step.node, step.start, step.rule.kind) == ("device1", 0, "always")
                    assert step.stop - 1 in made.exits.values()


def local_s(made: Branchy, after: int) -> float:
    name = next(n for n, stage in made.exits.items() if stage == after)
    return float(sum(made.device_s[:after + 1]) + made.device_head_s[name])


@pytest.mark.parametrize("seed", range(12))
def test_a_backup_starts_in_time_with_the_deepest_exit_that_is_left(seed: int) -> None:
    made = Branchy(seed)
    policy = Spinn(made.context, [{"server": 1.0}], "accuracy_loss", initial_bps=1e8, initial_rtt_s=0.01, guard_s=0.005)
    for budget_s in np.linspace(0.02, 0.4, 20):
        plan = policy.decide(Observation(0, "r", deadline_s=float(budget_s)))
        scores = policy.scores()
        if scores["split"] == made.stages:
            continue
        after = plan.fallback[0].stop - 1
        spent_s = sum(made.device_s[:int(scores["split"])]) + (0 if scores["threshold"] > 1 else sum(
            t for n, t in made.device_head_s.items() if made.exits[n] < scores["split"])) + 0.01
        fitting = [stage for stage in made.exits.values() if local_s(made, stage) <= budget_s - spent_s - 0.005]
        assert after == max(fitting, default=min(made.exits.values()))
        in_time_s = budget_s - local_s(made, after) - 0.005
        expected_s = in_time_s if scores["worst_s"] <= budget_s and in_time_s >= 0 else max(in_time_s, scores["worst_s"])
        assert plan.backup == plan.fallback and plan.backup_after_s == pytest.approx(expected_s)


def test_the_plans_it_foresees_are_those_it_returns() -> None:
    """Nodes that look outputs up must have them for every codec that a plan may use."""
    seen = set()
    for seed in range(6):
        made = Branchy(seed)
        for cls in (Spinn, Edgent):
            foreseen = {tuple((s.node, s.start, s.stop, s.codec) for s in plan.steps)
                        for plan in cls(made.context, codec=CODEC).plans()}
            for bps in (1e5, 3e6, 1e9):
                for deadline_s in (0.01, 0.05, 3.0):
                    plan = cls(made.context, initial_bps=bps, codec=CODEC).decide(Observation(0, "r", deadline_s=deadline_s))
                    chosen = tuple((s.node, s.start, s.stop, s.codec) for s in plan.steps)
                    assert chosen in foreseen
                    seen.add((cls, len(chosen), chosen[-1][3]))
    assert len(seen) > 4


def test_without_backup_there_is_a_fallback_only() -> None:
    made = Branchy(3)
    plan = Spinn(made.context, [], "accuracy_loss", initial_bps=1e9, initial_rtt_s=0.001, backup=False).decide(Observation(0, "r"))
    assert plan.fallback and not plan.backup and plan.backup_after_s is None


def offloading() -> tuple[Branchy, Spinn]:
    made = Branchy(3)
    made.context = replace(made.context, deadline_s=1.0)
    policy = Spinn(made.context, [{"accuracy_loss": 0.0}], "latency", initial_bps=1e9, initial_rtt_s=0.001, retry_s=2.0)
    assert any(s.node == "edge1" for s in policy.decide(Observation(0, "r")).steps)
    return made, policy


def outcome(plan: Plan, t_s: float, **what: object) -> Outcome:
    return Outcome("r", plan, **{"status": "ok", "latency_s": 0.1, "exit_id": "final", "exit_confidence": 0.9,  # type: ignore[arg-type]
                                 "final_node": "edge1", "t_ns": round(t_s * 1e9), **what})


@pytest.mark.parametrize("failure", [{"used_fallback": True, "final_node": "device1"}, {"status": "failed", "final_node": None},
                                     {"backup_won": True, "used_backup": True, "final_node": "device1"}])
def test_a_server_that_is_gone_is_left_alone_and_tried_again(failure: dict[str, object]) -> None:
    made, policy = offloading()
    plan = policy.decide(Observation(0, "r"))
    policy.observe(outcome(plan, 10, **failure))
    for t_s, budget_s in ((10.1, 1.0), (11.9, 0.001), (11.99, local_s(made, max(made.exits.values())) + 1e-6)):
        local = policy.decide(Observation(round(t_s * 1e9), "r", deadline_s=budget_s))
        assert {s.node for s in local.steps} == {"device1"} and policy.scores()["server_gone"] == 1
        fitting = [stage for stage in made.exits.values() if local_s(made, stage) <= budget_s]
        assert local.steps[-1].stop - 1 == max(fitting, default=min(made.exits.values()))
        policy.observe(outcome(local, t_s, final_node="device1"))  # a local answer says nothing about the server
    again = policy.decide(Observation(round(12.1e9), "r"))
    assert any(s.node == "edge1" for s in again.steps)
    policy.observe(outcome(again, 12.2, **failure))
    assert {s.node for s in policy.decide(Observation(round(12.3e9), "r")).steps} == {"device1"}
    policy.observe(outcome(again, 12.4))
    assert policy.decide(Observation(round(12.5e9), "r")) == again


def test_an_early_answer_on_the_device_does_not_bring_the_server_back() -> None:
    _, policy = offloading()
    plan = policy.decide(Observation(0, "r"))
    policy.observe(outcome(plan, 10, used_fallback=True, final_node="device1"))
    policy.observe(outcome(plan, 10.5, final_node="device1", exit_id="e0"))
    policy.decide(Observation(round(10.6e9), "r"))
    assert policy.scores()["server_gone"] == 1


def test_an_answer_that_only_came_late_brings_the_server_back_and_its_rate_is_learnt() -> None:
    _, policy = offloading()
    plan = policy.decide(Observation(0, "r"))
    policy.observe(outcome(plan, 10, backup_won=True, used_backup=True, final_node="device1"))
    assert policy.decide(Observation(round(10.1e9), "r")).name == "spinn:local"
    lost = outcome(plan, 10.2, backup_won=True, used_backup=True, status="failed", final_node=None)
    own = outcome(plan, 10.2, used_backup=True, final_node="device1")  # the backup was the slower side
    for late in (lost, own):
        policy.observe_late(late)
        assert policy.decide(Observation(round(10.3e9), "r")).name == "spinn:local"
    policy.observe_late(outcome(plan, 10.4, backup_won=True, used_backup=True, transfers=(
        Transfer("device1", "edge1", 5_000, 0.2005),)))
    policy.decide(Observation(round(10.5e9), "r"))
    scores = policy.scores()
    assert scores["server_gone"] == 0 and scores["bandwidth_bps"] == pytest.approx(2e5)


def test_probes_tell_whether_the_server_is_there() -> None:
    _, policy = offloading()
    policy.observe_probe(Probe("edge1", 10**9, None, 10_000, None))
    assert {s.node for s in policy.decide(Observation(10**9 + 1, "r")).steps} == {"device1"}
    policy.observe_probe(Probe("cloud1", 10**9 + 2, 0.001, 10_000, 0.01))
    assert policy.decide(Observation(10**9 + 3, "r")).name == "spinn:local"
    policy.observe_probe(Probe("edge1", 10**9 + 4, 0.001, 10_000, 0.0011))
    assert any(s.node == "edge1" for s in policy.decide(Observation(10**9 + 5, "r")).steps)


def test_a_least_accuracy_of_the_request_comes_first() -> None:
    made = Branchy(8)
    policy = Spinn(made.context, [{"latency": 1e-6}], "latency")
    policy.decide(Observation(0, "r"))
    assert policy.scores()["unmet"] == 1
    fast = policy.scores()["accuracy"]
    least = made.info.exit_curve[-1].accuracy - 0.005
    policy.decide(Observation(0, "r", min_accuracy=least))
    assert fast < least <= policy.scores()["accuracy"]


def test_the_deadline_as_a_limit_is_the_request_s_budget() -> None:
    made = Branchy(9)
    policy = Spinn(made.context, [{"latency": "deadline"}], "accuracy_loss", initial_bps=2e7)
    accuracy = []
    for budget_s in np.geomspace(0.005, 1, 15):
        policy.decide(Observation(0, "r", deadline_s=budget_s + 0.5, elapsed_s=0.5))
        assert policy.scores()["unmet"] or policy.scores()["predicted_s"] <= budget_s + 1e-9
        accuracy.append(policy.scores()["accuracy"] * (not policy.scores()["unmet"]))
    assert accuracy == sorted(accuracy) and accuracy[-1] > 0


@pytest.mark.parametrize("options", [{"objective": "joy"}, {"constraints": [{"joy": 1}]}, {"constraints": [{"latency": "soon"}]},
                                     {"constraints": [{"server": "deadline"}]}, {"constraints": [{"latency": 1, "bytes": 2}]},
                                     {"constraints": ["latency"]}, {"constraints": [{"latency": True}]}, {"retry_s": 0}, {"guard_s": -1},
                                     {"codec": "nope"}, {"node": "moon"}, {"estimator": "oracle"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Spinn(Branchy(1).context, **options)  # type: ignore[arg-type]


def test_a_model_without_a_curve_is_refused_with_what_to_do() -> None:
    made = Branchy(1)
    with pytest.raises(ValueError, match="testbed models statistics"):
        Spinn(replace(made.context, models={"net": replace(made.info, exit_curve=())}))
