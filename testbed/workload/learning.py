"""What a device knows when it asks its policy, and what it tells the policy afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from testbed.policies import Computation, NodeState, Observation, Outcome, Plan, Transfer
from testbed.policies.knowledge import from_json
from testbed.serving.execute import Hop, PlanOutcome
from testbed.serving.worker import Worker
from testbed.workload.dispatch import Request

T = TypeVar("T")
UPLINK_MIN_BYTES = 1000  # smaller transfers say more about delay than about rate

Backup = Literal["won", "lost"]


class PolicyError(Exception):
    """A policy raised an exception, or made a plan that cannot be: the trial ends."""

    def __init__(self, policy: str, what: str) -> None:
        super().__init__(f"policy {policy} {what}; `testbed check-policy` tries a policy without a run")


def ask(policy: str, about: str, call: Callable[..., T], *arguments: Any) -> T:
    """Call a policy. Raises PolicyError, naming the policy, the call and what it was about, for whatever the call raises."""
    try:
        return call(*arguments)
    except Exception as error:
        raise PolicyError(policy, f"raised {type(error).__name__} in {call.__name__} for {about}: {error}") from error


class Knowledge:
    """The device's own worker, its finished uploads, and what nodes last said of themselves."""

    def __init__(self, device: str, worker: Worker, min_accuracy: float = 0.0) -> None:
        self.device, self._worker, self._min_accuracy = device, worker, min_accuracy
        self.last_latency_s: float | None = None
        self._uplink_bps: dict[str, float] = {}
        self._uplink_ns: dict[str, int] = {}
        self._states: dict[str, tuple[NodeState, int]] = {}  # node -> what it said, and when that came

    def observation(self, request: Request, t_ns: int, inflight: int) -> Observation:
        """What is known at `t_ns` for this request; `inflight`: other requests, issued and not finished."""
        worker = self._worker
        resident = None if worker.residency is None else worker.residency.resident
        nodes = {node: self.state(node, t_ns) for node in self._states}
        nodes[self.device] = NodeState(worker.queue_depth, worker.inflight, resident)
        return Observation(
            t_ns=t_ns, request_id=request.request_id, queue_depth=worker.queue_depth, inflight=inflight,
            uplink_bps=dict(self._uplink_bps), uplink_age_s={n: (t_ns - t) / 1e9 for n, t in self._uplink_ns.items()},
            last_latency_s=self.last_latency_s, deadline_s=request.deadline_s,
            elapsed_s=(t_ns - request.scheduled_ns) / 1e9, min_accuracy=self._min_accuracy, nodes=nodes)

    def learn(self, outcome: PlanOutcome) -> None:
        """Uplink rates from finished uploads, and the states that answers brought."""
        for hop in outcome.hops:
            size_bytes, arrived_ns = hop.get("payload_bytes") or 0, hop.get("recv_last_ns")
            if hop["src_node"] == self.device != hop["dst_node"] and size_bytes >= UPLINK_MIN_BYTES and arrived_ns:
                duration_ns = arrived_ns - hop["send_start_ns"]
                if duration_ns > 0:
                    self._uplink_bps[hop["dst_node"]] = size_bytes * 8e9 / duration_ns
                    self._uplink_ns[hop["dst_node"]] = outcome.completed_ns
        for node, said in outcome.states.items():
            self.told(node, said, outcome.completed_ns)

    def told(self, node: str, said: object, t_ns: int) -> None:
        """Keep what a node said of itself, as it travels in answers, at `t_ns`; what cannot be read says nothing."""
        with suppress(ValidationError):
            self._states[node] = (from_json(NodeState, said), t_ns)

    def state(self, node: str, t_ns: int) -> NodeState:
        """What is known of a node at `t_ns`; an idle node when it never said anything."""
        state, said_ns = self._states.get(node, (NodeState(), t_ns))
        return replace(state, age_s=max(0, t_ns - said_ns) / 1e9)


def outcome_of(request: Request, plan: Plan, done: PlanOutcome, backup: Backup | None = None,
               remote_error: str | None = None) -> Outcome:
    """What the policy is told of a finished request, or of the slower side of a request with a backup.

    `remote_error`: why the plan failed although the request was answered.
    """
    latency_s = (done.completed_ns - request.scheduled_ns) / 1e9
    ok = done.status == "ok"
    return Outcome(
        request_id=request.request_id, plan=plan, status=done.status, latency_s=latency_s, exit_id=done.exit_id,
        exit_confidence=done.exit_confidence, final_node=done.final_node, t_ns=done.completed_ns,
        deadline_met=ok and latency_s <= request.deadline_s,
        error_type=done.error_type or done.remote_error or remote_error, used_fallback=done.used_fallback,
        used_backup=backup is not None, backup_won=backup == "won", transfers=transfers_of(done.hops),
        computations=computations_of(done.hops))


def transfers_of(hops: Sequence[Hop]) -> tuple[Transfer, ...]:
    """The finished transfers among the rows of a request, those between other nodes too."""
    return tuple(
        Transfer(hop["src_node"], hop["dst_node"], hop["payload_bytes"], (hop["recv_last_ns"] - hop["send_start_ns"]) / 1e9)
        for hop in hops
        if hop["kind"] == "transfer" and _known(hop, "payload_bytes", "send_start_ns", "recv_last_ns"))


def computations_of(hops: Sequence[Hop]) -> tuple[Computation, ...]:
    """The finished computations among the rows of a request, on every node."""
    found = []
    for hop in hops:
        if hop["kind"] != "compute" or not _known(hop, "model", "stage", "queue_start_ns", "compute_start_ns", "compute_end_ns"):
            continue
        start, _, stop = hop["stage"].partition(":")
        load_ns = hop.get("load_ns") or 0
        waited_ns = hop["compute_start_ns"] - hop["queue_start_ns"] - load_ns
        found.append(Computation(hop["dst_node"], hop["model"], int(start), int(stop), max(0, waited_ns) / 1e9,
                                 (hop["compute_end_ns"] - hop["compute_start_ns"]) / 1e9, load_ns / 1e9))
    return tuple(found)


def _known(hop: Mapping[str, Any], *keys: str) -> bool:
    return all(hop.get(key) is not None for key in keys)
