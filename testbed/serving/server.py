"""Open Inference Protocol v2 server of a node: health, metadata, inference, and the execution of passed-on plans."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

import testbed
from testbed.inference.exits import softmax
from testbed.serving.client import NodeClient
from testbed.serving.coding import Coder
from testbed.serving.execute import Done, Hop, StepFailed, run_steps
from testbed.serving.http import BodyError, Connection, ConnectionServer, json_response, read_body
from testbed.serving.plan import PlanError, Step, parse_steps
from testbed.serving.protocol import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    ProtocolError,
    Tensor,
    decode_request,
    encode_response,
)
from testbed.serving.worker import UnknownModel, Worker

_LOG = logging.getLogger("testbed.node")
_MODEL_PATH = re.compile(r"^/v2/models/([^/]{1,200})(?:/versions/([^/]{1,40}))?(?:/(ready|infer))?$")
_STAGES = re.compile(r"^(\d{0,4}):(\d{0,4})$")
_STATUS = {"bad_request": 400, "unknown_model": 404, "timeout": 504, "closed": 503, "compute_error": 500}
VERSION = "1"


class NodeServer:
    """Serves a worker's models.

    Parameters
    ----------
    name: this node's name in plans.
    client: how this node reaches its peers.
    max_body_bytes: longest request body; longer ones are answered with status 413.
    body_timeout_s: time for a request body to arrive; slower ones are answered with status 408.
    coder: the codecs that this node knows; those that need no catalogue when absent.
    """

    def __init__(self, name: str, worker: Worker, client: NodeClient, *, max_body_bytes: int = 64 * 2**20,
                 body_timeout_s: float = 120.0, coder: Coder | None = None) -> None:
        self.name, self.worker, self.client = name, worker, client
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s
        self.coder = coder or Coder()
        self.ready = False
        self.inflight = 0
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with port 0)."""
        server = ConnectionServer(self._handle, access_log=None, keepalive_timeout=3600.0, lingering_time=1.0)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=512)
        await site.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening and close the connections."""
        self.ready = False
        if self._runner is not None:
            await self._runner.cleanup()
        self.coder.close()

    # ---- HTTP ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        self.inflight += 1
        try:
            response = await self._route(request)
        except BodyError as error:
            response = json_response({"error": str(error)}, error.status)
            response.force_close()  # the rest of the body must not be taken for a request
        except ProtocolError as error:
            response = json_response({"error": str(error)}, error.status)
        except Exception:
            _LOG.exception("request failed")
            response = json_response({"error": "internal error"}, 500)
        finally:
            self.inflight -= 1
            connection.unanswered = False
            connection.first_ns = None
        if connection.half_closed:
            response.force_close()
        return response

    async def _route(self, request: web.BaseRequest) -> web.Response:
        path, method = request.path, request.method
        match = _MODEL_PATH.match(path)
        wanted = "POST" if match is not None and match[3] == "infer" else "GET"
        echo = path == "/v2/testbed/echo"
        wanted = "POST" if echo else wanted
        known = path in ("/v2", "/v2/", "/v2/health/live", "/v2/health/ready") or echo or match is not None
        if not known:
            raise ProtocolError(f"there is nothing at {path[:100]}", 404)
        if method != wanted:
            raise ProtocolError(f"{path[:100]} answers {wanted} only", 405)
        if path == "/v2/health/live":
            return json_response({"live": True})
        if path == "/v2/health/ready":
            return json_response({"ready": self.ready}, 200 if self.ready else 503)
        if echo:
            return await self._echo(request)
        if match is None:
            return json_response({"name": f"testbed node {self.name}", "version": testbed.__version__,
                                  "extensions": ["binary_tensor_data"]})
        if wanted == "POST":
            body, first_ns, last_ns = await read_body(request, self.max_body_bytes, self.body_timeout_s)
        model, version, leaf = match.groups()
        try:
            info = self.worker.info(model)
        except UnknownModel as error:
            raise ProtocolError(str(error), 404) from None
        if version not in (None, VERSION):
            raise ProtocolError(f"model {model} has version {VERSION} only", 404)
        if leaf == "ready":
            return json_response({"name": model, "ready": self.ready}, 200 if self.ready else 503)
        if leaf is None:
            return json_response({
                "name": model, "versions": [VERSION], "platform": "testbed_staged",
                "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *info.input_shape]}],
                "outputs": [{"name": n, "datatype": "FP32", "shape": [-1, info.classes]}
                            for n in ("logits", "probabilities")],
                "parameters": {"stages": ",".join(s.name for s in info.stages),
                               "exits": ",".join(f"{e.name}@{e.after}" for e in info.exits)}})
        if not self.ready:
            raise ProtocolError("the node is not ready", 503)
        return await self._infer(model, body, request.headers.get(HEADER_LENGTH), first_ns, last_ns)

    @property
    def state(self) -> dict[str, Any]:
        """What this node says of itself with every answer: its queue, and the models in memory (None: all, always)."""
        residency = self.worker.residency
        return {"queue_depth": self.worker.queue_depth, "inflight": self.worker.inflight,
                "resident": None if residency is None else list(residency.resident)}

    async def _echo(self, request: web.BaseRequest) -> web.Response:
        """A probe: takes any body and says when it came, how long it was here (from its last byte on), and the node's state."""
        _, first_ns, last_ns = await read_body(request, self.max_body_bytes, self.body_timeout_s)
        return json_response({"recv_first_ns": first_ns, "recv_last_ns": last_ns, "server_ns": time.monotonic_ns() - last_ns,
                              "state": self.state})

    async def infer(self, model: str, body: bytes, header_length: str | None, recv_first_ns: int,
                    recv_last_ns: int) -> web.Response:
        """Answer an inference message that came by another transport than HTTP; what is wrong with it is an answer too."""
        self.inflight += 1
        try:
            if not self.ready:
                raise ProtocolError("the node is not ready", 503)
            try:
                self.worker.info(model)
            except UnknownModel as error:
                raise ProtocolError(str(error), 404) from None
            return await self._infer(model, body, header_length, recv_first_ns, recv_last_ns)
        except ProtocolError as error:
            return json_response({"error": str(error)}, error.status)
        except Exception:
            _LOG.exception("request failed")
            return json_response({"error": "internal error"}, 500)
        finally:
            self.inflight -= 1

    # ---- inference -------------------------------------------------------------------------------------------

    async def _infer(self, model: str, body: bytes, header_length: str | None, first_ns: int,
                     last_ns: int) -> web.Response:
        message = decode_request(body, header_length)
        planned = "testbed_plan" in message.parameters
        steps = self._steps(model, message)
        deadline_ns = message.parameters.get("testbed_deadline_ns")
        if deadline_ns is not None and type(deadline_ns) is not int:
            raise ProtocolError("testbed_deadline_ns must be an integer")
        x = await _input(self.coder, message, self.max_body_bytes)
        account: dict[str, Any] = {"recv_first_ns": first_ns, "recv_last_ns": last_ns, "stage": steps[0].stages,
                                   "exit_id": None, "confidence": None, "final_node": None, "final_model": None}
        try:
            done = await run_steps(self.name, self.worker, self.client, steps, x, request_id=message.id or "",
                                   start_ns=last_ns, deadline_ns=deadline_ns, coder=self.coder)
        except StepFailed as failed:
            return self._failed(failed, account, planned)
        account |= {"exit_id": done.exit_id, "confidence": done.confidence, "final_node": done.final_node,
                    "final_model": done.final_model, "states": {**done.states, self.name: self.state}}
        return self._answer(model, message, done, account, planned)

    def _steps(self, model: str, message: InferRequest) -> list[Step]:
        if "testbed_plan" not in message.parameters:
            stages = message.parameters.get("stages", ":")
            match = _STAGES.match(stages) if isinstance(stages, str) else None
            if match is None:
                raise ProtocolError("stages is a range such as 2:5")
            info = self.worker.info(model)
            start, stop = int(match[1] or 0), int(match[2] or info.num_stages)
            if not 0 <= start < stop <= info.num_stages:
                raise ProtocolError(f"stages {stages} are not a range within 0:{info.num_stages} of {model}")
            return [Step(self.name, model, start, stop)]
        try:
            plan = json.loads(str(message.parameters["testbed_plan"]))
            steps = parse_steps(plan)
        except PlanError as error:
            raise ProtocolError(f"testbed_plan: {error}") from None
        except (ValueError, RecursionError):
            raise ProtocolError("testbed_plan is not JSON") from None
        if steps[0].node != self.name or steps[0].model != model:
            raise ProtocolError(f"testbed_plan: its first step is for {steps[0].node} and {steps[0].model}, this is "
                                f"{self.name} and {model}")
        return steps

    def _answer(self, model: str, message: InferRequest, done: Done, account: dict[str, Any],
                planned: bool) -> web.Response:
        outputs = {"logits": done.output, "probabilities": None} if done.exit_id else {"output": done.output}
        names = [o.name for o in message.outputs] or (["logits"] if planned and done.exit_id else list(outputs))
        unknown = [n for n in names if n not in outputs]
        if unknown:
            raise ProtocolError(f"there is no output {unknown[0]!r:.60}; this request has {', '.join(outputs)}")
        if "probabilities" in names:
            outputs["probabilities"] = softmax(done.output).astype(np.float32)
        tensors = [Tensor(n, np.asarray(outputs[n], np.float32)) for n in names]
        binary = [o.binary for o in message.outputs] or [message.binary_output] * len(names)
        parameters: dict[str, Any] = {"testbed_timing": _account(account, done.hops, done.end_ns)}
        if done.exit_id is not None:
            parameters |= {"exit_id": done.exit_id, "exit_confidence": done.confidence, "final_node": done.final_node}
        body, length = encode_response(InferResponse(model, tensors, VERSION, message.id, parameters), binary)
        if length is None:
            return web.Response(body=body, content_type="application/json")
        return web.Response(body=body, content_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})

    def _failed(self, failed: StepFailed, account: dict[str, Any], planned: bool) -> web.Response:
        answer: dict[str, Any] = {"error": str(failed)}
        if planned:
            end_ns = time.monotonic_ns()
            answer |= {"error_type": failed.error_type, "testbed_timing": _account(account, failed.hops, end_ns)}
        return json_response(answer, _STATUS.get(failed.error_type, 502))


def _account(account: dict[str, Any], hops: list[Hop], encode_start_ns: int) -> str:
    # send_start_ns is taken here, the last thing before the answer is put together: it has to be inside the answer
    return json.dumps({**account, "hops": hops, "encode_start_ns": encode_start_ns, "send_start_ns": time.monotonic_ns()},
                      separators=(",", ":"))


async def _input(coder: Coder, message: InferRequest, max_bytes: int) -> NDArray[np.float32]:
    """The input array of a request, decoded. Raises ProtocolError."""
    first = message.inputs[0]
    if first.name != "input":
        raise ProtocolError(f"the input is called 'input', not {first.name!r:.60}")
    name = first.parameters.get("codec", "raw")
    if name not in coder.codecs:
        raise ProtocolError(f"codec must be one of {coder.codecs.choices}")
    if name == "raw":
        if len(message.inputs) != 1:
            raise ProtocolError(f"the model has one input, got {len(message.inputs)}")
        if first.datatype != "FP32":
            raise ProtocolError(f"input has datatype FP32, got {first.datatype}")
    try:
        params = json.loads(first.parameters.get("codec_params", "{}"))
        if not isinstance(params, dict):
            raise ValueError("codec_params is not an object")
        size = int(np.prod(params.get("shape", [0]), dtype=object))
        if size * 4 > 4 * max_bytes:
            raise ValueError("the decoded tensor is too large")
        return await coder.decode(str(name), [t.data for t in message.inputs], params)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"codec {name}: {error}") from None
