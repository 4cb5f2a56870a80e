"""Model state: the cold window to the nanosecond, busy and loaded variants, and what a 90th percentile promises."""

import itertools
import random

import pytest

from testbed.policies import Computation, Context, ModelInfo, NodeInfo, NodeState, Outcome, Plan, Step
from testbed.policies.model_state import ModelStates, Moments

SECOND = 1_000_000_000
CONTEXT = Context(
    "device1", {"device": "device1", "cloud": "cloud1"}, ("device", "cloud"),
    {m: ModelInfo(m, ("a", "b"), {"final": 1}, 1000, (10, 10)) for m in ("small", "large")}, "small", 1.0, 1,
    {"device1": NodeInfo("device1", "device", {"small": (0.1, 0.1), "large": (0.3, 0.3)}, load_s={"large": 2.0}),
     "cloud1": NodeInfo("cloud1", "cloud", {"small": (0.01, 0.01), "large": (0.03, 0.03)})})


def states(**options: object) -> ModelStates:
    return ModelStates(CONTEXT, [(n, m) for n in ("device1", "cloud1") for m in ("small", "large")], **options)  # type: ignore[arg-type]


def outcome(request_id: str, node: str, model: str, t_ns: int = 0, status: str = "ok", duration_s: float | None = None,
            queue_s: float = 0.0, load_s: float = 0.0, fallback: bool = False, backup_won: bool = False) -> Outcome:
    done = () if duration_s is None else (Computation(node, model, 0, 2, queue_s, duration_s, load_s),)
    return Outcome(request_id, Plan("p", (Step(node, model, 0, 2),)), status, 0.1, "final", 1.0, node, t_ns,
                   used_fallback=fallback, used_backup=backup_won, backup_won=backup_won, computations=done)


@pytest.mark.parametrize("how", [{"status": "failed"}, {"fallback": True}])
def test_a_remote_variant_is_cold_for_exactly_the_window_and_the_others_still_serve(how: dict[str, object]) -> None:
    known = states(cold_s=10.0)
    known.begin("r1", "cloud1", "large", 0)
    known.observe(outcome("r1", "cloud1", "large", 5 * SECOND, **how))  # type: ignore[arg-type]
    assert known.is_cold("cloud1", "large", 5 * SECOND) and known.is_cold("cloud1", "large", 15 * SECOND - 1)
    assert not known.is_cold("cloud1", "large", 15 * SECOND)
    assert not known.is_cold("cloud1", "small", 6 * SECOND) and not known.is_cold("device1", "large", 6 * SECOND)


def test_a_device_variant_is_never_cold_and_success_is_no_failure() -> None:
    known = states()
    known.begin("r1", "device1", "small", 0)
    known.observe(outcome("r1", "device1", "small", 1, status="failed"))
    known.begin("r2", "cloud1", "small", 0)
    known.observe(outcome("r2", "cloud1", "small", 1, duration_s=0.1))
    assert not known.is_cold("device1", "small", 1) and not known.is_cold("cloud1", "small", 1)


def test_a_variant_is_busy_from_the_decision_until_its_last_request_ends() -> None:
    known = states()
    known.begin("r1", "cloud1", "small", 0)
    known.begin("r2", "cloud1", "small", 1)
    assert known.is_busy("cloud1", "small") and not known.is_busy("cloud1", "large")
    known.observe(outcome("r1", "cloud1", "small", 2))
    assert known.is_busy("cloud1", "small")
    known.observe(outcome("r2", "cloud1", "small", 3, status="failed"))
    assert not known.is_busy("cloud1", "small")


def test_a_variant_whose_backup_answered_is_busy_until_its_own_end_which_may_be_a_failure() -> None:
    known = states(cold_s=10.0)
    known.begin("r1", "cloud1", "large", 0)
    known.observe(outcome("r1", "device1", "small", SECOND, duration_s=0.2, backup_won=True))
    assert known.is_busy("cloud1", "large") and not known.is_cold("cloud1", "large", SECOND)
    known.observe_late(outcome("r1", "cloud1", "large", 5 * SECOND, status="failed", backup_won=True))
    assert not known.is_busy("cloud1", "large")
    assert known.is_cold("cloud1", "large", 15 * SECOND - 1) and not known.is_cold("cloud1", "large", 15 * SECOND)


def test_the_late_end_of_a_backup_that_lost_says_nothing_of_the_plan() -> None:
    known = states()
    known.begin("r1", "cloud1", "large", 0)
    known.observe(outcome("r1", "cloud1", "large", SECOND, duration_s=0.1))
    known.begin("r2", "cloud1", "large", SECOND)
    known.observe_late(outcome("r1", "device1", "small", 2 * SECOND, status="failed"))
    assert known.is_busy("cloud1", "large") and not known.is_cold("cloud1", "large", 2 * SECOND)


def test_the_wait_for_the_device_is_the_work_that_it_was_given_less_the_time_that_passed() -> None:
    known = states()
    known.begin("r1", "device1", "small", 0)  # 0.2 s
    known.begin("r2", "device1", "large", 0)  # 0.6 s, behind it
    known.begin("r3", "cloud1", "large", 0)
    assert known.wait_s(0) == pytest.approx(0.8) and known.wait_s(SECOND // 2) == pytest.approx(0.3)
    assert known.wait_s(SECOND) == 0
    known.observe(outcome("r1", "device1", "small", SECOND // 5, duration_s=0.2))
    assert known.wait_s(SECOND // 5) == pytest.approx(0.6)
    known.observe(outcome("r2", "device1", "large", SECOND // 4, duration_s=0.05))
    assert known.wait_s(SECOND // 4) == 0


def test_work_on_the_device_that_was_not_begun_here_counts_as_the_fastest_model_each() -> None:
    known = states()
    assert known.wait_s(0, 2) == pytest.approx(0.4) and known.wait_s(0, 0) == 0
    known.begin("r1", "device1", "large", 0)
    assert known.wait_s(0, 1) == pytest.approx(0.6) and known.wait_s(0, 2) == pytest.approx(0.8)


def test_a_model_that_is_not_resident_costs_its_load_the_last_one_that_was_seen() -> None:
    known = states()
    gone, there = NodeState(resident=("small",)), NodeState(resident=("small", "large"))
    assert known.latency_s("device1", "large", gone) == pytest.approx(2.6)
    assert known.latency_s("device1", "large", there) == known.latency_s("device1", "large", NodeState()) == pytest.approx(0.6)
    known.observe(outcome("r1", "device1", "large", duration_s=0.6, load_s=3.0))
    assert known.latency_s("device1", "large", gone) == pytest.approx(3.6)
    assert known.latency_s("device1", "large") == pytest.approx(0.6)  # loading is kept apart from computing
    known.begin("r2", "device1", "large", 0, gone)
    assert known.wait_s(0) == pytest.approx(3.6)


def test_the_latency_of_a_remote_variant_has_the_servers_queue_and_no_network() -> None:
    known = states(percentile=1.0)
    known.observe(outcome("r1", "cloud1", "small", duration_s=0.5, queue_s=0.25))
    known.observe(outcome("r2", "device1", "small", duration_s=0.5, queue_s=0.25))
    assert known.latency_s("cloud1", "small") == pytest.approx(0.75)  # the outcome's latency is not looked at
    assert known.latency_s("device1", "small") == pytest.approx(0.5)  # the device's own queue is wait_s


def test_a_borderline_pick_is_late_one_time_in_ten_and_less_often_with_the_margin() -> None:
    """Stationary latencies: the budget equals the 90th percentile that is estimated at that moment."""
    rng = random.Random(5)
    known = states(prior_runs=1)
    late = late_with_margin = 0
    count = 20_000
    for i in range(count + 500):
        latency_s = rng.lognormvariate(-2, 0.5)
        if i >= 500:
            budget_s = known.latency_s("cloud1", "small")
            late += latency_s > budget_s
            late_with_margin += latency_s > budget_s / 0.8
        known.observe(outcome(f"r{i}", "cloud1", "small", duration_s=latency_s))
    assert late / count == pytest.approx(0.1, abs=4 * (0.09 / count) ** 0.5 + 0.005)
    assert late_with_margin < 0.6 * late


def test_one_slow_run_does_not_shut_a_variant_out() -> None:
    known = states(prior_runs=10)
    known.observe(outcome("r", "cloud1", "small", duration_s=9.0))
    assert known.latency_s("cloud1", "small") == pytest.approx(0.02)


@pytest.mark.parametrize("bad", [{"prior_runs": 0}, {"prior_runs": 20, "window": 10}, {"cold_s": -1.0}, {"percentile": 1.5}])
def test_options_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        states(**bad)


def test_moments_over_all_are_the_definition() -> None:
    rng = random.Random(1)
    values = [rng.gauss(3, 2) for _ in range(200)]
    moments = Moments()
    for value in values:
        moments.add(value)
    mean = sum(values) / len(values)
    assert moments.mean == pytest.approx(mean)
    assert moments.deviation == pytest.approx((sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5)


def test_weighted_moments_follow_the_published_recursion_and_halve_the_error_after_a_change() -> None:
    moments, mean, variance = Moments(0.5), 4.0, 0.0
    moments.add(4.0)
    for x in (5.0, 3.0, 8.0, 8.0):
        variance = 0.5 * (variance + 0.5 * (x - mean) ** 2)
        mean = 0.5 * x + 0.5 * mean
        moments.add(x)
        assert (moments.mean, moments.deviation) == (pytest.approx(mean), pytest.approx(variance**0.5))
    errors = []
    for _ in range(8):
        moments.add(1.0)
        errors.append(moments.mean - 1.0)
    assert all(b == pytest.approx(a / 2) for a, b in itertools.pairwise(errors))
