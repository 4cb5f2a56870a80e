"""Orchestration: contention against event-by-event sharing, the optimum's invariants, constraints, baselines, fitted tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest

from testbed.errors import InputError
from testbed.policies.orchestration.baselines import FIXED, fixed, placement_only
from testbed.policies.orchestration.conditions import CONFIRMED, PRESETS, Condition, Node, all_links, links, preset
from testbed.policies.orchestration.models import MOBILENET_V1, accuracies, from_catalogue
from testbed.policies.orchestration.oracle import Constraint, Problem, Solution, optimum
from testbed.policies.orchestration.response import (
    SAMPLE_COLUMNS,
    Actions,
    Contention,
    Fitted,
    Live,
    Platform,
    samples_of,
    shared,
)
from tests.running import ROOT

LADDER, ACTIONS = MOBILENET_V1, Actions.faithful(8)
MODEL = Contention(Platform(), LADDER, ACTIONS)
CONSTRAINTS = ("min", "80%", "85%", "89%", "max")


def problem(devices: int, constraint: str = "min", **more: object) -> Problem:
    made = Problem(devices, LADDER, ACTIONS, accuracies(LADDER, "top5"), MODEL, Constraint.parse(constraint))
    return replace(made, **more)  # type: ignore[arg-type]


def by_events(work: list[float]) -> list[float]:
    """Ends of jobs that share a server of speed 1, one departure after the other."""
    left, t, ends = dict(enumerate(work)), 0.0, [0.0] * len(work)
    left = {i: w for i, w in left.items() if w > 0}
    while left:
        first = min(left, key=lambda i: left[i])
        step = left[first]
        t += step * len(left)
        left = {i: w - step for i, w in left.items()}
        for i in [i for i, w in left.items() if w <= 1e-12]:
            ends[i] = t
            del left[i]
    return ends


def test_shared_servers_end_jobs_when_an_event_by_event_simulation_does() -> None:
    rng = np.random.default_rng(1)
    work = rng.uniform(0, 1, (200, 5)) * rng.integers(0, 2, (200, 5))
    assert shared(work) == pytest.approx(np.array([by_events(list(row)) for row in work]))
    assert (shared(work).max(1)) == pytest.approx(work.sum(1))  # work is conserved


def test_an_exchange_over_a_weak_link_takes_the_delay_twice_per_round_trip() -> None:
    to_edge = np.array([[8]])
    for size, trips in ((1_000, 1), (14_480, 1), (14_481, 2), (43_440, 2), (100_000, 3)):
        model = replace(MODEL, platform=Platform(request_bytes=size))
        added = model.times_s(links([True], False), to_edge) - model.times_s(links([False], False), to_edge)
        assert added[0, 0] == pytest.approx(2 * 0.02 * trips)
    to_cloud = np.array([[9]])
    added = MODEL.times_s(links([True], True), to_cloud) - MODEL.times_s(links([False], False), to_cloud)
    assert added[0, 0] == pytest.approx(2 * 2 * 0.02 * MODEL.platform.exchanges)
    local = np.array([[0]])
    assert MODEL.times_s(links([True], True), local) == MODEL.times_s(links([False], False), local)


def test_other_work_and_scarce_memory_slow_the_node_they_are_on() -> None:
    busy = Condition((Node(busy=8), Node(short=True)))
    idle = Condition((Node(), Node()))
    one, two = (MODEL.times_s(c, np.array([[0, 0]]))[0] - MODEL.platform.overhead_s for c in (idle, busy))
    assert two / one == pytest.approx([1 / (1 - MODEL.platform.busy_share), MODEL.platform.short_factor])


def test_the_optimum_is_that_of_a_plain_search() -> None:
    condition = preset("EXP-C", 2)
    for constraint in CONSTRAINTS:
        p, best = problem(2, constraint), float("inf")
        for action in product(range(10), repeat=2):
            accuracy = sum(LADDER[ACTIONS.model[k]].top5 or 0 for k in action) / 2
            limit = {"min": -1.0, "max": 0.899 - 1e-9}.get(constraint) or float(constraint[:-1]) / 100
            if accuracy > limit + 1e-12:
                best = min(best, float(MODEL.times_s(condition, np.array([action])).mean()))
        assert optimum(p, condition).mean_s == pytest.approx(best)


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_optimum_never_falls_as_the_constraint_gets_stricter(name: str) -> None:
    for devices in range(1, 5):
        times = [optimum(problem(devices, c), preset(name, devices)).mean_s for c in CONSTRAINTS]
        assert times == sorted(times)


def test_the_optimum_never_falls_with_more_alike_devices() -> None:
    """Holds without coupling by accuracy: leaving out the slowest device of N + 1 gives a plan for N that is no slower."""
    for constraint, weak in product(("min", "max"), (False, True)):
        times = [optimum(problem(n, constraint), links([weak] * n, weak)).mean_s for n in range(1, 5)]
        assert times == sorted(times)


def test_the_optimum_never_falls_when_a_link_becomes_weak() -> None:
    found = {c.key: optimum(problem(3, "89%"), c).mean_s for c in all_links(3)}
    assert len(found) == 16
    for condition in all_links(3):
        weak = [n.weak for n in condition.devices]
        for i in range(3):
            worse = links([w or j == i for j, w in enumerate(weak)], condition.edge.weak)
            assert found[worse.key] >= found[condition.key] - 1e-12
        assert found[links(weak, True).key] >= found[condition.key] - 1e-12


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_max_constraint_is_placement_only(name: str) -> None:
    for devices in range(1, 5):
        p = problem(devices, "max")
        assert optimum(p, preset(name, devices)) == placement_only(problem(devices, "80%"), preset(name, devices))
        assert {LADDER[ACTIONS.model[k]].name for k in optimum(p, preset(name, devices)).action or ()} == {"d0"}


def test_relabelled_devices_have_the_relabelled_optimum() -> None:
    condition = Condition((Node(busy=8), Node(weak=True), Node(short=True)))
    p = problem(3, "89%")
    times = p.mean_s(condition)
    for order in permutations(range(3)):
        moved = p.mean_s(condition.permuted(order))
        index = [p.index([action[i] for i in order]) for action in p.joint]
        assert moved[index] == pytest.approx(times)


def test_what_no_joint_action_reaches_is_infeasible() -> None:
    for constraint in ("89.9%", "95%"):
        p = problem(2, constraint)
        assert optimum(p, preset("EXP-A", 2)).action is None
        assert (p.rewards(preset("EXP-A", 2)) == -p.penalty_s).all()
    assert optimum(problem(2, "89.8%"), preset("EXP-A", 2)).action is not None


def test_a_penalty_that_would_make_violating_attractive_is_refused() -> None:
    condition = preset("EXP-D", 2)
    worst = problem(2).mean_s(condition).max()
    problem(2, penalty_s=worst * 1.001).check_penalty(condition)
    with pytest.raises(InputError, match="violating would pay"):
        problem(2, penalty_s=worst).check_penalty(condition)


@pytest.mark.parametrize("bad", ["lots", "120%", "-1%"])
def test_bad_constraints_are_refused(bad: str) -> None:
    with pytest.raises(InputError, match="no accuracy constraint"):
        Constraint.parse(bad)


def test_fixed_strategies_are_slower_than_the_best_placement_and_all_local_does_not_depend_on_the_count() -> None:
    local = []
    for devices in range(1, 5):
        p, condition = problem(devices, "max"), preset("EXP-A", devices)
        found = {name: fixed(p, condition, name) for name in FIXED}
        assert min(s.mean_s for s in found.values()) >= placement_only(p, condition).mean_s - 1e-12
        local.append(found["all-local"].mean_s)
    assert local == pytest.approx([local[0]] * 4)


def test_too_many_joint_actions_are_refused_before_they_are_made() -> None:
    with pytest.raises(InputError, match="joint actions"):
        _ = problem(5, actions=Actions.product(8)).joint


def test_a_table_fitted_to_the_contention_model_predicts_it() -> None:
    """Jobs alike share a server linearly, so the fitted form is exact where only d0 leaves the device."""
    rows = []
    for condition in (links([False] * 3, False), links([True, False, True], False), links([False, True, False], True)):
        for action in [[k] * 3 for k in range(10)] + [[8, 9, 0], [8, 8, 1], [9, 9, 2]]:
            times = MODEL.times_s(condition, np.array([action]))[0]
            for i, k in enumerate(action):
                tier = ("device", "edge", "cloud")[ACTIONS.tier[k]]
                same = sum(ACTIONS.tier[other] == ACTIONS.tier[k] for other in action)
                rows.append((tier, LADDER[ACTIONS.model[k]].name, same, condition.devices[i].weak, condition.edge.weak, times[i]))
    fitted = Fitted.fit(pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)), LADDER, ACTIONS)
    assert fitted.residual_s < 1e-9
    for condition in all_links(3):
        p = problem(3, "89%")
        assert fitted.times_s(condition, p.joint) == pytest.approx(MODEL.times_s(condition, p.joint))
        assert optimum(replace(p, source=fitted), condition).mean_s == pytest.approx(optimum(p, condition).mean_s)
    with pytest.raises(InputError, match="no sample of this action"):
        Fitted.fit(pd.DataFrame(rows[:3], columns=list(SAMPLE_COLUMNS)), LADDER, ACTIONS)


def test_samples_come_from_the_requests_of_trials_with_fixed_plans() -> None:
    requests = pd.DataFrame([
        ("p", "device1", "edge1", "d0", "ok", "measure", 0, 5_000_000), ("p", "device2", "edge1", "d0", "ok", "measure", 0, 7_000_000),
        ("p", "device2", "edge1", "d0", "error", "measure", 0, 9_000_000), ("q", "device1", "device1", "d3", "ok", "measure", 10, 20),
        ("p", "device1", "edge1", "d0", "ok", "warmup", 0, 1)],
        columns=["policy", "device", "final_node", "model", "status", "phase", "scheduled_ns", "completed_ns"])
    found = samples_of(requests, {"edge1": "edge", "device1": "device"}, {"device2": True})
    assert list(found.columns) == list(SAMPLE_COLUMNS)
    assert found["jobs"].tolist() == [2, 2, 1] and found["weak"].tolist() == [False, True, False]
    assert found["latency_s"].tolist() == pytest.approx([0.005, 0.007, 1e-8])
    assert found["tier"].tolist() == ["edge", "edge", "device"]


def test_a_live_source_runs_each_joint_action_once() -> None:
    asked: list[tuple[int, ...]] = []

    def run(condition: Condition, joint: np.ndarray) -> np.ndarray:
        asked.append(tuple(joint))
        return MODEL.times_s(condition, joint[None])[0]

    condition = preset("EXP-A", 2)
    assert optimum(problem(2, "89%", source=Live(run)), condition) == optimum(problem(2, "89%"), condition)
    assert len(asked) == 100 + 1  # all joint actions, and the chosen one for its mean


def test_noise_has_the_stated_mean_and_variation() -> None:
    noisy = replace(MODEL, noise=0.1)
    joint = np.zeros((20_000, 1), np.int64)
    seen = noisy.measure_s(preset("EXP-A", 1), joint, np.random.default_rng(1))
    expected = MODEL.times_s(preset("EXP-A", 1), joint[:1])[0, 0]
    assert seen.mean() == pytest.approx(expected, rel=0.003)
    assert seen.std() / seen.mean() == pytest.approx(0.1, rel=0.03)


def test_presets_say_which_are_confirmed_and_own_ladders_come_from_the_catalogue() -> None:
    assert set(PRESETS) > CONFIRMED
    assert not any(n.weak for n in preset("EXP-A", 5).nodes[:6]) and all(n.weak for n in preset("EXP-D", 5).nodes[:6])
    with pytest.raises(InputError, match="no such set"):
        preset("EXP-E", 3)
    ladder = from_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml", ["mobilenet_100", "mobilenet_025_int8"])
    assert [v.precision for v in ladder] == ["fp32", "int8"] and ladder[0].mmacs > ladder[1].mmacs
    with pytest.raises(InputError, match="top-5"):
        accuracies(ladder, "top5")


def test_features_are_three_per_node() -> None:
    condition = Condition((Node(busy=8), Node(weak=True)), Node(busy=4, short=True))
    assert condition.features().tolist() == [1, 0, 0, 0, 0, 1, 0.5, 1, 0, 0, 0, 0]
    assert condition.key == "8-r 0-w 4sr 0-r"


def test_a_solution_says_what_its_action_is() -> None:
    p = problem(2)
    assert p.solution(preset("EXP-A", 2), p.index((3, 8))) == Solution(
        (3, 8), pytest.approx(p.mean_s(preset("EXP-A", 2))[38]), pytest.approx((0.742 + 0.899) / 2), 38)
