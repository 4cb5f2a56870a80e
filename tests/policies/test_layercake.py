"""LayerCake as a policy: what it sees becomes variants, what it picks becomes a plan; probes, failures, backups, baselines."""

import itertools
from dataclasses import replace

import pytest

from testbed.errors import InputError
from testbed.policies import (
    Computation,
    Context,
    ModelInfo,
    NodeInfo,
    NodeState,
    Observation,
    Outcome,
    Plan,
    Probe,
    Step,
    Transfer,
    make_policy,
)
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.knowledge import from_json, to_json
from testbed.policies.layercake import LayerCake
from testbed.policies.selection import Choice, layercake
from testbed.schema.scenario import PolicySpec

SECOND = 1_000_000_000
LADDER = {"tiny": (0.5, 0.02), "mid": (0.7, 0.06), "big": (0.9, 0.4)}  # accuracy, device seconds; the cloud is ten times as fast
MODELS = {name: ModelInfo(name, ("a", "b"), {"final": 1}, 10_000, (500, 40), exit_accuracy={"final": accuracy})
          for name, (accuracy, _) in LADDER.items()}
CONTEXT = Context(
    "device1", {"device": "device1", "edge": "edge1", "cloud": "cloud1"}, ("device", "edge", "cloud"), MODELS, "tiny", 1.0, 1,
    {node: NodeInfo(node, tier, {name: (s / speed / 2,) * 2 for name, (_, s) in LADDER.items()})
     for node, tier, speed in (("device1", "device", 1), ("edge1", "edge", 2), ("cloud1", "cloud", 10))})
ALL = {"device_models": list(LADDER), "remote": {"cloud": list(LADDER)}, "resize_s": 0.0}
COUNT = itertools.count()


def policy(**options: object) -> LayerCake:
    return LayerCake(CONTEXT, **{**ALL, **options})  # type: ignore[arg-type]


def seen(deadline_s: float, t_ns: int = 0, **more: object) -> Observation:
    return Observation(t_ns, f"r{next(COUNT)}", deadline_s=deadline_s, **more)  # type: ignore[arg-type]


def finished(observation: Observation, plan: Plan, t_ns: int, **more: object) -> Outcome:
    values: dict[str, object] = {"status": "ok", "latency_s": 0.1, "exit_id": "final", "exit_confidence": 1.0,
                                 "final_node": plan.steps[0].node, "t_ns": t_ns, **more}
    return Outcome(observation.request_id, plan, **values)  # type: ignore[arg-type]


def ask(chooser: LayerCake, observation: Observation) -> Plan:
    """Decide, and end the request at once, so that nothing is busy."""
    plan = chooser.decide(observation)
    chooser.observe(finished(observation, plan, observation.t_ns))
    return plan


def probe(chooser: LayerCake, rtt_s: float, bps: float, t_ns: int = 0) -> None:
    chooser.observe_probe(Probe("cloud1", t_ns, rtt_s, 100_000, rtt_s + 8 * 100_000 / bps))


def expected_cloud_s(model: str, rtt_s: float, bps: float) -> float:
    return LADDER[model][1] / 10 + rtt_s + 8 * (10_000 + MESSAGE_BYTES) / bps


def test_the_plan_is_the_selection_over_what_each_variant_is_expected_to_take() -> None:
    """Oracle: times computed here by hand, for budgets on both sides of every threshold."""
    rtt_s, bps = 0.05, 8e6
    for faithful in (False, True):
        chooser = policy(faithful=faithful)
        for _ in range(3):
            probe(chooser, rtt_s, bps)
        for budget_s in (0.001, 0.02, 0.0251, 0.03, 0.07, 0.0751, 0.08, 0.085, 0.1, 0.1249, 0.13, 0.6):
            plan = ask(chooser, seen(budget_s))
            times = {("device1", m): s for m, (_, s) in LADDER.items()}
            times |= {("cloud1", m): expected_cloud_s(m, rtt_s, bps) for m in LADDER}
            in_time = [k for k, t in times.items() if t <= 0.8 * budget_s]
            local_in_time = any(s <= budget_s for _, s in LADDER.values())
            if in_time and (local_in_time or not faithful):
                best = max(LADDER[m][0] for _, m in in_time)
                expected = min((k for k in in_time if LADDER[k[1]][0] == best), key=lambda k: times[k])
            else:
                expected = ("device1", "tiny")
            assert (plan.steps[0].node, plan.steps[0].model) == expected, budget_s
            assert chooser.scores()["expected_s"] == pytest.approx(times[expected])
            assert plan.steps == (Step(*expected, 0, 2),)


def test_the_flaw_with_slow_local_models_is_mended_by_default() -> None:
    probes = {"remote": {"cloud": ["big"]}, "device_models": ["big"]}  # 0.4 s on the device, about 0.1 s in the cloud
    mended, faithful = policy(**probes), policy(**probes, faithful=True)
    for chooser in (mended, faithful):
        probe(chooser, 0.05, 8e6)
    assert ask(mended, seen(0.2)).steps[0].node == "cloud1"
    assert ask(faithful, seen(0.2)).steps[0].node == "device1"


def test_estimates_halve_their_error_with_each_probe_and_the_choice_follows_a_fall_of_the_rate() -> None:
    chooser = policy()
    for _ in range(4):
        probe(chooser, 0.02, 8e6)
    assert ask(chooser, seen(0.2)).steps[0] == Step("cloud1", "big", 0, 2)
    errors = []
    for _ in range(6):
        probe(chooser, 0.02, 0.2e6)
        errors.append(chooser.paths["cloud1"].rate.bps - 0.2e6)
    assert all(b == pytest.approx(a / 2) for a, b in itertools.pairwise(errors))
    assert ask(chooser, seen(0.2)).steps[0] == Step("device1", "mid", 0, 2)


def test_a_probe_that_is_faster_than_the_round_trip_changes_nothing() -> None:
    chooser = policy()
    probe(chooser, 0.02, 8e6)
    before = chooser.paths["cloud1"].rate.bps
    chooser.observe_probe(Probe("cloud1", 1, 0.02, 100_000, 0.01))
    chooser.observe_probe(Probe("cloud1", 2, None, 100_000, None))
    chooser.observe_probe(Probe("nowhere", 3, 0.02, 100_000, 0.5))
    assert chooser.paths["cloud1"].rate.bps == before


def test_transfers_count_only_when_passive() -> None:
    for passive in (False, True):
        chooser = policy(passive=passive)
        observation = seen(1.0)
        plan = chooser.decide(observation)
        chooser.observe(finished(observation, plan, 1, transfers=(Transfer("device1", "cloud1", 100_000, 10.0),)))
        assert (chooser.paths["cloud1"].rate.samples > 0) is passive


def test_a_remote_variant_that_failed_is_skipped_for_the_window_while_the_next_one_serves() -> None:
    chooser = policy()
    probe(chooser, 0.02, 8e6)
    first = seen(0.2, SECOND)
    plan = chooser.decide(first)
    assert plan.steps[0].model == "big" and plan.fallback == (Step("device1", "tiny", 0, 2),)
    chooser.observe(finished(first, plan, 2 * SECOND, used_fallback=True, error_type="timeout", final_node="device1"))
    assert ask(chooser, seen(0.2, 12 * SECOND - 1)).steps[0] == Step("cloud1", "mid", 0, 2)
    assert ask(chooser, seen(0.2, 12 * SECOND)).steps[0] == Step("cloud1", "big", 0, 2)


def test_a_busy_variant_is_left_to_its_request() -> None:
    chooser = policy()
    probe(chooser, 0.02, 8e6)
    taken = [chooser.decide(seen(0.2)).steps[0] for _ in range(4)]
    assert [(s.node, s.model) for s in taken] == [("cloud1", "big"), ("cloud1", "mid"), ("device1", "mid"), ("cloud1", "tiny")]


def test_a_model_that_is_not_loaded_costs_its_loading() -> None:
    info = {**CONTEXT.compute, "device1": replace(CONTEXT.compute["device1"], load_s={"mid": 0.5})}
    chooser = LayerCake(replace(CONTEXT, compute=info), ["tiny", "mid"], {"cloud": []})
    assert ask(chooser, seen(0.1)).steps[0].model == "mid"
    assert ask(chooser, seen(0.1, nodes={"device1": NodeState(resident=("tiny",))})).steps[0].model == "tiny"


def test_measured_latencies_replace_the_profile_and_the_network_is_counted_once() -> None:
    chooser = policy(prior_runs=1)
    probe(chooser, 0.05, 8e6)
    for _ in range(20):
        observation = seen(0.6)
        plan = chooser.decide(observation)
        chooser.observe(finished(observation, plan, 0, latency_s=5.0,
                                 computations=(Computation("cloud1", "big", 0, 2, 0.1, 0.2),)))
    variant = next(v for v in chooser.variants(seen(1)) if (v.node, v.model) == ("cloud1", "big"))
    assert variant.latency_s == pytest.approx(0.3)
    assert variant.network_s == pytest.approx(0.05 + 8 * (10_000 + MESSAGE_BYTES) / 8e6)


def test_backups_start_at_the_deadline_or_at_the_published_instant_and_only_behind_a_remote_step() -> None:
    for options, after_s in (({"backup": "deadline"}, 0.5), ({"backup": "proactive"}, 1.1 * (0.5 - 0.02)),
                             ({"backup": "proactive", "backup_factor": 0.9}, 0.9 * (0.5 - 0.02)), ({}, None)):
        chooser = policy(**options)
        probe(chooser, 0.02, 8e6)
        plan = ask(chooser, seen(0.6, elapsed_s=0.1))
        assert plan.steps[0].node == "cloud1"
        assert plan.backup_after_s == (None if after_s is None else pytest.approx(after_s))
        assert plan.backup == (() if after_s is None else (Step("device1", "tiny", 0, 2),))
        local = ask(chooser, seen(0.07, elapsed_s=0.03))
        assert local.steps[0].node == "device1" and not local.backup and not local.fallback


def test_the_baselines_stay_where_they_belong() -> None:
    device, remote = policy(only="device"), policy(only="remote")
    cloud = policy(rule="in-cloud")
    for chooser in (remote, cloud):
        probe(chooser, 0.05, 8e6)
    for budget_s in (0.01, 0.05, 0.1, 0.5, 2.0):
        assert ask(device, seen(budget_s)).steps[0].node == "device1"
        assert {ask(c, seen(budget_s)).steps[0].node for c in (remote, cloud)} == {"cloud1"}
    assert device.probes is None and remote.probes is not None
    limit_s = expected_cloud_s("big", 0.05, 8e6)
    assert ask(cloud, seen(limit_s + 1e-6)).steps[0].model == "big" != ask(cloud, seen(limit_s - 1e-6)).steps[0].model
    assert ask(remote, seen(limit_s + 1e-6)).steps[0].model != "big"  # it keeps the margin


def test_the_least_accuracy_of_a_request_is_kept_where_it_can_be() -> None:
    chooser = policy()
    probe(chooser, 0.05, 8e6)
    assert ask(chooser, seen(0.08)).steps[0].model == "mid"
    assert ask(chooser, seen(0.08, min_accuracy=0.8)).steps[0].model == "tiny"  # none is feasible: the fastest
    assert ask(chooser, seen(0.6, min_accuracy=0.8)).steps[0].model == "big"


def test_decisions_are_reproduced_from_their_json_log() -> None:
    chooser, again = policy(backup="proactive"), policy(backup="proactive")
    for i in range(40):
        observation = seen(0.05 + (i * 37 % 23) / 40, i * SECOND // 3)
        plan = chooser.decide(observation)
        assert again.decide(from_json(Observation, to_json(observation))) == plan
        assert again.scores() == chooser.scores()
        outcome = finished(observation, plan, (i + 1) * SECOND // 3, status="ok" if i % 5 else "failed", computations=(
            Computation(plan.steps[0].node, plan.steps[0].model, 0, 2, 0.0, 0.01 * (1 + i % 4)),))
        sample = Probe("cloud1", i, 0.02 + i % 3 / 100, 100_000, 0.2 + i % 7 / 10)
        for one, copied in ((chooser, False), (again, True)):
            one.observe(from_json(Outcome, to_json(outcome)) if copied else outcome)
            one.observe_probe(from_json(Probe, to_json(sample)) if copied else sample)


def test_an_input_codec_is_what_travels_and_what_nodes_prepare_for() -> None:
    wire = {name: replace(info, wire_bytes={"uint8": (2_500, 0, 0)}) for name, info in MODELS.items()}
    chooser = LayerCake(replace(CONTEXT, models=wire), ["tiny"], {"cloud": ["big"]}, resize_s=0.0, input_codec="uint8")
    probe(chooser, 0.05, 8e6)
    assert ask(chooser, seen(1.0)).steps == (Step("cloud1", "big", 0, 2, "uint8"),)
    assert chooser.scores()["network_s"] == pytest.approx(0.05 + 8 * (2_500 + MESSAGE_BYTES) / 8e6)
    assert ask(chooser, seen(0.03)).steps == (Step("device1", "tiny", 0, 2),)
    foreseen = {plan.steps for plan in chooser.plans()}
    assert foreseen == {(Step("device1", "tiny", 0, 2),), (Step("cloud1", "big", 0, 2, "uint8"),)}


def test_several_remote_tiers_are_all_considered() -> None:
    chooser = LayerCake(CONTEXT, ["tiny"], {"edge": ["mid"], "cloud": ["big"]}, resize_s=0.0)
    chooser.observe_probe(Probe("edge1", 0, 0.005, 100_000, 0.06))
    assert [ask(chooser, seen(t)).steps[0].node for t in (0.03, 0.09, 0.9)] == ["device1", "edge1", "cloud1"]
    assert chooser.models() == ("tiny", "mid", "big")
    variants = chooser.variants(seen(0.9))
    assert layercake(variants, 0.9, allowance_s=0.0) == Choice(variants[2], True)


@pytest.mark.parametrize(("options", "says"), [
    ({"input_codec": "zip"}, "codec"), ({"device_models": ["nothing"]}, "no model 'nothing'"), ({"remote": {"fog": ["tiny"]}}, "not a remote tier"),
    ({"remote": {"device": ["tiny"]}}, "not a remote tier"), ({"only": "cloud"}, "only"), ({"rule": "best"}, "rule"),
    ({"backup": "always"}, "backup"), ({"margin": 0}, "margin"), ({"device_models": ["tiny", "tiny"]}, "twice"),
    ({"device_models": "tiny"}, "lists"), ({"device_models": [], "remote": {}}, "no model"), ({"initial_bps": 0}, "initial_bps"),
    ({"only": "remote", "backup": "deadline"}, "backup runs on the device"), ({"resize_s": -1}, "resize_s"), ({"speed": 1}, "speed"),
])
def test_bad_options_are_refused_with_the_key_that_holds_them(options: dict[str, object], says: str) -> None:
    spec = PolicySpec(name="mine", policy="layercake", options=options)
    with pytest.raises(InputError, match=says) as caught:
        make_policy(spec, CONTEXT)
    assert caught.value.key == "policies.mine.options"
