"""The policy for a running network: the analytic decisions when nothing overlaps, conformance whatever overlaps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from testbed.inference.exits import ExitRule as Rule
from testbed.policies.check import check_policy
from testbed.policies.knowledge import Observation, Outcome, Transfer
from testbed.policies.plan import ExitRule, Plan
from testbed.policies.rehearsal import made_up_context
from testbed.policies.token_bucket.bucket import Bucket, spend
from testbed.policies.token_bucket.mdp import Choices, solve
from testbed.policies.token_bucket.metric import Metric
from testbed.policies.token_bucket.policy import TokenBucket

CONTEXT = made_up_context()  # 10 classes, early exit after stage 2
BUCKET = Bucket.of(0.25, 2)
SECOND = 10**9


def outcome(plan: Plan, request: str, t_ns: int, offloaded: bool, status: str = "ok") -> Outcome:
    sent = (Transfer("device1", "edge1", 1000, 0.01),) if offloaded else ()
    return Outcome(request, plan, status, 0.1, None, None, "edge1" if offloaded else "device1", t_ns, transfers=sent)


def offloads(plan: Plan, entropy_nats: float) -> bool:
    rule = plan.steps[0].exit
    assert rule is not None
    return rule.kind == "entropy" and entropy_nats / np.log(10) > rule.threshold


def test_it_is_the_analytic_policy_when_requests_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    h = np.linspace(0, 2.3, 1000)
    metric = Metric(1.0, 0.1, h, 0.4 * np.sin(h * 0.65))
    entropies = rng.uniform(0, 2.3, 600)
    values = np.interp(entropies, h, metric.values)
    thresholds = solve(BUCKET, Choices.of(values, values))
    policy = TokenBucket(CONTEXT, 0.25, 2, metric.entropy_at(thresholds.values), unit_s=0.5)
    expected = spend(BUCKET, thresholds.required(values)[None], np.ones((1, len(values)), int))[0]
    seen = []
    for i, entropy in enumerate(entropies):
        t_ns = i * SECOND // 2
        plan = policy.decide(Observation(t_ns, str(i)))
        seen.append(offloads(plan, entropy))
        policy.observe(outcome(plan, str(i), t_ns, seen[-1]))
    assert np.mean(np.array(seen) == expected) > 0.99, "but for entropies between two points of the table"
    assert abs(sum(seen) - expected.sum()) <= 3


def test_it_conforms_whatever_overlaps_and_fails() -> None:
    rng = np.random.default_rng(1)
    policy = TokenBucket(CONTEXT, 0.25, 2, [0.5, 0.4, 0.3, 0.2, 0.0], unit_s=1.0)
    times = np.sort(rng.integers(0, 200 * SECOND, 900))
    open_requests: list[tuple[int, int, Plan, bool]] = []
    sent_ns: list[int] = []
    for i, t_ns in enumerate(times.tolist()):
        for item in sorted(item for item in open_requests if item[0] <= t_ns):
            done_ns, number, plan, offloaded = item
            open_requests.remove(item)
            policy.observe(outcome(plan, str(number), done_ns, offloaded, "error" if number % 7 == 0 else "ok"))
        plan = policy.decide(Observation(t_ns, str(i)))
        offloaded = offloads(plan, float(rng.uniform(0, 2.3)))
        if offloaded:
            sent_ns.append(t_ns)
        open_requests.append((t_ns + int(rng.integers(SECOND // 100, 3 * SECOND)), i, plan, offloaded))
    at_s = np.array(sent_ns) / SECOND
    for begin in range(len(at_s)):
        count = np.arange(1, len(at_s) - begin + 1)
        assert (count <= 2 + 0.25 * (at_s[begin:] - at_s[begin]) + 1e-6).all()
    assert len(sent_ns) > 0.5 * (2 + 0.25 * 200), "and does not starve"


def test_a_request_that_nobody_knows_of_counts_as_offloaded() -> None:
    policy = TokenBucket(CONTEXT, 0.01, 1, 0.0)
    plan = policy.decide(Observation(0, "a"))
    assert len(plan.steps) == 2
    policy.observe(Outcome("a", plan, "timeout", 1.0, None, None, None, SECOND))
    assert len(policy.decide(Observation(2 * SECOND, "b")).steps) == 1, "its token is gone"
    assert len(policy.decide(Observation(150 * SECOND, "c")).steps) == 2, "and comes back in time"


def test_it_conforms_to_the_seam() -> None:
    report = check_policy(TokenBucket, {"rate": 0.25, "depth": 2, "entropy": [None, 1.0, 0.5, 0.5, 0.1], "codec": "int8"})
    assert report.ok, str(report)


@pytest.mark.parametrize(("options", "says"), [
    ({"entropy": [1.0, 2.0]}, "levels"), ({"unit_s": 0}, "unit_s"), ({"exit": "late"}, "early"), ({"depth": 0.5}, "one token"),
    ({"node": "moon"}, "node")])
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        TokenBucket(CONTEXT, **options)


def test_entropies_of_thresholds() -> None:
    h = np.linspace(0, 2, 1000)
    metric = Metric(1.0, 0.1, h, np.minimum(h, 1.0) - 0.5 * np.maximum(h - 1.5, 0))  # rises, stays, falls
    found = metric.entropy_at(np.array([np.inf, 1.1, 0.5, 0.0, 0.9]))
    assert found[:2] == [None, None] and found[2] == pytest.approx(0.5, abs=1e-9) and found[3] == 0
    assert found[4] == pytest.approx((0.9, 1.7), abs=1e-9), "above the second the metric has fallen again"


def test_a_metric_that_falls_for_the_hardest_is_followed_exactly() -> None:
    rng = np.random.default_rng(2)
    h = np.linspace(0, 2.3, 1000)
    metric = Metric(1.0, 0.1, h, 0.4 * np.sin(h * 1.1))  # peaks at 1.43 nats
    logits = rng.normal(0, rng.uniform(0.1, 6, (500, 1)), (500, 10)).astype(np.float32)
    for threshold in (0.05, 0.2, 0.24, 0.3, 0.39):  # the metric ends at 0.23
        policy = TokenBucket(CONTEXT, 0.25, 1, metric.entropy_at(np.array([threshold])))  # one level
        rule = Rule.parse(asdict(policy.plans()[0].steps[0])["exit"])
        wanted = metric(logits) >= threshold
        assert [not rule.fires(row[None]) for row in logits] == wanted.tolist() and 0 < wanted.sum() < len(wanted)


def test_two_models_weak_on_the_device_then_the_image_to_the_strong_one() -> None:
    names = list(CONTEXT.models)
    other = next(name for name in names if name != CONTEXT.model)
    policy = TokenBucket(CONTEXT, 0.25, 2, 0.5, strong=other, codec="uint8")
    weak, strong = policy.decide(Observation(0, "a")).steps
    assert (weak.node, weak.model, weak.start) == (CONTEXT.device, CONTEXT.model, 0)
    assert (strong.model, strong.start, strong.stop, strong.codec) == (other, 0, CONTEXT.models[other].num_stages, "uint8")
    assert set(policy.models()) == {CONTEXT.model, other}
    assert policy.decide(Observation(0, "b")).fallback[0].exit == ExitRule("always", 0.0), "the weak answer, when nobody is there"


def test_the_schedule_decides_not_the_moment_of_the_decision() -> None:
    late, punctual = (TokenBucket(CONTEXT, 0.25, 1, 0.0) for _ in range(2))
    for i in range(40):  # every fourth request finds a token, whether it waited on the device or not
        wait_ns = (i * 37 % 11) * SECOND // 100
        plans = [punctual.decide(Observation(i * SECOND, str(i))),
                 late.decide(Observation(i * SECOND + wait_ns, str(i), elapsed_s=wait_ns / 1e9))]
        assert [len(p.steps) for p in plans] == [2 if i % 4 == 0 else 1] * 2
        for policy, plan in zip((punctual, late), plans, strict=True):
            policy.observe(outcome(plan, str(i), i * SECOND, len(plan.steps) == 2))


def test_a_bucket_in_bytes_counts_what_is_on_the_link() -> None:
    other = next(name for name in CONTEXT.models if name != CONTEXT.model)
    image_bytes = TokenBucket(CONTEXT, strong=other).image_bytes
    payload_bytes = CONTEXT.models[other].input_bytes
    assert payload_bytes + 600 < image_bytes < 1.1 * (payload_bytes + 600), "headers of HTTP, TCP and IP"
    policy = TokenBucket(CONTEXT, f"{2 * image_bytes}bit", f"{3 * image_bytes}B", 0.5, unit_s=1.0, strong=other)
    assert (policy.bucket.rate, policy.bucket.tokens) == (0.25, 3)
