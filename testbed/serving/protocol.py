"""Open Inference Protocol v2 messages with the binary tensor data extension: strict, pure encoding and decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from testbed.serving.datatypes import (
    ProtocolError,
    Tensor,
    check_datatype,
    check_shape,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_TENSORS = 64
_JSON_KEYS_REQUEST = {"id", "parameters", "inputs", "outputs"}
_UNSERVED = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification",
             "sequence_id", "sequence_start", "sequence_end", "priority")

__all__ = ["HEADER_LENGTH", "InferRequest", "InferResponse", "ProtocolError", "RequestedOutput", "Tensor",
           "decode_request", "decode_response", "encode_request", "encode_request_json", "encode_response"]


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants, and whether in binary."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """An inference request. `outputs` empty means all outputs, in binary when `binary_output`."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[RequestedOutput] = field(default_factory=list)
    binary_output: bool = False


@dataclass(frozen=True)
class InferResponse:
    """An inference response."""

    model_name: str
    outputs: list[Tensor]
    model_version: str = "1"
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def encode_request(request: InferRequest) -> tuple[bytes, int]:
    """Body with every input in binary, and the length of its JSON header."""
    inputs, chunks = _binary_tensors(request.inputs)
    head: dict[str, Any] = {} if request.id is None else {"id": request.id}
    parameters = dict(request.parameters)
    if request.binary_output:
        parameters["binary_data_output"] = True
    if parameters:
        head["parameters"] = parameters
    head["inputs"] = inputs
    if request.outputs:
        head["outputs"] = [{"name": o.name, "parameters": {"binary_data": o.binary}} for o in request.outputs]
    return _join(head, chunks)


def encode_request_json(request: InferRequest) -> bytes:
    """Body with every input as decimal numbers; the outputs are asked for in the same way."""
    head: dict[str, Any] = {} if request.id is None else {"id": request.id}
    if request.parameters:
        head["parameters"] = request.parameters
    head["inputs"] = [{"name": t.name, "datatype": t.datatype, "shape": list(t.data.shape), "data": to_json(t.data),
                       **({"parameters": t.parameters} if t.parameters else {})} for t in request.inputs]
    return dump_json(head)


def encode_response(response: InferResponse, binary: Sequence[bool]) -> tuple[bytes, int | None]:
    """Body with the chosen outputs in binary, and the length of its JSON header (None when all of it is JSON)."""
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    outputs: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for tensor, in_binary in zip(response.outputs, binary, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.data.shape)}
        if in_binary:
            chunks.append(to_binary(tensor.data))
            entry["parameters"] = {**tensor.parameters, "binary_data_size": len(chunks[-1])}
        else:
            if tensor.parameters:
                entry["parameters"] = tensor.parameters
            entry["data"] = to_json(tensor.data)
        outputs.append(entry)
    head["outputs"] = outputs
    body, length = _join(head, chunks)
    return body, length if any(binary) else None


def decode_request(body: bytes, header_length: str | None) -> InferRequest:
    """The request in a body. `header_length` is the HTTP header's value, None without it. Raises ProtocolError."""
    head, rest = _split(body, header_length)
    unknown = sorted(set(head) - _JSON_KEYS_REQUEST)
    if unknown:
        raise ProtocolError(f"unknown key {unknown[0]!r:.60}; a request has {', '.join(sorted(_JSON_KEYS_REQUEST))}")
    parameters = _parameters(head, "request")
    binary_output = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    outputs = []
    for entry in _objects_in(head.get("outputs", []), "outputs"):
        name, own = _name(entry, "outputs"), _parameters(entry, "output")
        outputs.append(RequestedOutput(name, _flag(own.get("binary_data", binary_output), "binary_data")))
    inputs = _tensors(head.get("inputs"), rest, "inputs")
    if not inputs:
        raise ProtocolError("inputs: at least one tensor is needed")
    return InferRequest(inputs, _identifier(head), parameters, outputs, binary_output)


def decode_response(body: bytes, header_length: str | None) -> InferResponse:
    """The response in a body. Raises ProtocolError."""
    head, rest = _split(body, header_length)
    name, version = head.get("model_name"), head.get("model_version", "")
    if not isinstance(name, str) or not isinstance(version, str):
        raise ProtocolError("a response names model_name and model_version as strings")
    return InferResponse(name, _tensors(head.get("outputs"), rest, "outputs"), version, _identifier(head),
                         _parameters(head, "response"))


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no NaN, no runaway nesting. Raises ProtocolError."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise ProtocolError("JSON is nested too deeply") from None
    except ValueError as error:  # includes UnicodeDecodeError and absurdly long integers
        raise ProtocolError(f"body is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise ProtocolError("JSON is not an object")
    return value


def dump_json(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    if header_length is None:
        return parse_json(body), memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12:
        raise ProtocolError(f"{HEADER_LENGTH} must be a number of bytes, got {header_length!r:.60}")
    length = int(header_length)
    if length > len(body):
        raise ProtocolError(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    return parse_json(body[:length]), memoryview(body)[length:]


def _join(head: dict[str, Any], chunks: list[bytes]) -> tuple[bytes, int]:
    text = dump_json(head)
    return b"".join([text, *chunks]), len(text)


def _binary_tensors(tensors: Sequence[Tensor]) -> tuple[list[dict[str, Any]], list[bytes]]:
    entries, chunks = [], []
    for tensor in tensors:
        data = to_binary(tensor.data)
        entries.append({"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.data.shape),
                        "parameters": {**tensor.parameters, "binary_data_size": len(data)}})
        chunks.append(data)
    return entries, chunks


def _tensors(entries: object, rest: memoryview, where: str) -> list[Tensor]:
    found: list[Tensor] = []
    position = 0
    for entry in _objects_in(entries, where):
        name = _name(entry, where)
        if any(t.name == name for t in found):
            raise ProtocolError(f"{where}: {name!r} is given twice")
        datatype, shape = check_datatype(entry.get("datatype"), name), check_shape(entry.get("shape"), name)
        parameters = _parameters(entry, f"tensor {name!r}")
        if "binary_data_size" in parameters:
            size = parameters.pop("binary_data_size")
            if type(size) is not int or size < 0:
                raise ProtocolError(f"tensor {name!r}: binary_data_size must be a number of bytes")
            if "data" in entry:
                raise ProtocolError(f"tensor {name!r}: has both data and binary_data_size")
            if position + size > len(rest):
                raise ProtocolError(f"tensor {name!r}: binary_data_size {size} goes beyond the body; is "
                                    f"{HEADER_LENGTH} set?")
            data = from_binary(rest[position:position + size], datatype, shape, name)
            position += size
        else:
            data = from_json(entry.get("data"), datatype, shape, name)
        found.append(Tensor(name, data, parameters))
    if position != len(rest):
        raise ProtocolError(f"{len(rest) - position} bytes of the body belong to no tensor")
    return found


def _objects_in(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ProtocolError(f"{where}: must be a list of objects")
    if len(value) > _MAX_TENSORS:
        raise ProtocolError(f"{where}: at most {_MAX_TENSORS} tensors")
    return value


def _name(entry: dict[str, Any], where: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise ProtocolError(f"{where}: each needs a name")
    return name


def _identifier(head: dict[str, Any]) -> str | None:
    identifier = head.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise ProtocolError("id must be a string")
    return identifier or None


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{where}: parameters must be an object")
    for key, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise ProtocolError(f"{where}: parameter {key!r:.60} must be a string, number or boolean")
        if key in _UNSERVED and value not in (0, False):
            raise ProtocolError(f"{where}: parameter {key!r} asks for an extension that this server does not have")
    return dict(parameters)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} must be true or false")
    return value
