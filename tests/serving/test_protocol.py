"""Open Inference Protocol messages: round trips of every datatype, and nothing but ProtocolError for the rest."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from testbed.serving.datatypes import NUMPY_OF, ProtocolError, Tensor
from testbed.serving.protocol import (
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

NUMERIC = {name: dtype for name, dtype in NUMPY_OF.items() if name != "BYTES"}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and (
        a.tolist() == b.tolist() if a.dtype.kind == "O" else a.tobytes() == b.tobytes())


@st.composite
def tensors(draw: Any, finite: bool = False) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    name = draw(st.sampled_from(sorted(NUMPY_OF)))
    if name == "BYTES":
        element = st.text(max_size=5).map(lambda s: s.encode("utf-8", "ignore")) if finite else st.binary(max_size=5)
        flat = draw(st.lists(element, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(shape)
    dtype = NUMPY_OF[name]
    width: Any = dtype.itemsize * 8
    elements = st.floats(allow_nan=False, allow_infinity=False, width=width) if finite and dtype.kind == "f" else None
    return np.asarray(draw(hnp.arrays(dtype, shape, elements=elements)))


@given(st.lists(tensors(), min_size=1, max_size=3), st.one_of(st.none(), st.text(min_size=1, max_size=8)))
def test_binary_requests_round_trip(arrays: list[np.ndarray], identifier: str | None) -> None:
    request = InferRequest([Tensor(f"t{i}", a, {"note": i}) for i, a in enumerate(arrays)], identifier,
                           {"stages": "2:5"}, [RequestedOutput("logits", True)], True)
    body, length = encode_request(request)
    back = decode_request(body, str(length))
    assert back.id == identifier and back.parameters == {"stages": "2:5"} and back.binary_output
    assert back.outputs == request.outputs
    for sent, got in zip(request.inputs, back.inputs, strict=True):
        assert (sent.name, sent.parameters) == (got.name, got.parameters) and same(sent.data, got.data)


@given(st.lists(tensors(finite=True), min_size=1, max_size=3), st.booleans())
def test_responses_round_trip_in_json_and_binary(arrays: list[np.ndarray], binary: bool) -> None:
    response = InferResponse("m", [Tensor(f"t{i}", a) for i, a in enumerate(arrays)], "1", "id", {"exit_id": "early"})
    body, length = encode_response(response, [binary] * len(arrays))
    assert (length is not None) == binary
    back = decode_response(body, None if length is None else str(length))
    assert (back.model_name, back.id, back.parameters) == ("m", "id", {"exit_id": "early"})
    for sent, got in zip(response.outputs, back.outputs, strict=True):
        assert got.data.shape == sent.data.shape and got.datatype == sent.datatype
        if sent.datatype == "BYTES":
            assert got.data.tolist() == sent.data.tolist()
        else:
            assert np.array_equal(got.data, sent.data)  # 0.0 and -0.0 may change places in JSON, nothing else


def test_nested_and_flat_json_data_are_the_same() -> None:
    for data in ([[1, 2], [3, 4], [5, 6]], [1, 2, 3, 4, 5, 6]):
        body = json.dumps({"inputs": [{"name": "a", "datatype": "INT8", "shape": [3, 2], "data": data}]}).encode()
        assert decode_request(body, None).inputs[0].data.tolist() == [[1, 2], [3, 4], [5, 6]]


def request(tensor: dict[str, Any] | None = None, **top: Any) -> bytes:
    base = {"name": "a", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    return json.dumps({"inputs": [{**base, **(tensor or {})}], **top}).encode()


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b"\xff\xfe", b"{}", b'{"inputs":[]}', b'{"inputs":[7]}', b"[" * 100_000,
    b'{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[NaN]}]}',
    b'{"inputs":[{"name":"a","datatype":"INT64","shape":[1],"data":[' + b"9" * 5000 + b"]}]}",
    request({"name": ""}), request({"name": 7}), request({"datatype": "FP31"}), request({"datatype": ["FP32"]}),
    request({"shape": [3]}), request({"shape": [-1]}), request({"shape": 2}), request({"shape": [2.0]}),
    request({"shape": [2**40, 2**40]}), request({"shape": [1] * 50 + [2]}), request({"shape": [True, 2]}),
    request({"data": None}), request({"data": [1]}), request({"data": ["1", "2"]}), request({"data": [[1], [2]]}),
    request({"datatype": "UINT8", "data": [1, 256]}), request({"datatype": "UINT8", "data": [1, 2.5]}),
    request({"datatype": "BOOL", "data": [0, 1]}), request({"datatype": "BYTES", "data": [1, 2]}),
    request({"datatype": "BYTES", "data": ["\ud800", ""]}), request({"datatype": "FP16", "data": [1e6, 0]}),
    request({"data": [10**400, 0]}), request({"parameters": {"binary_data_size": 8}}),
    request({"parameters": {"shared_memory_region": "x"}}), request({"parameters": [1]}),
    request({"parameters": {"a": {}}}), request(id=7), request(parameters="x"), request(outputs={}),
    request(outputs=[{"name": "o", "parameters": {"binary_data": 1}}]), request(extra=1),
    request(outputs=[{"name": "o", "parameters": {"classification": 3}}]),
    json.dumps({"inputs": [json.loads(request())["inputs"][0]] * 2}).encode(),
    json.dumps({"inputs": [json.loads(request())["inputs"][0] | {"name": str(i)} for i in range(99)]}).encode(),
])
def test_malformed_json_requests(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(body, None)


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "99999999999999999999", "1000000", "5", "²"])
def test_wrong_header_lengths(length: str) -> None:
    body, _ = encode_request(InferRequest([Tensor("a", np.zeros(4, np.float32))]))
    with pytest.raises(ProtocolError):
        decode_request(body, length)


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=6)))
def test_any_bytes_are_a_protocol_error_or_a_request(body: bytes, length: str | None) -> None:
    for decode in (decode_request, decode_response):
        with contextlib.suppress(ProtocolError):
            decode(body, length)


@given(st.data())
def test_a_damaged_request_is_a_protocol_error_or_a_request(data: st.DataObject) -> None:
    body, length = encode_request(InferRequest(
        [Tensor("a", np.arange(3, dtype=np.float32)), Tensor("b", np.array([b"x", b"yz"], object))], "id"))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for candidate in (bytes(damaged), bytes(damaged[:cut]), bytes(damaged) + b"x"):
        with contextlib.suppress(ProtocolError):
            decode_request(candidate, str(length))
