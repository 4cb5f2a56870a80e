"""DADS as a policy: modes by the rate of requests, agreement with the chain cut, graphs in their order of execution, its log."""

import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from testbed.errors import InputError
from testbed.inference.graph import GraphModel
from testbed.inference.zoo import resnet
from testbed.policies import Context, ModelInfo, NodeInfo, Observation, Probe, make_policy
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.chain import latencies_s
from testbed.policies.dads import Dads
from testbed.policies.partition import Partition, vertex_payloads
from testbed.schema.scenario import PolicySpec
from testbed.serving.plan import parse_steps

S = 1_000_000_000
RTT_S = 0.02
RATES = [10 ** (step / 20) for step in range(95, 160, 7)]  # those for which partitions are kept: 56 kbit/s to 79 Mbit/s


def context(edge_s: list[float], cloud_s: list[float], sizes: list[int], edges: tuple[tuple[int, int], ...] = (),
            live: list[int] | None = None) -> Context:
    """`sizes`: of the input, and of each stage's own output; `live`: bytes at each cut 1..N, in a graph."""
    n = len(edge_s)
    model = ModelInfo("net", tuple(f"s{i}" for i in range(n)), {"final": n - 1}, sizes[0], tuple(live or sizes[1:]), edges=edges,
                      vertex_bytes=tuple(sizes[1:]) if edges else ())
    nodes = {"device1": NodeInfo("device1", "device", {"net": tuple(edge_s)}), "edge1": NodeInfo("edge1", "edge", {"net": tuple(cloud_s)})}
    return Context("device1", {"device": "device1", "edge": "edge1"}, ("device", "edge"), {"net": model}, "net", 0.2, 1, nodes)


def taught(policy: Dads, bps: float) -> Dads:
    policy.observe_probe(Probe("edge1", S, RTT_S, 10_000, RTT_S + 80_000 / bps))
    return policy


def cut_of(policy: Dads, t_s: float = 2.0) -> int:
    plan = policy.decide(Observation(round(t_s * S), "r"))
    parse_steps(plan.wire())
    stages = [i for s in plan.steps for i in range(s.start, s.stop)]
    assert stages == list(range(policy.context.models["net"].num_stages))
    return sum(s.stop - s.start for s in plan.steps if s.node == "device1")


def chain(draw: random.Random, n: int) -> Context:
    edge = [draw.uniform(0.001, 0.05) for _ in range(n)]
    return context(edge, [t / draw.uniform(2, 20) for t in edge], [draw.randrange(40, 60_000) for _ in range(n + 1)])


def test_on_a_chain_the_light_mode_is_the_chain_cut_round_trip_included() -> None:
    draw = random.Random(1)
    for _ in range(120):
        c, bps = chain(draw, draw.randrange(1, 9)), draw.choice(RATES)
        model, device, edge = c.models["net"], c.compute["device1"].stage_s["net"], c.compute["edge1"].stage_s["net"]
        n = model.num_stages
        costs = latencies_s(device, edge, [8 * (model.bytes_at(j) + MESSAGE_BYTES) / bps + RTT_S for j in range(n)] + [0.0])
        policy = taught(Dads(c, mode="light"), bps)
        assert costs[cut_of(policy)] == pytest.approx(min(costs))
        assert policy.scores()["predicted_s"] == pytest.approx(min(costs)) == policy.scores()["optimum_s"]
        assert policy.scores()["exact"] == 1


def test_heavy_on_a_chain_is_within_three_times_the_least_largest_stage() -> None:
    draw = random.Random(2)
    for _ in range(60):
        c, bps = chain(draw, draw.randrange(1, 9)), draw.choice(RATES)
        model, device, edge = c.models["net"], c.compute["device1"].stage_s["net"], c.compute["edge1"].stage_s["net"]
        n = model.num_stages
        longest = [max(sum(device[:j]), 8 * (model.bytes_at(j) + MESSAGE_BYTES) / bps if j < n else 0, sum(edge[j:])) for j in range(n + 1)]
        policy = taught(Dads(c, mode="heavy"), bps)
        assert longest[cut_of(policy)] <= 3 * min(longest) + 8 * MESSAGE_BYTES / bps
        assert policy.scores()["predicted_s"] == pytest.approx(longest[int(policy.scores()["cut"])])


def test_the_mode_follows_the_rate_of_requests() -> None:
    # alone the server is best (0.1 + 0.19 s); at 5.5 per second only the split's stages of 0.175 s keep up; at 8 nothing does
    c = context([0.175, 0.5], [0.1, 0.09], [12_000, 3000, 40])
    cuts = {}
    for frame_rate in (1, 5, 5.5, 8):
        policy = taught(Dads(c, frame_rate=frame_rate), 12_600 * 8 / 0.1)
        cuts[frame_rate] = (cut_of(policy), policy.scores()["heavy"], policy.scores()["overloaded"])
    assert cuts == {1: (0, 0, 0), 5: (0, 0, 0), 5.5: (1, 1, 0), 8: (1, 1, 1)}


def test_the_rate_of_requests_is_measured_from_scheduled_instants() -> None:
    c = context([0.175, 0.5], [0.1, 0.09], [12_000, 3000, 40])
    policy = taught(Dads(c), 12_600 * 8 / 0.1)
    for i in range(40):  # decided late, and unevenly; scheduled every 0.125 s
        late_s = 0.05 * (i % 3)
        policy.decide(Observation(round((10 + i / 8 + late_s) * S), f"r{i}", elapsed_s=late_s))
        assert policy.scores()["requests_per_s"] == pytest.approx(8 if i else 0)
    assert policy.scores()["heavy"] == 1
    for i in range(40):
        policy.decide(Observation((100 + 10 * i) * S, f"q{i}"))
    assert policy.scores()["requests_per_s"] == pytest.approx(0.1) and policy.scores()["heavy"] == 0


DIAMOND = ((-1, 0), (0, 1), (0, 2), (1, 3), (2, 3))


def test_a_split_that_no_prefix_of_the_order_runs_is_replaced_by_the_best_prefix_and_logged() -> None:
    # the best is {0, 2}: 2 shrinks its tensor and is cheap on the device, 1 is not; but 1 comes before 2
    c = context([0.001, 1.0, 0.001, 1.0], [1.0, 0.001, 1.0, 0.001], [90_000, 20_000, 20_000, 40, 40], DIAMOND, [20_000, 40_000, 20_040, 40])
    bps = RATES[5]
    policy = taught(Dads(c, mode="light"), bps)
    cut = cut_of(policy)
    scores = policy.scores()
    optimum = 0.002 + 0.002 + 8 * (20_000 + 40 + MESSAGE_BYTES) / bps + RTT_S
    assert scores["exact"] == 0 and scores["optimum_s"] == pytest.approx(optimum)
    prefixes = [2.002, 0.001 + 1.002 + 8 * 20_600 / bps + RTT_S, 1.001 + 1.001 + 8 * 40_600 / bps + RTT_S,
                1.002 + 0.001 + 8 * (20_040 + 600) / bps + RTT_S, 2.002]
    prefixes[0] += 8 * 90_600 / bps + RTT_S
    assert scores["predicted_s"] == pytest.approx(min(prefixes)) == pytest.approx(prefixes[cut])


def test_in_a_graph_a_codec_shrinks_each_output_as_it_does_the_cut_behind_it() -> None:
    c = context([1, 1, 1, 1], [1, 1, 1, 1], [8000, 4000, 2000, 400, 40], DIAMOND, [4000, 6000, 2400, 40])
    model = replace(c.models["net"], wire_bytes={"int8": (2000, 1000, 1500, 600, 10), "png": (700, 4000, 6000, 2400, 40)})
    assert vertex_payloads(model) == [8000, 4000, 2000, 400, 40]
    assert vertex_payloads(model, "int8", "png") == [700, 1000, 500, 100, 10]


def test_deciding_at_a_known_rate_is_fast_and_the_same_twice() -> None:
    draw = random.Random(3)
    n = 70
    edges = tuple(sorted({(v - 1, v) for v in range(n)} | {(v - 3, v) for v in range(6, n, 4)}))
    c = context([draw.uniform(0.001, 0.01) for _ in range(n)], [draw.uniform(0.0001, 0.001) for _ in range(n)],
                [draw.randrange(1000, 60_000) for _ in range(n + 1)], edges)
    plans, spent = [], []
    for _ in range(2):
        policy = Dads(c, frame_rate=30)
        plans.append([taught(policy, bps).decide(Observation(2 * S, "r")).label for bps in RATES[2:6]])
        for i in range(100):
            begin = time.perf_counter()
            policy.decide(Observation((3 + i) * S, "r"))
            spent.append(time.perf_counter() - begin)
    assert plans[0] == plans[1] and sorted(spent)[100] < 0.001


def test_the_best_split_of_a_residual_network_is_a_prefix_of_its_order_of_execution() -> None:
    torch.set_num_threads(1)
    network = nn.Sequential(*resnet.build().eval().stages)
    graph = GraphModel(network, torch.rand(3, 3, 32, 32), check=False)
    edges, sizes = graph.dependencies()
    assert sum(a >= 0 and b - a > 1 for a, b in edges) >= 9  # the skip connections
    macs, cuts = graph.macs(), set()
    for slow in (3, 30):
        for bps in (1e3, 1e5, 1e6, 4e6, 3e7, 1e9):
            p = Partition(tuple(edges), tuple(slow * (m / 3e10 + 5e-6) for m in macs), tuple(m / 3e10 + 5e-6 for m in macs),
                          tuple(8 * size / bps for size in (12_288, *sizes)))
            found = p.light()
            assert p.is_closed(found)
            cuts.add(p.best_prefix(longest=False))
            assert p.stages(p.prefix(p.best_prefix(longest=False))).total_s == pytest.approx(p.stages(found).total_s)
    assert {0, graph.num_stages} <= cuts


@pytest.mark.parametrize(("options", "says"), [
    ({"mode": "fast"}, "auto"), ({"frame_rate": 0}, "frame_rate"), ({"node": "moon"}, "edge"), ({"codec": "zip"}, "codec"),
    ({"estimator": "x"}, "kalman"), ({"model": "other"}, "other"), ({"frame_rate": -1}, "frame_rate"), ({"colour": 1}, "colour")])
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        make_policy(PolicySpec(name="mine", policy="dads", options=options), context([0.1], [0.1], [100, 40]))
    assert caught.value.key == "policies.mine.options"
