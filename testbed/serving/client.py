"""HTTP/1.1 client of nodes: persistent connections, every instant that matters stamped, every failure typed."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

_MAX_HEAD_BYTES = 64 * 1024
_MAX_BODY_BYTES = 256 * 1024 * 1024

T = TypeVar("T")
TransportErrorType = Literal["timeout", "connect_timeout", "refused", "unreachable", "connection_lost",
                             "bad_response", "unknown_node"]


class TransportError(Exception):
    """A message got no answer. `error_type` is what goes into the `requests` table."""

    def __init__(self, error_type: TransportErrorType, message: str) -> None:
        super().__init__(message)
        self.error_type: TransportErrorType = error_type


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, with the instants (CLOCK_MONOTONIC) and bytes of its exchange."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    recv_first_ns: int  # first byte of the answer read
    recv_last_ns: int  # last byte of the answer read
    request_header_bytes: int
    response_header_bytes: int
    send_start_ns: int = 0  # first byte of the request handed to a connection that was open


class _Connection(asyncio.Protocol):
    """One connection with at most one request in flight. Bodies need a Content-Length, which our nodes always send."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._answer: asyncio.Future[Answer] | None = None
        self._sent_ns = 0
        self._reset(0)

    def _reset(self, sent_header_bytes: int) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str], int] | None = None
        self._first_ns: int | None = None
        self._sent_header_bytes = sent_header_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, head: bytes, body: bytes) -> asyncio.Future[Answer]:
        """Write a request and return the future of its answer."""
        assert self.transport is not None and self._answer is None
        self._reset(len(head))
        self._sent_ns = time.monotonic_ns()
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(head + body)
        return self._answer

    @property
    def answer_begun(self) -> bool:
        """Whether a byte of the current answer has arrived."""
        return self._first_ns is not None

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if self._answer is None:  # nothing was asked: this is not a peer to talk to
            self.abort()
            return
        if self._first_ns is None:
            self._first_ns = now_ns
        self._buffer += data
        try:
            if self._head is None:
                self._head = _parse_head(self._buffer)
            if self._head is None:
                return
            status, headers, start = self._head
            size = _content_length(headers)
        except TransportError as error:
            self._fail(error)
            self.abort()
            return
        if len(self._buffer) < start + size:
            return
        answer, self._answer = self._answer, None
        body = bytes(memoryview(self._buffer)[start:start + size])
        if len(self._buffer) > start + size or headers.get("connection", "").lower() == "close":
            self.abort()
        if not answer.done():
            answer.set_result(Answer(status, headers, body, self._first_ns, now_ns, self._sent_header_bytes, start,
                                     self._sent_ns))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        kind: TransportErrorType = "connection_lost"
        if isinstance(exc, OSError) and exc.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            kind = "unreachable"
        elif isinstance(exc, TimeoutError) or (isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT):
            kind = "timeout"
        self._fail(TransportError(kind, f"the connection ended before the answer was complete{f' ({exc})' if exc else ''}"))

    def _fail(self, error: TransportError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self._answer = None

    def abort(self) -> None:
        """Drop the connection and whatever is still to be sent."""
        self.closed = True
        self._answer = None
        if self.transport is not None:
            self.transport.abort()


class NodeClient:
    """Client of all peers of one node or device; an asynchronous context manager.

    Parameters
    ----------
    name: the node that this client belongs to.
    peers: node -> "address:port".
    tiers, tier_order: node -> tier, and the tiers from the device side to the cloud side: give a transfer its direction.
    tensors: how tensors of plans travel: `binary`, or `json` for decimal numbers, which is what many published systems send.
    max_idle: connections kept open per peer when nothing is in flight; there is no limit to those in flight.
    """

    def __init__(self, name: str, peers: Mapping[str, str], tiers: Mapping[str, str] | None = None,
                 tier_order: Sequence[str] = (), *, max_idle: int = 16, tensors: Literal["binary", "json"] = "binary") -> None:
        self.name, self.tensors, self._max_idle = name, tensors, max_idle
        self.peers = {node: _address(at) for node, at in peers.items()}
        self._rank = {node: tier_order.index(tier) for node, tier in (tiers or {}).items() if tier in tier_order}
        self._idle: dict[str, list[_Connection]] = {}

    async def __aenter__(self) -> NodeClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    def direction(self, src: str, dst: str, default: str) -> str:
        """`up` towards the cloud, `down` towards the device; `default` between nodes of one tier or of no known tier."""
        a, b = self._rank.get(src), self._rank.get(dst)
        return default if a is None or b is None or a == b else "up" if a < b else "down"

    async def request(self, node: str, method: str, path: str, body: bytes = b"",
                      headers: Mapping[str, str] | None = None, *, deadline_ns: int | None = None,
                      connect_timeout_s: float = 10.0) -> Answer:
        """Send a request to a peer and wait for its whole answer, at most until `deadline_ns` (CLOCK_MONOTONIC).

        A connection that the peer had closed while it was idle is replaced once, without the caller noticing.
        Raises TransportError.
        """
        if node not in self.peers:
            raise TransportError("unknown_node", f"{self.name} knows no node {node!r:.60}")
        host, port = self.peers[node]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}",
                 *(f"{k}: {v}" for k, v in (headers or {}).items())]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        while True:
            connection = self._take(node)
            reused = connection is not None
            if connection is None:
                connection = await self._connect(host, port, deadline_ns, connect_timeout_s)
            try:
                answer = await _until(connection.send(head, body), deadline_ns)
            except TransportError as error:
                if reused and not connection.answer_begun and error.error_type == "connection_lost":
                    continue  # a stale connection; every other idle one may be stale too, a new one is not `reused`
                connection.abort()
                raise
            except BaseException:  # cancelled: an answer that nobody waits for must not reach the next request
                connection.abort()
                raise
            if not connection.closed:
                self._put(node, connection)
            return answer

    def _take(self, node: str) -> _Connection | None:
        idle = self._idle.get(node, [])
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    def _put(self, node: str, connection: _Connection) -> None:
        idle = self._idle.setdefault(node, [])
        if len(idle) < self._max_idle:
            idle.append(connection)
        else:
            connection.abort()

    async def _connect(self, host: str, port: int, deadline_ns: int | None, timeout_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        limit_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        limit_ns = limit_ns if deadline_ns is None else min(limit_ns, deadline_ns)
        task = asyncio.ensure_future(loop.create_connection(_Connection, host, port))
        try:
            _, connection = await _until(task, limit_ns)
        except TransportError:
            raise TransportError("connect_timeout", f"no connection to {host}:{port} in time") from None
        except ConnectionRefusedError:
            raise TransportError("refused", f"{host}:{port} refuses connections") from None
        except OSError as error:
            kind: TransportErrorType = "connect_timeout" if error.errno == errno.ETIMEDOUT else "unreachable"
            raise TransportError(kind, f"{host}:{port} cannot be reached: {error}") from None
        return connection


async def _until(future: asyncio.Future[T], deadline_ns: int | None) -> T:
    """Result of a future, at most until an instant. Raises TransportError `timeout`; the future is cancelled then."""
    left_s = None if deadline_ns is None else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
    try:
        return await asyncio.wait_for(future, left_s)
    except TimeoutError:
        if future.done() and not future.cancelled() and future.exception() is not None:
            raise  # the operation itself timed out (ETIMEDOUT is a TimeoutError too), before our limit
        raise TransportError("timeout", "no answer in time") from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"a peer's address is written address:port, got {text!r}")
    return host, int(port)


def _parse_head(buffer: bytearray) -> tuple[int, dict[str, str], int] | None:
    """(status, headers, where the body begins), or None while the head is incomplete. Raises TransportError."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > _MAX_HEAD_BYTES:
            raise TransportError("bad_response", "the answer's head is too long")
        return None
    lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not (parts[1].isdigit() and len(parts[1]) == 3):
        raise TransportError("bad_response", f"not an HTTP answer: {lines[0]!r:.60}")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise TransportError("bad_response", f"not an HTTP header: {line!r:.60}")
        headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers, end + 4


def _content_length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "")
    if not text.isdigit() or int(text) > _MAX_BODY_BYTES:
        raise TransportError("bad_response", f"the answer has no usable Content-Length: {text!r:.40}")
    return int(text)
