"""What travels through a topic: a body with its correlation id, sender, reply topic and instant of sending.

Brokers from 0.11 on carry the envelope in a record header, so the value is the body alone. Older brokers have no record
headers: there the envelope stands before the body, as `TBK1`, its length (4 bytes, big endian), its JSON, the body.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from testbed.serving.protocol import ProtocolError, dump_json, parse_json

MAGIC = b"TBK1"
HEADER = "testbed-envelope"
_PREFIX = struct.Struct(">4sI")
_MAX_ENVELOPE_BYTES = 64 * 1024

Kind = Literal["request", "reply"]


@dataclass(frozen=True)
class Envelope:
    """One message.

    `correlation_id` is the request's, its reply carries the same. `reply_to` is the topic for the reply (requests only),
    `status` the HTTP status that the answer would have (replies only). `header_length` is the length of the JSON part of an
    Open Inference Protocol body, None when all of it is JSON. `sent_ns` is on CLOCK_MONOTONIC.
    """

    kind: Kind
    correlation_id: str
    source: str
    model: str
    sent_ns: int
    body: bytes
    reply_to: str = ""
    status: int = 0
    header_length: int | None = None

    def pack(self, record_headers: bool) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Value and headers of the record."""
        head = self._head()
        if record_headers:
            return self.body, [(HEADER, head)]
        return _PREFIX.pack(MAGIC, len(head)) + head + self.body, []

    def overhead_bytes(self, record_headers: bool) -> int:
        """How many bytes of the record are not the body."""
        return len(self._head()) + (len(HEADER) if record_headers else _PREFIX.size)

    def _head(self) -> bytes:
        return dump_json({"kind": self.kind, "id": self.correlation_id, "source": self.source, "model": self.model,
                          "sent_ns": self.sent_ns, "reply_to": self.reply_to, "status": self.status,
                          "header_length": self.header_length})


def unpack(value: bytes | None, headers: Sequence[tuple[str, bytes | None]] = ()) -> tuple[Envelope, int]:
    """The message of a record, and how many bytes its envelope took there. Raises ProtocolError."""
    head = next((text for name, text in headers if name == HEADER), None)
    value = value or b""
    if head is not None:
        return _envelope(head, value), len(HEADER) + len(head)
    if len(value) < _PREFIX.size:
        raise ProtocolError("a record without an envelope")
    magic, length = _PREFIX.unpack_from(value)
    if magic != MAGIC or length > _MAX_ENVELOPE_BYTES or _PREFIX.size + length > len(value):
        raise ProtocolError("a record without an envelope")
    start = _PREFIX.size + length
    return _envelope(value[_PREFIX.size:start], value[start:]), start


def _envelope(head: bytes, body: bytes) -> Envelope:
    told = parse_json(head)
    texts = [told.get(key) for key in ("id", "source", "model", "reply_to")]
    numbers = [told.get(key) for key in ("sent_ns", "status")]
    kind, length = told.get("kind"), told.get("header_length")
    if (kind not in ("request", "reply") or not all(isinstance(text, str) for text in texts)
            or not all(type(number) is int for number in numbers)
            or not (length is None or (type(length) is int and 0 <= length <= len(body)))
            or not told["id"] or (kind == "request" and not told["reply_to"])):
        raise ProtocolError("an envelope that is not complete")
    return Envelope(kind, told["id"], told["source"], told["model"], told["sent_ns"], body, told["reply_to"],
                    told["status"], length)
