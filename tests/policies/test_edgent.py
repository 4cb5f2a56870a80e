"""Edgent: equals enumeration, follows the deadline, ends at the exit it names, and finds a change of the network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from testbed.policies import ExitRule, Observation, Outcome, Plan, Probe, Transfer
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.edgent import STATES_BPS, Edgent, nearest_state
from testbed.serving.plan import parse_steps
from tests.policies.branchy import CODEC, Branchy


def enumeration(made: Branchy, bps: float, rtt_s: float, deadline_s: float, packed: bool) -> tuple[int, int, float]:
    """(stage of the exit, cut, latency): the paper's search, from the most accurate exit on, written out."""
    found = {}
    for name, after in made.exits.items():
        options = []
        for cut in range(after + 2):
            latency = sum(made.device_s[:cut]) + sum(made.server_s[cut:after + 1])
            latency += (made.device_head_s if cut == after + 1 else made.server_head_s)[name]
            if cut <= after:
                size = made.packed[cut] if packed and cut else made.raw[cut]
                latency += 8 * (size + MESSAGE_BYTES) / bps + rtt_s
            options.append((latency, cut))
        latency, cut = min(options)
        found[name] = (after, cut, latency)
    for name in sorted(made.exits, key=lambda n: -made.info.exit_accuracy[n]):
        if found[name][2] <= deadline_s:
            return found[name]
    return min(found.values(), key=lambda f: f[2])


def chosen(plan: Plan) -> tuple[int, int]:
    """(stage of the exit, cut) of a plan; the cut is where the device stops."""
    cut = plan.steps[0].stop if plan.steps[0].node == "device1" else 0
    return plan.steps[-1].stop - 1, cut


@pytest.mark.parametrize("seed", range(25))
def test_the_choice_is_that_of_the_enumeration_and_never_less_accurate_with_more_time(seed: int) -> None:
    made = Branchy(seed)
    rng = np.random.default_rng(seed)
    bps, rtt_s, packed = float(10 ** rng.uniform(4.7, 8)), float(rng.uniform(0, 0.1)), bool(seed % 2)
    policy = Edgent(made.context, initial_bps=bps, initial_rtt_s=rtt_s, codec=CODEC if packed else "raw")
    accuracies = []
    for deadline_s in np.geomspace(0.001, 2.0, 25):
        plan = policy.decide(Observation(0, "r", deadline_s=float(deadline_s)))
        after, cut, latency = enumeration(made, bps, rtt_s, deadline_s, packed)
        assert chosen(plan) == (after, cut)
        scores = policy.scores()
        assert scores["predicted_s"] == pytest.approx(latency) and scores["budget_s"] == deadline_s
        accuracies.append(scores["accuracy"])
        assert scores["accuracy"] == next(a for n, a in made.info.exit_accuracy.items() if made.exits[n] == after)
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == max(made.info.exit_accuracy.values()), "two seconds are enough for any of these models"


def test_time_spent_waiting_counts_against_the_deadline() -> None:
    made = Branchy(2)
    policy = Edgent(made.context)
    late = policy.decide(Observation(0, "r", deadline_s=1.0, elapsed_s=0.99))
    assert late == policy.decide(Observation(0, "r", deadline_s=0.01)) and policy.scores()["budget_s"] == pytest.approx(0.01)


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_can_be_executed_and_all_samples_leave_at_its_exit(seed: int) -> None:
    made = Branchy(seed)
    for bps in (5e4, 1e6, 1e8):
        for deadline_s in (0.01, 0.05, 1.0):
            plan = Edgent(made.context, initial_bps=bps, initial_rtt_s=0.001, codec=CODEC).decide(
                Observation(0, "r", deadline_s=deadline_s))
            steps = parse_steps(plan.wire())
            assert [i for s in steps for i in range(s.start, s.stop)] == list(range(steps[-1].stop))
            assert steps[-1].rule.kind == "always" and steps[-1].stop - 1 in made.exits.values()
            assert all(s.exit is None for s in plan.steps[:-1]) and plan.steps[-1].exit == ExitRule("always", 0.0)
            assert all(s.codec == CODEC for s in steps if s.node == "edge1" and s.start > 0)


def test_with_less_bandwidth_the_cut_moves_to_the_device() -> None:
    for seed in range(10):
        made = Branchy(seed)
        plans = [Edgent(made.context, initial_bps=bps, initial_rtt_s=0.0).decide(Observation(0, "r", deadline_s=10.0))
                 for bps in (1e3, 1e10)]
        assert {s.node for s in plans[0].steps} == {"device1"}
        assert chosen(plans[0])[1] >= chosen(plans[1])[1]


def uploads(policy: Edgent, mbit: float, count: int, t_s: float = 0.0) -> None:
    """Finished requests whose upload of 50 kB saw this rate; answers take 10 ms."""
    for i in range(count):
        duration_s = 50_000 * 8 / (mbit * 1e6) + 0.01
        policy.observe(Outcome("r", Plan("p", ()), "ok", 0.1, None, None, None, t_ns=round((t_s + i) * 1e9), transfers=(
            Transfer("edge1", "device1", 700, 0.01), Transfer("device1", "edge1", 50_000, duration_s))))


def test_dynamic_mode_plans_for_the_state_of_the_current_regime() -> None:
    """The plan of a state is that of the static search at this state's rate; a step of the network is found at once."""
    made = Branchy(4)
    policy = Edgent(made.context, mode="dynamic", probe_period_s=0)
    assert policy.probes is None
    for mbit, at_s in ((20.0, 0), (0.4, 40), (6.0, 80)):
        uploads(policy, mbit, 20, at_s)
        plan = policy.decide(Observation(round((at_s + 20) * 1e9), "r", deadline_s=0.2))
        scores = policy.scores()
        state = nearest_state(STATES_BPS, mbit * 1e6)
        assert scores["used_bps"] == state and abs(math.log(state / mbit / 1e6)) < 0.13 and scores["run_length"] == 20
        same = Edgent(made.context, initial_bps=state, initial_rtt_s=scores["rtt_s"])
        assert plan == same.decide(Observation(0, "r", deadline_s=0.2))
    assert policy.scores()["changes"] == 2


def test_one_lost_sample_does_not_end_a_regime_for_long() -> None:
    policy = Edgent(Branchy(4).context, mode="dynamic")
    uploads(policy, 10.0, 20)
    uploads(policy, 0.5, 1, 20)
    uploads(policy, 10.0, 2, 21)
    policy.decide(Observation(0, "r"))
    assert policy.scores()["used_bps"] == nearest_state(STATES_BPS, 10e6)


def test_a_busy_server_and_a_probe_are_learnt() -> None:
    made = Branchy(6)
    policy = Edgent(made.context)
    policy.observe_probe(Probe("edge1", 10**9, 0.02, 10_000, 0.02 + 0.08))
    policy.decide(Observation(10**9, "r"))
    assert policy.scores()["bandwidth_bps"] == pytest.approx(1e6) and policy.scores()["rtt_s"] == 0.02
    from testbed.policies import Computation

    idle_s = sum(made.server_s) + made.server_head_s["final"]
    policy.observe(Outcome("r", Plan("p", ()), "ok", 0.1, None, None, None, t_ns=2 * 10**9, computations=(
        Computation("edge1", "net", 0, made.stages, idle_s, 2 * idle_s),)))
    policy.decide(Observation(2 * 10**9, "r"))
    assert policy.scores()["k"] == pytest.approx(3)


def test_the_map_has_the_nearest_state() -> None:
    for bps in np.geomspace(1e4, 1e9, 200):
        found = nearest_state(STATES_BPS, float(bps))
        assert abs(math.log(found / bps)) == pytest.approx(min(abs(math.log(s / bps)) for s in STATES_BPS))


@pytest.mark.parametrize("options", [{"mode": "slow"}, {"estimator": "oracle"}, {"codec": "nope"}, {"node": "moon"}, {"model": "x"},
                                     {"mode": "dynamic", "states_bps": []}, {"mode": "dynamic", "states_bps": [2e6, 1e6]},
                                     {"mode": "dynamic", "hazard": 2}, {"initial_bps": 0}, {"probe_period_s": -1},
                                     {"codec": "bottleneck:net@1"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Edgent(Branchy(1).context, **options)  # type: ignore[arg-type]


def test_a_model_whose_accuracies_are_not_known_is_refused() -> None:
    made = Branchy(1)
    context = replace(made.context, models={"net": replace(made.info, exit_accuracy={})})
    with pytest.raises(ValueError, match="no accuracy of exit"):
        Edgent(context)
