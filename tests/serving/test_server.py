"""A node over raw sockets: every wrong request gets the protocol's error answer, and the node lives on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from testbed.inference.data import load_dataset
from testbed.serving.protocol import (
    HEADER_LENGTH,
    InferRequest,
    RequestedOutput,
    Tensor,
    decode_response,
    encode_request,
)

DATA = load_dataset("digits")
INFER = "/v2/models/digits_branchy/infer"


async def raw(port: int, data: bytes, *, half_close: bool = False, wait_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read one HTTP answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(wait_s):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers, body
    finally:
        writer.close()


def http(method: str, path: str, body: bytes = b"", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: node", f"Content-Length: {len(body)}",
             *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def infer(x: np.ndarray, **parameters: Any) -> bytes:
    body, length = encode_request(InferRequest([Tensor("input", x)], "r-7", parameters, binary_output=True))
    return http("POST", INFER, body, **{HEADER_LENGTH: length})


def serve(three_nodes: Any, *requests: bytes, limits: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """Answers of the edge to requests on connections of their own; then the node must still give right answers."""

    async def go() -> list[Any]:
        async with three_nodes(**(limits or {})) as nodes:
            answers = [await raw(nodes.ports["edge1"], r, **options) for r in requests]
            status, _, body = await raw(nodes.ports["edge1"], http("GET", "/v2/health/ready"))
            assert (status, json.loads(body)) == (200, {"ready": True})
            status, headers, body = await raw(nodes.ports["edge1"], infer(DATA.x[:1]))
            assert decode_response(body, headers[HEADER_LENGTH.lower()]).outputs[0].data.argmax() == DATA.y[0]
            return answers

    return asyncio.run(go())


def test_health_and_metadata(three_nodes: Any) -> None:
    paths = ["/v2", "/v2/health/live", "/v2/models/digits_branchy", "/v2/models/digits_branchy/versions/1",
             "/v2/models/digits_branchy/ready", "/v2/models/digits_branchy/versions/1/ready"]
    answers = serve(three_nodes, *(http("GET", p) for p in paths))
    assert [a[0] for a in answers] == [200] * 6
    server, _, model = (json.loads(a[2]) for a in answers[:3])
    assert server["extensions"] == ["binary_tensor_data"] and model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 64, 64]}]
    assert {o["name"]: o["shape"] for o in model["outputs"]} == {"logits": [-1, 10], "probabilities": [-1, 10]}


def test_a_batch_in_json_with_the_id_echoed(three_nodes: Any) -> None:
    body = json.dumps({"id": "abc", "inputs": [{"name": "input", "datatype": "FP32", "shape": [3, 1, 64, 64],
                                                "data": DATA.x[:3].reshape(-1).tolist()}],
                       "outputs": [{"name": "probabilities"}]}).encode()
    (status, headers, answer), = serve(three_nodes, http("POST", INFER, body))
    response = decode_response(answer, headers.get(HEADER_LENGTH.lower()))
    assert status == 200 and response.id == "abc" and HEADER_LENGTH.lower() not in headers
    assert [o.name for o in response.outputs] == ["probabilities"]
    assert response.outputs[0].data.argmax(1).tolist() == DATA.y[:3].tolist()
    assert np.allclose(response.outputs[0].data.sum(1), 1, atol=1e-5)
    timing = json.loads(response.parameters["testbed_timing"])
    hop, = timing["hops"]
    assert timing["recv_first_ns"] <= timing["recv_last_ns"] == hop["queue_start_ns"] <= hop["compute_start_ns"] \
        <= hop["compute_end_ns"] == timing["encode_start_ns"] <= timing["send_start_ns"]


def test_stage_ranges_compose(three_nodes: Any) -> None:
    (_, headers, body), = serve(three_nodes, infer(DATA.x[:2], stages="0:3"))
    middle = decode_response(body, headers[HEADER_LENGTH.lower()]).outputs[0]
    assert middle.name == "output" and middle.data.shape == (2, 32, 8, 8)
    (_, headers, body), = serve(three_nodes, infer(middle.data, stages="3:"))
    assert decode_response(body, headers[HEADER_LENGTH.lower()]).outputs[0].data.argmax(1).tolist() == DATA.y[:2].tolist()


X1 = DATA.x[:1]
JSON_OK = json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()


@pytest.mark.parametrize(("request_bytes", "status"), [
    (http("GET", "/"), 404), (http("GET", "/v2/models"), 404), (http("GET", "/v2/models/nope"), 404),
    (http("POST", "/v2/models/nope/infer", JSON_OK), 404), (http("GET", "/v2/models/digits_branchy/versions/2"), 404),
    (http("GET", INFER), 405), (http("POST", "/v2/health/live"), 405),
    (http("POST", INFER), 400), (http("POST", INFER, b"{"), 400), (http("POST", INFER, JSON_OK), 400),
    (http("POST", INFER, JSON_OK, **{HEADER_LENGTH: "-3"}), 400),
    (infer(X1[:, :, :32]), 400), (infer(X1[0]), 400), (infer(X1[:0]), 400), (infer(X1.astype(np.float64)), 400),
    (infer(X1.astype(np.float16)), 400), (infer(X1, stages="3:2"), 400), (infer(X1, stages="0:9"), 400),
    (infer(X1, stages=7), 400), (infer(X1, stages="2:5"), 400), (infer(X1, testbed_plan="{"), 400),
    (infer(X1, testbed_plan="[]"), 400), (infer(X1, testbed_plan="[" * 30_000), 400),
    (infer(X1, testbed_plan='[{"node":"cloud1","model":"digits_branchy","start":0,"stop":5}]'), 400),
    (infer(X1, testbed_deadline_ns="soon"), 400),
    (infer(X1, testbed_deadline_ns=1), 504),
    (http("POST", INFER, b"x" * 200_000), 413),
    (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
     + b"10000\r\n" + b"x" * 65536 + b"\r\n10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n", 413),
    (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (http("POST", INFER, b"not gzip", Content_Encoding="gzip"), 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400), (b"HELO\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nbroken header\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", 400),
    (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
], ids=lambda v: str(v)[:40] if isinstance(v, int) else None)
def test_wrong_requests_get_the_protocols_error_answer(three_nodes: Any, request_bytes: bytes, status: int) -> None:
    (found, headers, body), = serve(three_nodes, request_bytes, limits={"max_body_bytes": 100_000})
    assert found == status and headers["content-type"].startswith("application/json")
    answer = json.loads(body)
    assert isinstance(answer["error"], str) and answer["error"] and "Traceback" not in answer["error"]


def test_an_unknown_output_is_refused(three_nodes: Any) -> None:
    body, length = encode_request(InferRequest([Tensor("input", X1)], outputs=[RequestedOutput("labels", True)]))
    (status, _, answer), = serve(three_nodes, http("POST", INFER, body, **{HEADER_LENGTH: length}))
    assert status == 400 and "labels" in json.loads(answer)["error"]


def test_a_half_closed_client_gets_its_answer(three_nodes: Any) -> None:
    (status, _, _), = serve(three_nodes, infer(X1), half_close=True)
    assert status == 200


def test_slow_and_vanishing_clients_do_not_hold_the_node(three_nodes: Any) -> None:
    async def go() -> None:
        async with three_nodes(body_timeout_s=0.3) as nodes:
            port = nodes.ports["edge1"]
            whole = infer(X1)
            slow = asyncio.create_task(raw(port, whole[:-5]))  # the last bytes never come
            writers = []
            for cut in (10, len(whole) // 2, len(whole) - 1):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(whole[:cut])
                await writer.drain()
                writers.append(writer)
            for writer in writers:
                writer.transport.abort()
            _, half = await asyncio.open_connection("127.0.0.1", port)
            half.write(whole[:-5])
            half.write_eof()
            status, _, _ = await raw(port, whole)  # meanwhile others are served
            assert status == 200
            status, _, body = await slow
            assert status == 408 and "0.3 s" in json.loads(body)["error"]
            half.close()
            assert nodes.edge.inflight == 0 and nodes.edge.worker.inflight == 0

    asyncio.run(go())


def test_a_node_that_is_not_ready_says_so(three_nodes: Any) -> None:
    async def go() -> list[int]:
        async with three_nodes() as nodes:
            nodes.edge.ready = False
            return [(await raw(nodes.ports["edge1"], r))[0] for r in (
                http("GET", "/v2/health/live"), http("GET", "/v2/health/ready"),
                http("GET", "/v2/models/digits_branchy/ready"), infer(X1))]

    assert asyncio.run(go()) == [200, 503, 503, 503]
