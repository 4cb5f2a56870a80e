"""A node behind a topic: takes requests as one of its consumer group, answers on the asker's topic, commits after that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from testbed.serving.kafka.broker import Route
from testbed.serving.kafka.consumer import Consumer, Delivery
from testbed.serving.kafka.envelope import Envelope
from testbed.serving.kafka.producer import Producer
from testbed.serving.protocol import HEADER_LENGTH
from testbed.serving.server import NodeServer

Handler = Callable[[Envelope, int], Awaitable[tuple[int, bytes, int | None]]]
"""(request, instant at which it came) -> HTTP status, body, length of the body's JSON part (None: all of it)."""


class KafkaServer:
    """One replica of a sub-model.

    Replicas that share `group` share the topic's partitions, so no more of them work than there are partitions. An offset
    is committed when the reply has been acknowledged: when a replica dies, its unanswered requests go to another, and a
    request that it had answered but not committed is answered twice (the asker drops the second reply).

    Parameters
    ----------
    name: this node's name, the sender of its replies.
    in_flight: requests under way at a time. 1 is the published system's loop, in which an escalation holds up the queue.
    """

    def __init__(self, name: str, handler: Handler, route: Route, group: str, *, in_flight: int = 1,
                 session_timeout_s: float = 10.0) -> None:
        self.name, self.route, self._handler = name, route, handler
        self.answered = 0
        self.failure: BaseException | None = None
        self._producer = Producer(route.cluster)
        self._consumer = Consumer(route.cluster, route.topic, group, self._receive, in_flight=in_flight,
                                  session_timeout_s=session_timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that this replica has now."""
        return self._consumer.partitions

    @property
    def malformed(self) -> int:
        """Records in the topic that were no messages; they are passed over."""
        return self._consumer.malformed

    async def start(self) -> None:
        """Connect and begin. Raises SendFailed when there is no broker, MissingToolError without the client library."""
        await self._producer.start()
        await self._producer.prepare(self.route.topic)
        await self._consumer.start()

    async def stop(self) -> None:
        """Leave the group; what is under way is given up and goes to another replica. Raises what broke this one."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await self._consumer.stop()
        await self._producer.close()
        if self.failure is not None:
            raise self.failure

    def _receive(self, delivery: Delivery) -> None:
        if self._stopping:
            return  # not committed: it comes again, to another replica
        task = asyncio.create_task(self._answer(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()
            self._consumer.halt()

    async def _answer(self, delivery: Delivery) -> None:
        request = delivery.envelope
        if request.kind == "request":
            status, body, length = await self._handler(request, delivery.recv_ns)
            await self._producer.send(request.reply_to, Envelope(
                "reply", request.correlation_id, self.name, request.model, time.monotonic_ns(), body, "", status, length))
            self.answered += 1
        delivery.done()


def answers_of(node: NodeServer) -> Handler:
    """The handler that lets a node answer: what it would have answered over HTTP."""

    async def handle(request: Envelope, recv_ns: int) -> tuple[int, bytes, int | None]:
        length = None if request.header_length is None else str(request.header_length)
        response = await node.infer(request.model, request.body, length, recv_ns, recv_ns)
        assert isinstance(response.body, bytes)
        told = response.headers.get(HEADER_LENGTH)
        return response.status, response.body, None if told is None else int(told)

    return handle
