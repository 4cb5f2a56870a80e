"""What a device writes: rows of its requests and hops, and the log of all that its policy was asked and told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from testbed.measurement.tables import HOPS, REQUESTS, TableWriter
from testbed.policies import Context, Observation, Outcome, Plan, Probe
from testbed.policies.knowledge import to_json
from testbed.serving.background import Background
from testbed.serving.execute import Hop, PlanOutcome
from testbed.workload.dispatch import Request
from testbed.workload.inputs import Inputs
from testbed.workload.learning import Backup


class Recorder:
    """Writes in a thread of its own, in the order of the calls. Leaving the context waits for all of it.

    The decision log (JSON lines) begins with the policy's specification and context (`kind` policy); then comes every
    call of the policy in its order: `decide` with observation, plan and scores, `outcome`, `late`, `probe`.
    """

    def __init__(self, config: Mapping[str, Any], inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        self._device: str = config["name"]
        self._done = 0

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            config = self._config
            self._requests = stack.enter_context(TableWriter(config["requests"], REQUESTS, run_id=config["run_id"]))
            self._hops = stack.enter_context(TableWriter(config["hops"], HOPS, run_id=config["run_id"]))
            self._decisions = stack.enter_context(open(config["decisions"], "w", encoding="utf-8"))
            self._background = stack.enter_context(Background())  # left first: everything is written before files close
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    # ---- decision log ----------------------------------------------------------------------------------------

    def policy(self, spec: Mapping[str, Any], context: Context) -> None:
        """What the policy was made from: the first line."""
        self._log("policy", 0, spec=dict(spec), context=context)

    def decide(self, observation: Observation, plan: Plan, scores: Mapping[str, float]) -> None:
        """A decision with what it saw."""
        self._log("decide", observation.t_ns, request_id=observation.request_id, observation=observation, plan=plan,
                  scores=dict(scores))

    def outcome(self, outcome: Outcome, *, late: bool = False) -> None:
        """What the policy was told of a request; `late`: of the slower side of one with a backup."""
        self._log("late" if late else "outcome", outcome.t_ns, request_id=outcome.request_id, outcome=outcome)

    def probe(self, probe: Probe) -> None:
        """What the policy was told of a probe."""
        self._log("probe", probe.t_ns, probe=probe)

    def _log(self, kind: str, t_ns: int, **values: Any) -> None:
        self._background.submit(self._write_line, {"kind": kind, "t_ns": t_ns, "device": self._device}, values)

    def _write_line(self, head: dict[str, Any], values: Mapping[str, Any]) -> None:
        line = head | {key: value if isinstance(value, dict | str) else to_json(value) for key, value in values.items()}
        self._decisions.write(json.dumps(line, separators=(",", ":")) + "\n")

    # ---- tables ----------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """Count a request that has an end status, for those who watch."""
        self._done += 1
        self._background.submit(Path(self._config["done"]).write_text, str(self._done))

    def request(self, request: Request, taken_ns: int, decided_ns: int, plan: Plan, done: PlanOutcome,
                backup: Backup | None = None, other: PlanOutcome | None = None) -> None:
        """The rows of a request; `other` is the side of it that did not give the answer."""
        self._background.submit(self._write_request, request, taken_ns, decided_ns, plan, done, backup, other)

    def probe_hops(self, probe_id: str, hops: Sequence[Hop]) -> None:
        """The rows of a probe."""
        self._background.submit(self._write_hops, probe_id, hops)

    def _write_request(self, request: Request, taken_ns: int, decided_ns: int, plan: Plan, done: PlanOutcome,
                       backup: Backup | None, other: PlanOutcome | None) -> None:
        config, index = self._config, request.index
        sample = config["samples"][index]
        label = self._inputs.label(sample)
        latency_s = (done.completed_ns - request.scheduled_ns) / 1e9
        ok = done.status == "ok"
        tiers = [config["tiers"][h["dst_node"]] for h in done.hops if h.get("compute_end_ns") is not None]
        sent = [s.codec for s in plan.steps if s.node != self._device]
        self._requests.write({
            "request_id": request.request_id, "sample_index": sample, "device": self._device,
            "phase": "warmup" if index < config["warmup_requests"] else "measure",
            "scheduled_ns": request.scheduled_ns, "issued_ns": request.issued_ns, "dispatched_ns": taken_ns,
            "completed_ns": done.completed_ns, "status": done.status, "policy": config["policy_name"],
            "error_type": _error_type(done, backup, other),
            "plan": plan.label, "model": done.final_model or plan.steps[-1].model,
            "split_point": plan.split_point, "exit_id": done.exit_id,
            "exit_confidence": done.exit_confidence, "final_node": done.final_node,
            "tiers_used": "+".join(dict.fromkeys(tiers)), "codec": "+".join(dict.fromkeys(sent)) or None,
            "request_bytes": _sum(done.request_bytes, other.request_bytes if other is not None else None),
            "response_bytes": _sum(done.response_bytes, other.response_bytes if other is not None else None),
            "prediction": done.prediction, "label": label, "correct": done.prediction == label if ok else None,
            "deadline_s": request.deadline_s, "deadline_met": ok and latency_s <= request.deadline_s,
            "decision_duration_s": (decided_ns - taken_ns) / 1e9, "backup": backup,
            "duplicates": None if backup is None else int(ok and other is not None and other.status == "ok"),
        })
        hops = done.hops if backup is None else [
            *({**hop, "duplicate": False} for hop in done.hops),
            *({**hop, "duplicate": True} for hop in (other.hops if other is not None else ()))]
        self._write_hops(request.request_id, hops)

    def _write_hops(self, request_id: str, hops: Sequence[Hop]) -> None:
        for i, hop in enumerate(hops):
            self._hops.write({"request_id": request_id, "hop_index": i, "link": self._link(hop), **hop})

    def _link(self, hop: Mapping[str, Any]) -> str | None:
        if hop["src_node"] == hop["dst_node"]:
            return None
        forward = self._config["routes"].get(f"{hop['src_node']}>{hop['dst_node']}")
        return str(forward) if forward else None


def _error_type(done: PlanOutcome, backup: Backup | None, other: PlanOutcome | None) -> str | None:
    """What went wrong; of a request that was answered all the same, by whom, and why the plan failed."""
    if done.status != "ok":
        return done.error_type
    if done.used_fallback:
        return f"fallback:{done.remote_error}"
    if backup == "won" and other is not None and other.status != "ok" and other.completed_ns <= done.completed_ns:
        return f"backup:{other.error_type}"
    return None


def _sum(one: int | None, two: int | None) -> int | None:
    return two if one is None else one if two is None else one + two
