"""The engine that executes a plan: local steps on the worker, remote steps by passing the rest of the plan on.

Every instant is taken once and shared by the rows beside it (a step's queue_start is the recv_last of the transfer
before it, an encode_start the compute_end before it, a send_start its encode_end), so that the rows of a request lie
end to end on the one clock and add up to completed - started exactly.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.serving.client import Answer, NodeClient, TransportError
from testbed.serving.coding import Coder
from testbed.serving.plan import PlanError, Step, parse_steps
from testbed.serving.protocol import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    ProtocolError,
    Tensor,
    decode_response,
    encode_request,
    encode_request_json,
    parse_json,
)
from testbed.serving.worker import BadInput, Expired, UnknownModel, Withdrawn, Worker, WorkerClosed

Hop = dict[str, Any]
_ERROR_TYPES = {UnknownModel: "unknown_model", BadInput: "bad_request", Expired: "timeout",
                Withdrawn: "withdrawn", WorkerClosed: "closed"}
_STATUS_TYPES = {400: "bad_request", 404: "unknown_model", 413: "too_large", 503: "not_ready"}
_HOP_KEYS = frozenset({
    "kind", "src_node", "dst_node", "direction", "stage", "payload_bytes", "header_bytes", "encode_start_ns",
    "encode_end_ns", "send_start_ns", "recv_first_ns", "recv_last_ns", "queue_start_ns", "compute_start_ns",
    "compute_end_ns", "service_ns", "memo_hit", "model", "load_ns"})


class StepFailed(Exception):
    """A step could not be done. `error_type` is what goes into the `requests` table; `hops` is what was done before."""

    def __init__(self, error_type: str, message: str, hops: list[Hop]) -> None:
        super().__init__(message)
        self.error_type, self.hops = error_type, hops


@dataclass(frozen=True)
class Done:
    """The answer of a plan, on the node that executes its first step. `output` is logits (N, classes) when an exit
    answered (`exit_id`), else the tensor after the last step's last stage. Ends at `end_ns`."""

    output: NDArray[np.float32]
    exit_id: str | None
    confidence: float | None
    final_node: str
    final_model: str
    hops: list[Hop]
    end_ns: int
    request_bytes: int = 0
    response_bytes: int = 0
    states: dict[str, Any] = field(default_factory=dict)  # node -> what it said of itself (see server.state)


@dataclass(frozen=True)
class PlanOutcome:
    """What became of a request. `status` is ok or failed; a request that its fallback answered is ok.

    `completed_ns` is the instant of the answer or of giving up; `request_bytes` and `response_bytes` are HTTP bodies
    that left for and came from other nodes; `used_fallback` with `remote_error` says why the fallback ran.
    """

    status: str
    completed_ns: int
    hops: list[Hop] = field(default_factory=list)
    error_type: str | None = None
    error: str | None = None
    prediction: int | None = None
    logits: NDArray[np.float32] | None = None
    exit_id: str | None = None
    exit_confidence: float | None = None
    final_node: str | None = None
    final_model: str | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    used_fallback: bool = False
    remote_error: str | None = None
    states: Mapping[str, Any] = field(default_factory=dict)  # node -> its queue_depth, inflight, resident models


async def execute_plan(local: str, worker: Worker, client: NodeClient, steps: Sequence[Mapping[str, Any]],
                       x: NDArray[np.float32], *, request_id: str, start_ns: int | None = None,
                       timeout_s: float | None = 10.0, fallback: Sequence[Mapping[str, Any]] = (),
                       retries: int = 0, coder: Coder | None = None,
                       wanted: Callable[[], bool] | None = None) -> PlanOutcome:
    """Execute a plan for one input x (1, C, H, W), seen from node `local`; always ends with a status.

    Parameters
    ----------
    steps, fallback: as JSON-ready mappings (see `plan.Step`); `fallback` is run, without a time-out, when the plan fails.
    start_ns: instant (CLOCK_MONOTONIC) from which the plan's time counts; now when absent.
    timeout_s: time after which the plan has failed (None: any). With retries each attempt gets an equal share of what is left.
    retries: how often a transfer that failed is tried again.
    coder: this node's codecs; those that need no catalogue when absent.
    wanted: asked before each computation on this node, whether the answer is still wanted; yes when absent.

    Raises PlanError for a plan that could never be executed.
    """
    start_ns = time.monotonic_ns() if start_ns is None else start_ns
    parsed, spare = parse_steps(steps), parse_steps(fallback) if fallback else []
    deadline_ns = None if timeout_s is None else start_ns + round(timeout_s * 1e9)
    coder = coder or Coder()
    try:
        done = await run_steps(local, worker, client, parsed, x, request_id=request_id, start_ns=start_ns,
                               deadline_ns=deadline_ns, retries=retries, coder=coder, wanted=wanted)
        if done.exit_id is None:
            raise StepFailed("bad_request", "the plan ended before the model's last stage without an exit", done.hops)
        return _outcome(done, done.hops)
    except StepFailed as failed:
        failed_ns = time.monotonic_ns()
        sent = sum(h.get("payload_bytes") or 0 for h in failed.hops if h["kind"] == "transfer" and h["src_node"] == local)
        if spare:
            try:
                done = await run_steps(local, worker, client, spare, x, request_id=request_id, start_ns=failed_ns,
                                       deadline_ns=None, coder=coder)
                if done.exit_id is not None:
                    return _outcome(done, failed.hops + done.hops, sent, failed.error_type)
            except StepFailed as second:
                failed = StepFailed(failed.error_type, f"{failed}; the fallback failed too: {second}",
                                    failed.hops + second.hops)
        return PlanOutcome("failed", time.monotonic_ns(), failed.hops, failed.error_type, str(failed),
                           request_bytes=sent, used_fallback=bool(spare), remote_error=failed.error_type)


def _outcome(done: Done, hops: list[Hop], sent_before: int = 0, remote_error: str | None = None) -> PlanOutcome:
    return PlanOutcome(
        "ok", done.end_ns, hops, prediction=int(done.output[0].argmax()), logits=done.output, exit_id=done.exit_id,
        exit_confidence=done.confidence, final_node=done.final_node, final_model=done.final_model,
        request_bytes=done.request_bytes + sent_before, response_bytes=done.response_bytes,
        used_fallback=remote_error is not None, remote_error=remote_error, states=done.states)


async def run_steps(local: str, worker: Worker, client: NodeClient, steps: Sequence[Step], x: NDArray[np.float32], *,
                    request_id: str, start_ns: int, deadline_ns: int | None, retries: int = 0,
                    coder: Coder, wanted: Callable[[], bool] | None = None) -> Done:
    """Execute steps from this node on: its own steps here, and the rest, from the first remote step on, over there.

    Raises StepFailed.
    """
    hops: list[Hop] = []
    t_ns, given, current = start_ns, x, x
    for i, step in enumerate(steps):
        if step.start == 0:
            current = given
        if step.node != local:
            return await _pass_on(local, client, coder, steps[i:], current, hops, request_id, t_ns, deadline_ns, retries)
        last = i + 1 == len(steps)
        try:
            result = await worker.execute(step.model, step.start, step.stop, current, step.rule, queue_start_ns=t_ns,
                                          deadline_ns=deadline_ns, final_answers=last or steps[i + 1].start > 0,
                                          wanted=wanted)
        except (UnknownModel, BadInput, Expired, Withdrawn, WorkerClosed) as error:
            raise StepFailed(_ERROR_TYPES[type(error)], str(error), hops) from None
        except Exception as error:  # whatever a model's own code raises ends this request, not the node
            raise StepFailed("compute_error", f"{type(error).__name__}: {error}", hops) from error
        hops.append({"kind": "compute", "src_node": local, "dst_node": local, "direction": "local", "model": step.model,
                     "load_ns": result.load_ns, "stage": f"{result.start}:{result.stop}", "queue_start_ns": result.queue_start_ns,
                     "compute_start_ns": result.compute_start_ns, "compute_end_ns": result.compute_end_ns,
                     "service_ns": result.service_ns, "memo_hit": result.memo_hit})
        t_ns, current = result.compute_end_ns, result.output
        if result.exit_id is not None or last:
            return Done(result.output, result.exit_id, result.confidence, local, step.model, hops, t_ns)
    raise AssertionError("a plan has at least one step")


async def _pass_on(local: str, client: NodeClient, coder: Coder, steps: Sequence[Step], x: NDArray[np.float32],
                   hops: list[Hop], request_id: str, t_ns: int, deadline_ns: int | None, retries: int) -> Done:
    node, begin_ns = steps[0].node, t_ns
    for attempt in range(retries + 1):
        limit_ns = deadline_ns
        if deadline_ns is not None and attempt < retries:
            limit_ns = begin_ns + (deadline_ns - begin_ns) // (retries + 1 - attempt)
        body, length = await _message(coder, steps, x, request_id, limit_ns, hops, client.tensors == "binary")
        headers = {"Content-Type": "application/json"} if length is None else \
            {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}
        send_ns = time.monotonic_ns()
        up: Hop = {"kind": "transfer", "src_node": local, "dst_node": node,
                   "direction": client.direction(local, node, "up"), "stage": steps[0].stages,
                   "encode_start_ns": begin_ns, "encode_end_ns": send_ns, "send_start_ns": send_ns}
        try:
            answer = await client.request(node, "POST", f"/v2/models/{steps[0].model}/infer", body, headers,
                                          deadline_ns=limit_ns)
            return _arrived(local, client, node, up, hops, answer, len(body))
        except TransportError as error:
            hops.append(up)  # how much of it arrived, and when, is not known: those cells stay empty
            if attempt == retries or error.error_type == "unknown_node":
                raise StepFailed(error.error_type, f"{local} to {node}: {error}", hops) from None
        begin_ns = time.monotonic_ns()
    raise AssertionError("unreachable")


async def _message(coder: Coder, steps: Sequence[Step], x: NDArray[np.float32], request_id: str,
                   deadline_ns: int | None, hops: list[Hop], binary: bool) -> tuple[bytes, int | None]:
    try:
        encoded = await coder.encode(steps[0].codec, x)
    except ValueError as error:
        raise StepFailed("bad_request", f"codec {steps[0].codec}: {error}", hops) from None
    tensors = [Tensor("input" if i == 0 else f"input_{i}", array) for i, array in enumerate(encoded.arrays)]
    if steps[0].codec != "raw":
        tensors[0].parameters["codec"] = steps[0].codec
        if encoded.params:
            tensors[0].parameters["codec_params"] = json.dumps(encoded.params, separators=(",", ":"))
    parameters: dict[str, Any] = {
        "testbed_plan": json.dumps([s.to_json() for s in steps], separators=(",", ":"))}
    if binary:
        parameters["binary_data_output"] = True
    if deadline_ns is not None:
        parameters["testbed_deadline_ns"] = deadline_ns
    message = InferRequest(tensors, request_id, parameters)
    return encode_request(message) if binary else (encode_request_json(message), None)


def _arrived(local: str, client: NodeClient, node: str, up: Hop, hops: list[Hop], answer: Answer, sent_bytes: int) -> Done:
    """Complete the rows of an exchange from the peer's account of it. Raises StepFailed."""
    timing: dict[str, Any] = {}
    response: InferResponse | None = None
    error_type, message = "bad_response", ""
    try:
        if answer.status == 200:
            response = decode_response(answer.body, answer.headers.get(HEADER_LENGTH.lower()))
            timing = _timing(response.parameters.get("testbed_timing"))
            if len(response.outputs) != 1 or response.outputs[0].datatype != "FP32" or not response.outputs[0].data.ndim:
                raise ProtocolError("an answer to a plan is one FP32 tensor")
        else:
            told = parse_json(answer.body)
            guess = _STATUS_TYPES.get(answer.status, f"http_{answer.status}")
            error_type, message = str(told.get("error_type", guess)), str(told.get("error", ""))
            timing = _timing(told["testbed_timing"]) if "testbed_timing" in told else {}
    except ProtocolError as error:
        response, message = None, f"{node} answered with status {answer.status}, but not as a node: {error}"
    up |= {"payload_bytes": sent_bytes, "header_bytes": answer.request_header_bytes,
           "recv_first_ns": timing.get("recv_first_ns"), "recv_last_ns": timing.get("recv_last_ns")}
    hops.append(up if timing else up | {"payload_bytes": None})
    hops += timing.get("hops", [])
    if timing:
        hops.append({"kind": "transfer", "src_node": node, "dst_node": local,
                     "direction": client.direction(node, local, "down"), "stage": timing["stage"],
                     "payload_bytes": len(answer.body), "header_bytes": answer.response_header_bytes,
                     "encode_start_ns": timing["encode_start_ns"], "encode_end_ns": timing["send_start_ns"],
                     "send_start_ns": timing["send_start_ns"], "recv_first_ns": answer.recv_first_ns,
                     "recv_last_ns": answer.recv_last_ns})
    if response is None:
        raise StepFailed(error_type, message, hops)
    return Done(response.outputs[0].data, timing["exit_id"], timing["confidence"], timing["final_node"],
                timing["final_model"], hops, answer.recv_last_ns, sent_bytes, len(answer.body),
                timing.get("states") or {})


def _timing(text: object) -> dict[str, Any]:
    """A peer's account of a request: its instants and rows. Raises ProtocolError when it is not one."""
    timing = parse_json(text.encode()) if isinstance(text, str) else {}
    times = ("recv_first_ns", "recv_last_ns", "encode_start_ns", "send_start_ns")
    hops = timing.get("hops")
    if (not all(type(timing.get(k)) is int for k in times) or not isinstance(timing.get("stage"), str)
            or not {"exit_id", "confidence", "final_node", "final_model"} <= set(timing) or not isinstance(hops, list)
            or not all(isinstance(h, dict) and {"kind", "src_node", "dst_node"} <= set(h) <= _HOP_KEYS for h in hops)):
        raise ProtocolError("testbed_timing is missing or not complete")
    return timing


__all__ = ["Done", "Hop", "PlanError", "PlanOutcome", "StepFailed", "execute_plan", "run_steps"]
