"""The client of nodes: keeps connections, replaces stale ones once, and never mixes answers up."""

from __future__ import annotations

import asyncio

import pytest

from testbed.serving.client import NodeClient, TransportError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


async def answering(accepted: list[int], close_after: int | None = None) -> asyncio.Server:
    """A server that answers every request with its path's last two characters."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(1)
        try:
            served = 0
            while close_after is None or served < close_after:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1]
                await asyncio.sleep(0.05 if b"slow" in path else 0)
                writer.write(OK + path[-2:])
                served += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


def client_of(server: asyncio.Server) -> NodeClient:
    return NodeClient("me", {"n": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})


def test_one_connection_serves_requests_in_turn_and_several_at_once() -> None:
    async def go() -> None:
        accepted: list[int] = []
        client = client_of(await answering(accepted))
        for i in range(10, 15):
            assert (await client.request("n", "GET", f"/{i}")).body == str(i).encode()
        assert len(accepted) == 1
        answers = await asyncio.gather(*(client.request("n", "GET", f"/slow/{i}") for i in range(10, 18)))
        assert [a.body for a in answers] == [str(i).encode() for i in range(10, 18)]
        assert len(accepted) == 8
        await client.close()

    asyncio.run(go())


def test_a_stale_connection_is_replaced_unnoticed() -> None:
    async def go() -> None:
        accepted: list[int] = []
        client = client_of(await answering(accepted, close_after=1))
        for i in range(10, 16):
            assert (await client.request("n", "GET", f"/{i}")).body == str(i).encode()
        assert len(accepted) == 6

    asyncio.run(go())


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one() -> None:
    async def go() -> None:
        import time

        client = client_of(await answering([]))
        with pytest.raises(TransportError) as caught:
            await client.request("n", "GET", "/slow/11", deadline_ns=time.monotonic_ns() + 10_000_000)
        assert caught.value.error_type == "timeout"
        assert (await client.request("n", "GET", "/22")).body == b"22"

    asyncio.run(go())


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad\r\n\r\n",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"x" * 70_000,
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_answers_that_are_not_http_are_typed_errors(answer: bytes) -> None:
    async def go() -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

        client = client_of(await asyncio.start_server(handle, "127.0.0.1", 0))
        with pytest.raises(TransportError) as caught:
            await client.request("n", "GET", "/")
        return caught.value.error_type

    assert asyncio.run(go()) == "bad_response"


def test_direction_follows_the_tiers() -> None:
    client = NodeClient("d1", {}, {"d1": "device", "e1": "edge", "e2": "edge", "c1": "cloud"}, ["device", "edge", "cloud"])
    assert client.direction("d1", "e1", "x") == client.direction("e1", "c1", "x") == "up"
    assert client.direction("c1", "d1", "x") == "down"
    assert client.direction("e1", "e2", "x") == client.direction("d1", "mars", "x") == "x"


def test_a_wrong_address_is_refused_at_once() -> None:
    for wrong in ("10.0.0.1", "10.0.0.1:http", ":80"):
        with pytest.raises(ValueError, match="address:port"):
            NodeClient("me", {"n": wrong})
