"""Neurosurgeon's cut: exhaustive search, its limits in the rate, the energy objective, what it learns, regret of its predictor."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    Transfer,
    make_policy,
)
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.chain import best, energies_j, latencies_s
from testbed.policies.neurosurgeon import Neurosurgeon
from testbed.schema.scenario import PolicySpec
from testbed.serving.plan import parse_steps

S = 1_000_000_000
RTT_S = 0.04


def context(device_s: list[float], edge_s: list[float], tensors: list[int], input_bytes: int = 12_288) -> Context:
    """A device and an edge server with these times per stage; `tensors` are the bytes after each stage."""
    n = len(device_s)
    names = tuple(f"s{i}" for i in range(n))
    model = ModelInfo("net", names, {"final": n - 1}, input_bytes, tuple(tensors), wire_bytes={"int8": (input_bytes, *(b // 4 for b in tensors))})
    nodes = {"device1": NodeInfo("device1", "device", {"net": tuple(device_s)}), "edge1": NodeInfo("edge1", "edge", {"net": tuple(edge_s)})}
    return Context("device1", {"device": "device1", "edge": "edge1"}, ("device", "edge"), {"net": model}, "net", 0.2, 1, nodes)


def drawn(draw: random.Random, n: int) -> Context:
    device = [draw.uniform(0.001, 0.05) for _ in range(n)]
    return context(device, [t / draw.uniform(2, 20) for t in device], [draw.randrange(40, 80_000) for _ in range(n)])


def taught(policy: Neurosurgeon, bps: float) -> Neurosurgeon:
    """The policy after a probe of a path with this rate and RTT_S."""
    policy.observe_probe(Probe("edge1", S, RTT_S, 10_000, RTT_S + 80_000 / bps, NodeState()))
    return policy


def cut_of(policy: Neurosurgeon) -> int:
    plan = policy.decide(Observation(2 * S, "r"))
    assert parse_steps(plan.wire())
    stages = [i for s in plan.steps for i in range(s.start, s.stop)]
    assert stages == list(range(policy.context.models["net"].num_stages))
    return sum(s.stop - s.start for s in plan.steps if s.node == "device1")


def predicted_s(c: Context, cut: int, bps: float, k: float = 1.0) -> float:
    """The published sum for one cut, term by term."""
    model, device, edge = c.models["net"], c.compute["device1"].stage_s["net"], c.compute["edge1"].stage_s["net"]
    if cut == model.num_stages:
        return sum(device)
    return sum(device[:cut]) + 8 * (model.bytes_at(cut) + MESSAGE_BYTES) / bps + RTT_S + k * sum(edge[cut:])


def test_the_cut_is_that_of_an_exhaustive_search() -> None:
    draw = random.Random(4)
    for _ in range(300):
        c, bps = drawn(draw, draw.randrange(1, 12)), 10 ** draw.uniform(4.5, 8)
        n = c.models["net"].num_stages
        policy = taught(Neurosurgeon(c), bps)
        cut = cut_of(policy)
        costs = [predicted_s(c, j, bps) for j in range(n + 1)]
        assert costs[cut] == pytest.approx(min(costs))
        assert policy.scores()["predicted_s"] == pytest.approx(min(costs))
        assert policy.scores()["device_only_s"] == pytest.approx(costs[n]) and policy.scores()["offload_s"] == pytest.approx(costs[0])


def test_the_ends_of_the_chain_are_offloading_and_the_device_alone() -> None:
    c = context([0.1, 0.1], [0.005, 0.005], [4000, 40])
    assert cut_of(taught(Neurosurgeon(c), 1e9)) == 0
    plan = taught(Neurosurgeon(c), 1e3).decide(Observation(2 * S, "r"))
    assert [(s.node, s.start, s.stop) for s in plan.steps] == [("device1", 0, 2)]
    plan = taught(Neurosurgeon(c, input_codec="uint8"), 1e9).decide(Observation(2 * S, "r"))
    assert [(s.node, s.start, s.stop, s.codec) for s in plan.steps] == [("edge1", 0, 2, "uint8")]


def test_as_the_rate_falls_less_is_sent_and_the_end_is_the_device() -> None:
    draw = random.Random(9)
    for _ in range(100):
        c = drawn(draw, draw.randrange(2, 10))
        n = c.models["net"].num_stages
        sent = []
        for bps in (1e9, 1e8, 3e7, 1e7, 3e6, 1e6, 3e5, 1e5, 1e4, 1e3):
            cut = cut_of(taught(Neurosurgeon(c), bps))
            sent.append(0 if cut == n else c.models["net"].bytes_at(cut) + MESSAGE_BYTES)
        assert sent == sorted(sent, reverse=True) and sent[-1] == 0


def test_where_tensors_shrink_along_the_chain_the_cut_moves_to_the_device_as_the_rate_falls() -> None:
    c = context([0.005, 0.01, 0.02, 0.04, 0.08, 0.16], [0.001, 0.002, 0.004, 0.008, 0.016, 0.032], [10_000, 8_000, 5_000, 2_000, 600, 40])
    cuts = [cut_of(taught(Neurosurgeon(c), bps)) for bps in (1e9, 1e7, 4e6, 2e6, 1e6, 5e5, 2e5, 1e5, 2e4)]
    assert cuts == sorted(cuts) and cuts[0] == 0 and cuts[-1] == 6 and len(set(cuts)) > 3, cuts


def test_with_an_infinite_rate_only_computing_counts() -> None:
    draw = random.Random(5)
    for _ in range(50):
        n = draw.randrange(1, 9)
        device, server = ([draw.random() for _ in range(n)] for _ in range(2))
        costs = latencies_s(device, server, [0.0] * (n + 1))
        assert min(costs) == pytest.approx(min(sum(device[:j]) + sum(server[j:]) for j in range(n + 1)))
    assert best([2.0, 1.0, 1.0, 3.0]) == 2  # of equal cuts the one nearer to the device


def test_the_codec_of_tensors_moves_the_cut_into_the_model() -> None:
    c = context([0.002, 0.15], [0.001, 0.005], [12_000, 40])
    assert cut_of(taught(Neurosurgeon(c), 3e6)) == 0
    plan = taught(Neurosurgeon(c, codec="int8"), 3e6).decide(Observation(2 * S, "r"))
    assert [(s.start, s.stop, s.codec) for s in plan.steps] == [(0, 1, "raw"), (1, 2, "int8")]


def test_energy_is_that_of_computing_and_sending_and_its_cut_the_least() -> None:
    draw = random.Random(6)
    for _ in range(100):
        c, bps = drawn(draw, draw.randrange(1, 9)), 10 ** draw.uniform(5, 8)
        model, device = c.models["net"], c.compute["device1"].stage_s["net"]
        compute_w, uplink_w = draw.uniform(0, 5), draw.uniform(0, 5)
        policy = taught(Neurosurgeon(c, objective="energy", device_compute_w=compute_w, uplink_w=uplink_w), bps)
        cut = cut_of(policy)
        joule = [compute_w * sum(device[:j]) + (uplink_w * 8 * (model.bytes_at(j) + MESSAGE_BYTES) / bps if j < model.num_stages else 0)
                 for j in range(model.num_stages + 1)]
        assert joule[cut] == pytest.approx(min(joule)) and policy.scores()["predicted_j"] == pytest.approx(min(joule))
    assert energies_j([1.0, 2.0], [3.0, 4.0, 0.0], 2.0, 10.0) == [30.0, 42.0, 6.0]


def answered(policy: Neurosurgeon, t_ns: int, queue_s: float) -> None:
    server_s = policy.context.compute["edge1"].stage_s["net"]
    policy.observe(Outcome("r", Plan("p", ()), "ok", 0.1, "final", 1.0, "edge1", t_ns, computations=(
        Computation("edge1", "net", 0, len(server_s), queue_s, sum(server_s)), Computation("device1", "net", 0, 1, 9.0, 9.0)),
        transfers=(Transfer("device1", "edge1", 12_000, 0.02 + 12_000 * 8 / 1e8), Transfer("edge1", "device1", 300, 0.02))))


def test_a_loaded_server_pushes_work_to_the_device_until_the_load_is_old() -> None:
    c = context([0.06, 0.06], [0.01, 0.01], [4000, 40])
    policy = Neurosurgeon(c, load_half_life_s=5)
    for i in range(20):
        answered(policy, i * S, queue_s=0.0)
    assert policy.decide(Observation(20 * S, "r")).label == "edge1[0:2]" and policy.scores()["k"] == pytest.approx(1)
    for i in range(20, 30):
        answered(policy, i * S, queue_s=0.18)  # ten times what was predicted
    assert policy.decide(Observation(30 * S, "r")).label == "device1[0:2]" and policy.scores()["k"] > 5
    assert policy.decide(Observation(90 * S, "r")).label == "edge1[0:2]" and policy.scores()["k"] < 1.1
    unaware = Neurosurgeon(c, load=False)
    for i in range(10):
        answered(unaware, i * S, queue_s=0.18)
    assert unaware.decide(Observation(10 * S, "r")).label == "edge1[0:2]"


def test_without_observations_the_initial_values_decide_and_the_log_says_so() -> None:
    c = context([0.1, 0.1], [0.005, 0.005], [4000, 40])
    policy = Neurosurgeon(c, initial_bps=1e9, initial_rtt_s=0.001)
    assert policy.decide(Observation(0, "r")).label == "edge1[0:2]"
    assert policy.scores()["bandwidth_bps"] == 1e9 and policy.scores()["bandwidth_age_s"] == -1 and policy.scores()["rtt_s"] == 0.001
    assert Neurosurgeon(c, initial_bps=1e3).decide(Observation(0, "r")).label == "device1[0:2]"


def test_the_node_may_be_named_and_the_nearest_is_the_default() -> None:
    c = context([0.02], [0.001], [40])
    three = replace(c, nodes={**c.nodes, "cloud": "cloud1"}, tiers=("device", "edge", "cloud"),
                    compute={**c.compute, "cloud1": NodeInfo("cloud1", "cloud", {"net": (0.001,)})})
    where = [Neurosurgeon(three, initial_bps=1e9, initial_rtt_s=0, **options).decide(Observation(0, "r")).steps[0].node
             for options in ({}, {"node": "cloud"}, {"node": "cloud1"})]  # type: ignore[arg-type]
    assert where == ["edge1", "cloud1", "cloud1"]


def test_every_plan_that_it_decides_is_one_that_it_names_beforehand() -> None:
    c = drawn(random.Random(7), 6)
    policy = Neurosurgeon(c, codec="int8", input_codec="png")
    assert [p.label for p in policy.plans()] == [
        "edge1[0:6]", *(f"device1[0:{j}]>edge1[{j}:6]" for j in range(1, 6)), "device1[0:6]"]
    for bps in (1e4, 1e5, 1e6, 1e7, 1e8):
        assert taught(policy, bps).decide(Observation(2 * S, "r")) in policy.plans()


@pytest.mark.parametrize(("options", "says"), [
    ({"objective": "cost"}, "latency"), ({"objective": "energy"}, "uplink_w"), ({"node": "device"}, "edge"), ({"codec": "zip"}, "codec"),
    ({"codec": "bottleneck:net@1"}, "one cut"), ({"estimator": "oracle"}, "kalman"), ({"initial_bps": 0}, "initial_bps"),
    ({"slowdown": {"edge": 2}}, "regression"), ({"model": "other"}, "other"), ({"probe_period_s": -1}, "probe_period_s"),
    ({"objective": "energy", "device_compute_w": -1, "uplink_w": 1}, "power"), ({"colour": 1}, "colour"),
])
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    spec = PolicySpec(name="mine", policy="neurosurgeon", options=options)
    with pytest.raises(InputError, match=says) as caught:
        make_policy(spec, context([0.02], [0.001], [40]))
    assert caught.value.key == "policies.mine.options"


def regression_file(folder: Path, stages: list[float]) -> str:
    file = folder / "layers.json"
    file.write_text(json.dumps({"schema_version": 1, "machine": "m", "source": "s", "layers": {}, "stages": {"net": stages}}))
    return str(file)


def test_stage_times_come_from_a_regression_file_times_the_slowdown_of_the_tier(tmp_path: Path) -> None:
    c = context([1.0, 1.0], [1.0, 1.0], [4000, 40])
    file = regression_file(tmp_path, [0.001, 0.002])
    policy = Neurosurgeon(c, regression=file, slowdown={"device": 10, "edge": 2}, initial_bps=1e9, initial_rtt_s=0)
    policy.decide(Observation(0, "r"))
    assert policy.scores()["device_only_s"] == pytest.approx(0.03)
    assert policy.scores()["offload_s"] == pytest.approx(0.006, abs=2e-4)
    for options in ({"slowdown": {"moon": 2}}, {"slowdown": {"edge": 0}}):
        with pytest.raises(ValueError, match="slowdown"):
            Neurosurgeon(c, regression=file, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read"):
        Neurosurgeon(c, regression=str(tmp_path / "none.json"))


def test_regret_of_the_chosen_cut_is_bounded_by_the_predictors_error(tmp_path: Path) -> None:
    # times predicted within a factor 1 +- e: the chosen cut costs at most (1 + e) / (1 - e) of the measured best
    draw, e, regrets = random.Random(8), 0.2, []
    for _ in range(200):
        c, bps = drawn(draw, 8), 10 ** draw.uniform(5.5, 7.5)
        true = [predicted_s(c, j, bps) for j in range(9)]
        wrong = {node: replace(info, stage_s={"net": tuple(t * draw.uniform(1 - e, 1 + e) for t in info.stage_s["net"])})
                 for node, info in c.compute.items()}
        cut = cut_of(taught(Neurosurgeon(replace(c, compute=wrong)), bps))
        regrets.append(true[cut] / min(true) - 1)
    assert min(regrets) >= 0 and max(regrets) <= (1 + e) / (1 - e) - 1
    assert max(regrets) > 0  # the predictor is wrong enough to matter
