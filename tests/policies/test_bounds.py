"""Candidates, clairvoyant and random, and what the oracle may say: brute force on small systems, and an order that must hold."""

from itertools import pairwise, product

import numpy as np
import pytest

from testbed.policies import Context, ExitPoint, ModelInfo, NodeInfo, Observation, Outcome, Plan, Policy, Step
from testbed.policies.candidates import ANSWER_BYTES, REQUEST_OVERHEAD_BYTES, Queues, alone_s, candidates, price
from testbed.policies.check import check_policy
from testbed.policies.clairvoyant import Clairvoyant
from testbed.policies.neurosurgeon import Neurosurgeon
from testbed.policies.random_plan import RandomPlan
from testbed.policies.static import Fixed
from testbed.policies.truth import Capacity, Truth
from testbed.serving.plan import parse_steps
from testbed.traces import Trace

CURVE = tuple(ExitPoint(t, {"early": e, "final": 1 - e}, {"early": 0.9, "final": 0.8}, a)
              for t, e, a in ((0.5, 0.8, 0.80), (0.9, 0.3, 0.85)))
NET = ModelInfo("net", ("a", "b", "c", "d"), {"early": 1, "final": 3}, 12_000, (40_000, 9_000, 4_000, 40),
                exit_accuracy={"early": 0.7, "final": 0.86}, exit_curve=CURVE,
                wire_bytes={"raw": (12_000, 40_000, 9_000, 4_000, 40), "int8": (3_000, 40_000, 3_000, 1_000, 40)})
SPEED = {"device1": 10.0, "edge1": 2.0, "cloud1": 1.0}
STAGE_S, HEAD_S = (0.002, 0.003, 0.004, 0.001), {"early": 0.0005, "final": 0.0001}


def context(seed: int = 1) -> Context:
    nodes = {n: NodeInfo(n, n[:-1], {"net": tuple(k * s for s in STAGE_S)}, {"net": {e: k * s for e, s in HEAD_S.items()}})
             for n, k in SPEED.items()}
    return Context("device1", {"device": "device1", "edge": "edge1", "cloud": "cloud1"}, ("device", "edge", "cloud"),
                   {"net": NET}, "net", 0.2, seed, nodes)


def lte(seed: int) -> Trace:
    """40 s of 0 to 12 Mbit/s in pieces of 200 ms, a fifth of them silent."""
    rng = np.random.default_rng(seed)
    bits = (rng.uniform(0, 12e6, 200) * 0.2 * (rng.random(200) > 0.2)).astype(np.int64)
    return Trace(np.arange(201) * 200_000_000, bits)


def truth(seed: int = 1, outages: dict[str, tuple[tuple[float, float], ...]] | None = None) -> Truth:
    sides = {("device1", "edge1"): Capacity.of_trace(lte(seed), 60.0, delay_s=0.01),
             ("edge1", "device1"): Capacity.of_trace(lte(seed + 50), 60.0, delay_s=0.01),
             ("edge1", "cloud1"): Capacity.of_rate(50e6, 0.02), ("cloud1", "edge1"): Capacity.of_rate(50e6, 0.02)}
    path = ("device1", "edge1", "cloud1")
    ways = {(path[a], path[b]): path[a:b + 1] if a < b else path[b:a + 1][::-1] for a, b in product(range(3), repeat=2) if a != b}
    return Truth(0, sides, ways, outages or {})


def test_candidates_are_all_ways_to_lay_stages_over_nodes_in_order() -> None:
    """One node: 3. Two of three nodes: 3 pairs x 3 cuts. Three nodes: 3 pairs of cuts. Shortened to two stages: 3 + 3 x 1."""
    found = candidates(context())
    assert len(found) == len({c.plan.steps for c in found}) == 15 + 6
    assert len(candidates(context(), min_accuracy=0.86)) == 15
    assert len(candidates(context(), chains=False)) == 3 + 2 * 3 + 3 + 2
    assert len(candidates(context(), thresholds=[0.5, 0.9, 0.7])) == 3 * 15 + 6  # the catalogue knows nothing of 0.7
    for candidate in candidates(context(), codecs=["raw", "int8"], thresholds=[0.9]):
        steps = parse_steps(candidate.plan.wire())
        shortened = candidate.accuracy == 0.7
        assert [i for s in steps for i in range(s.start, s.stop)] == ([0, 1] if shortened else [0, 1, 2, 3])
        assert sum(b.chance for b in candidate.branches) == pytest.approx(1)
        assert all(s.codec == "raw" or NET.bytes_at(s.start, s.codec) < NET.bytes_at(s.start) for s in candidate.plan.steps)
    assert {c.accuracy for c in candidates(context(), thresholds=[0.5, 0.9], min_accuracy=0.85)} == {0.86, 0.85}


def test_the_price_of_a_plan_is_its_stages_heads_and_messages() -> None:
    steps = (Step("device1", "net", 0, 2), Step("cloud1", "net", 2, 4, "int8"))
    (branch,) = price(Plan("p", steps), context()).branches
    assert sum(p.duration_s for p in branch.pieces) == pytest.approx(10 * 0.005 + 1 * (0.005 + 0.0001))
    assert [(p.src, p.dst, p.size_bytes) for p in branch.pieces if p.dst] == [
        ("device1", "cloud1", 3_000 + REQUEST_OVERHEAD_BYTES), ("cloud1", "device1", ANSWER_BYTES)]


def test_an_exit_ends_its_branch_before_anything_is_sent() -> None:
    asked = next(c for c in candidates(context(), thresholds=[0.9])
                 if c.plan.steps[0].exit and [s.stop for s in c.plan.steps] == [2, 4] and c.plan.steps[1].node == "edge1")
    early, final = asked.branches
    assert (early.exit_id, early.chance, final.exit_id, final.chance) == ("early", 0.3, "final", 0.7)
    assert [p.dst for p in early.pieces] == [None]
    assert early.pieces[0].duration_s == pytest.approx(10 * (0.005 + 0.0005))
    one, other = (alone_s(asked, truth(), [1e9], exit_id) for exit_id in ("early", "final"))
    assert alone_s(asked, truth(), [1e9]) == pytest.approx(0.3 * one + 0.7 * other)


def test_a_model_shortened_to_an_exit_has_its_head_and_nothing_behind_it() -> None:
    found = next(c for c in candidates(context()) if c.name == "device[0:1]>cloud[1:2]!")
    (branch,) = found.branches
    assert (branch.exit_id, found.accuracy) == ("early", 0.7)
    assert [p.duration_s for p in branch.pieces if p.dst is None] == pytest.approx([10 * 0.002, 0.003 + 0.0005])


def by_hand_s(plan: Plan, world: Truth, at_ns: int) -> float:
    """Latency alone: each step's transfer, then its compute, then the answer on its way back."""
    t, node = at_ns, "device1"
    for step in plan.steps:
        if step.node != node:
            t += round(world.transfer_s(node, step.node, NET.bytes_at(step.start, step.codec) + REQUEST_OVERHEAD_BYTES, t) * 1e9)
            node = step.node
        heads = HEAD_S["final"] if step.stop == 4 else 0.0
        t += round(SPEED[node] * (sum(STAGE_S[step.start:step.stop]) + heads) * 1e9)
    nodes = list(dict.fromkeys(["device1", *(s.node for s in plan.steps)]))
    for i, (src, dst) in enumerate(pairwise(reversed(nodes))):
        t += round(world.transfer_s(src, dst, ANSWER_BYTES + 600 * i, t) * 1e9)
    return (t - at_ns) / 1e9


def test_the_latency_alone_is_what_adding_up_by_hand_gives() -> None:
    world = truth(2)
    for candidate in candidates(context(), codecs=["raw", "int8"], min_accuracy=0.86):
        for at_ns in (0, 3_333_333_333, 7_100_000_000):
            expected = by_hand_s(candidate.plan, world, at_ns)
            assert float(alone_s(candidate, world, at_ns)) == pytest.approx(expected, abs=1e-7)
            assert Queues().finish_ns(candidate, world, at_ns, commit=True) / 1e9 == pytest.approx(at_ns / 1e9 + expected, abs=1e-7)


def latencies(policy: Policy, world: Truth, instants: np.ndarray, told: Context) -> np.ndarray:
    """What a policy's requests take when every worker and link serves them first come, first served; it hears of each answer."""
    queues, out, open_outcomes = Queues(), [], []
    for i, t in enumerate(instants.tolist()):
        for outcome in sorted((o for o in open_outcomes if o.t_ns <= t), key=lambda o: o.t_ns):
            policy.observe(outcome)
            open_outcomes.remove(outcome)
        plan = policy.decide(Observation(int(t), f"r{i}", inflight=len(open_outcomes)))
        end = queues.finish_ns(price(plan, told), world, t, commit=True)
        out.append((end - t) / 1e9)
        open_outcomes.append(Outcome(f"r{i}", plan, "ok", out[-1], "final", 1.0, plan.steps[-1].node, int(end), True))
    return np.array(out)


@pytest.mark.parametrize("seed", range(4))
def test_oracle_then_clairvoyant_then_all_others_on_average(seed: int) -> None:
    told, world = context(seed), truth(seed)
    plans = candidates(told, min_accuracy=0.86)
    instants = np.cumsum(np.random.default_rng(seed).exponential(0.6e9, 60))
    oracle = np.stack([alone_s(c, world, instants) for c in plans]).min(axis=0)
    best = Clairvoyant(told)
    best.reveal(world)
    clairvoyant = latencies(best, world, instants, told)
    assert (clairvoyant >= oracle - 1e-6).all()
    others = {c.name: latencies(Fixed(told, c.plan), world, instants, told) for c in plans}
    others |= {"random": latencies(RandomPlan(told), world, instants, told),
               "neurosurgeon": latencies(Neurosurgeon(told), world, instants, told)}
    for name, values in others.items():
        assert (values >= oracle - 1e-6).all(), name
        assert oracle.mean() <= clairvoyant.mean() <= values.mean() + 1e-9, name


def test_requests_that_never_meet_are_served_as_the_oracle_says() -> None:
    told, world = context(), truth(4)
    policy = Clairvoyant(told)
    policy.reveal(world)
    instants = np.arange(10) * 3e9
    oracle = np.stack([alone_s(c, world, instants) for c in candidates(told, min_accuracy=0.86)]).min(axis=0)
    assert latencies(policy, world, instants, told) == pytest.approx(oracle, abs=1e-9)


def test_on_a_tiny_instance_the_oracle_bounds_every_sequence_of_plans() -> None:
    """Three requests at once, all 6^3 sequences of the plans over device and edge: none is faster than the oracle, request by
    request, and the clairvoyant policy is among the best fifth in total."""
    told, world = context(), truth(3)
    plans = [c for c in candidates(told, chains=False, min_accuracy=0.86) if all(s.node != "cloud1" for s in c.plan.steps)][:6]
    instants = np.array([1.0e9, 1.004e9, 1.03e9])
    oracle = np.stack([alone_s(c, world, instants) for c in candidates(told, min_accuracy=0.86)]).min(axis=0)
    totals = []
    for chosen in product(plans, repeat=3):
        queues = Queues()
        taken = [(queues.finish_ns(c, world, t, commit=True) - t) / 1e9 for c, t in zip(chosen, instants, strict=True)]
        assert (np.array(taken) >= oracle - 1e-9).all()
        totals.append(sum(taken))
    policy = Clairvoyant(told)
    policy.reveal(world)
    total = latencies(policy, world, instants, told).sum()
    assert oracle.sum() <= total
    assert total <= np.quantile(totals, 0.2)


def test_while_the_edge_is_down_the_clairvoyant_goes_elsewhere() -> None:
    told = context()
    up, down = truth(4), truth(4, {"edge1": ((0.0, 20e9),)})
    used = {}
    for name, world in (("up", up), ("down", down)):
        policy = Clairvoyant(told, codecs=["raw", "int8"])
        policy.reveal(world)
        plans = [policy.decide(Observation(int(t), "r", inflight=0)) for t in np.arange(0, 18e9, 1e9)]
        used[name] = {s.node for plan in plans for s in plan.steps}
    assert "edge1" in used["up"] and "edge1" not in used["down"]


def test_random_draws_every_plan_about_equally_often_and_alike_under_a_seed() -> None:
    told = context(7)
    policy, again, other = RandomPlan(told), RandomPlan(told), RandomPlan(context(8))
    drawn = [policy.decide(Observation(i, "r")).name for i in range(3000)]
    assert drawn == [again.decide(Observation(i, "r")).name for i in range(3000)]
    assert drawn != [other.decide(Observation(i, "r")).name for i in range(3000)]
    counts = np.array([drawn.count(c.name) for c in candidates(told, min_accuracy=0.86)])
    expected = 3000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-square, 14 degrees of freedom, one in a thousand


@pytest.mark.parametrize("policy", [Clairvoyant, RandomPlan])
def test_both_conform(policy: type[Policy]) -> None:
    report = check_policy(policy, context=context())
    assert report.ok, str(report)


@pytest.mark.parametrize(("options", "says"), [({"models": ["nett"]}, "nett"), ({"thresholds": [0.7]}, "0.5, 0.9"),
                                               ({"codecs": "raw"}, "list"), ({"input_codecs": ["mp3"]}, "mp3")])
def test_options_that_cannot_be_are_refused(options: dict[str, object], says: str) -> None:
    for policy in (Clairvoyant, RandomPlan):
        with pytest.raises(ValueError, match=says):
            policy(context(), **options)  # type: ignore[arg-type]
