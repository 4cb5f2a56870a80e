"""HTTP/1.1 connections of a node: aiohttp's, with the instants of arrival stamped and errors answered as JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from testbed.serving.protocol import dump_json

_LOG = logging.getLogger("testbed.node")


class Connection(RequestHandler):
    """One connection. `first_ns` and `last_ns` are when the first and last bytes of the current request were read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_ns: int | None = None
        self.last_ns = 0
        self.unanswered = False  # bytes of a request have come and its answer has not gone
        self.half_closed = False
        self.reading: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        self.last_ns = time.monotonic_ns()
        if self.first_ns is None:
            self.first_ns = self.last_ns
        self.unanswered = True
        super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has sent all of its request and closed its half still gets the answer."""
        self.half_closed = True
        incomplete = self.reading is not None and not self.reading.is_eof()
        return True if self.unanswered and not incomplete else None

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """The protocol's error answer for what is not HTTP, or for a fault of ours."""
        _LOG.warning("%s: status %d: %s", request.remote, status, str(exc or message)[:200].replace("\n", " "))
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was already begun")
        text = "internal error" if status >= 500 else "this is not an acceptable HTTP/1.1 request"
        response = json_response({"error": text}, status)
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """aiohttp's low-level server with our connections."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class BodyError(Exception):
    """The body did not come as announced; `status` is the HTTP answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: web.BaseRequest, max_bytes: int, timeout_s: float) -> tuple[bytes, int, int]:
    """A request's body with the instants of its first and last byte (CLOCK_MONOTONIC). Raises BodyError."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    if request.content_length is not None and request.content_length > max_bytes:
        raise BodyError(f"the body has {request.content_length} bytes, this node takes {max_bytes}", 413)
    if connection.half_closed and not request.content.is_eof():
        raise BodyError("the connection was closed before the body was complete", 400)
    connection.reading = request.content
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyError(f"the body has more than the {max_bytes} bytes that this node takes", 413)
    except TimeoutError:
        raise BodyError(f"the body did not come within {timeout_s:g} s", 408) from None
    except (web.HTTPException, ConnectionError, ValueError) as error:
        raise BodyError(f"the body is broken: {error}", 400) from None
    except Exception as error:
        # aiohttp wraps broken chunks and broken compression in types that it does not export
        if type(error).__module__.startswith("aiohttp"):
            raise BodyError(f"the body is broken: {type(error).__name__}", 400) from None
        raise
    finally:
        connection.reading = None
    last_ns = connection.last_ns
    first_ns = connection.first_ns if connection.first_ns is not None else last_ns
    connection.first_ns = None  # the next byte on this connection begins the next request
    return bytes(body), min(first_ns, last_ns), last_ns


def json_response(value: object, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(body=dump_json(value), status=status, content_type="application/json")
