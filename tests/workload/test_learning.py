"""What a policy is told of a request: from rows by hand, and what it sees of other nodes afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.policies import Computation, NodeState, Plan, Step, Transfer
from testbed.serving.execute import PlanOutcome
from testbed.workload.dispatch import Request
from testbed.workload.learning import Knowledge, outcome_of

MS = 1_000_000
REQUEST = Request(3, "d-3", 0, 1 * MS, 0.1)
PLAN = Plan("p", (Step("d", "net", 0, 2), Step("e", "net", 2, 4), Step("c", "net", 4, 5)))
HOPS: list[dict[str, Any]] = [
    {"kind": "compute", "src_node": "d", "dst_node": "d", "model": "net", "stage": "0:2", "queue_start_ns": 2 * MS,
     "compute_start_ns": 9 * MS, "compute_end_ns": 19 * MS, "load_ns": 4 * MS},
    {"kind": "transfer", "src_node": "d", "dst_node": "e", "payload_bytes": 5000, "send_start_ns": 20 * MS,
     "recv_first_ns": 25 * MS, "recv_last_ns": 40 * MS},
    {"kind": "compute", "src_node": "e", "dst_node": "e", "model": "net", "stage": "2:4", "queue_start_ns": 40 * MS,
     "compute_start_ns": 41 * MS, "compute_end_ns": 45 * MS},
    {"kind": "transfer", "src_node": "e", "dst_node": "c", "payload_bytes": 700, "send_start_ns": 46 * MS,
     "recv_first_ns": 50 * MS, "recv_last_ns": 51 * MS},
    {"kind": "transfer", "src_node": "d", "dst_node": "e", "send_start_ns": 60 * MS},  # got no answer
]


class IdleWorker:
    queue_depth, inflight, residency = 2, 3, None


def done(**changes: Any) -> PlanOutcome:
    return PlanOutcome(**{"status": "ok", "completed_ns": 90 * MS, "hops": HOPS, "exit_id": "final", "final_node": "c", **changes})


def test_transfers_and_computations_are_those_of_the_rows_on_every_node() -> None:
    outcome = outcome_of(REQUEST, PLAN, done())
    assert outcome.transfers == (Transfer("d", "e", 5000, 0.02), Transfer("e", "c", 700, 0.005))
    assert outcome.computations == (Computation("d", "net", 0, 2, 0.003, 0.01, 0.004), Computation("e", "net", 2, 4, 0.001, 0.004))
    assert (outcome.latency_s, outcome.t_ns, outcome.deadline_met, outcome.error_type) == (0.09, 90 * MS, True, None)


@pytest.mark.parametrize(("changes", "backup", "says"), [
    ({"completed_ns": 101 * MS}, None, {"deadline_met": False}),
    ({"status": "failed", "error_type": "timeout"}, None, {"deadline_met": False, "error_type": "timeout"}),
    ({"used_fallback": True, "remote_error": "refused"}, None, {"used_fallback": True, "error_type": "refused"}),
    ({}, "won", {"used_backup": True, "backup_won": True}), ({}, "lost", {"used_backup": True, "backup_won": False}),
])
def test_how_it_ended_is_said(changes: dict[str, Any], backup: Any, says: dict[str, Any]) -> None:
    outcome = outcome_of(REQUEST, PLAN, done(**changes), backup)
    assert {key: getattr(outcome, key) for key in says} == says


def test_an_observation_has_the_devices_own_state_and_what_others_said_last() -> None:
    knowledge = Knowledge("d", IdleWorker(), 0.7)  # type: ignore[arg-type]
    first = knowledge.observation(REQUEST, 30 * MS, inflight=4)
    assert first.nodes == {"d": NodeState(2, 3)} and first.uplink_bps == {} and first.last_latency_s is None
    assert (first.deadline_s, first.elapsed_s, first.min_accuracy, first.inflight) == (0.1, 0.03, 0.7, 4)
    knowledge.learn(done(states={"e": {"queue_depth": 1, "inflight": 2, "resident": ["net"]}, "c": "nonsense"}))
    later = knowledge.observation(REQUEST, 140 * MS, inflight=0)
    assert later.nodes == {"d": NodeState(2, 3), "e": NodeState(1, 2, ("net",), 0.05)}
    assert later.uplink_bps == {"e": 5000 * 8 / 0.02} and later.uplink_age_s == {"e": pytest.approx(0.05)}
