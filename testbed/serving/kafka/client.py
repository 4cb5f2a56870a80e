"""Client of nodes behind topics: takes the place of the HTTP client, so plans and their rows stay the same.

Every request has a correlation id of its own, and its reply is looked for by it: several clients, several requests under way
and replies in another order cannot swap answers. A reply that comes a second time (its request was delivered again after
a failure) is counted and dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from testbed.serving.client import Answer, NodeClient, TransportError
from testbed.serving.kafka.broker import Cluster, Route, clusters_of
from testbed.serving.kafka.consumer import Consumer, Delivery
from testbed.serving.kafka.envelope import Envelope
from testbed.serving.kafka.producer import Producer, SendFailed
from testbed.serving.protocol import HEADER_LENGTH

_INFER, _END = "/v2/models/", "/infer"


@dataclass
class ReplyCounts:
    """Replies that came: `matched` went to who waited, `late` came after the deadline, `duplicates` for the second time,
    `foreign` belong to another client (one that had this name before)."""

    matched: int = 0
    late: int = 0
    duplicates: int = 0
    foreign: int = 0


class KafkaClient(NodeClient):
    """Reaches the nodes that have a route through their topics. Call `start` in the event loop, `close` at the end.

    A request stays in its topic until a node deals with it, also when no node is there yet: without a deadline the wait
    has no end. Only inference travels by this transport.

    Parameters: see `NodeClient`; `routes`: node -> its topic and cluster.
    """

    def __init__(self, name: str, routes: Mapping[str, Route], tiers: Mapping[str, str] | None = None,
                 tier_order: Sequence[str] = (), *, tensors: Literal["binary", "json"] = "binary") -> None:
        super().__init__(name, {}, tiers, tier_order, tensors=tensors)
        self.routes = dict(routes)
        self.replies = ReplyCounts()
        self._instance, self._numbers = uuid.uuid4().hex, itertools.count()
        self._waiting: dict[str, asyncio.Future[Delivery]] = {}
        self._unanswered: set[str] = set()  # no reply has come, whether or not somebody still waits
        self._sending: set[asyncio.Task[None]] = set()
        self._producers: dict[Cluster, Producer] = {cluster: Producer(cluster) for cluster in clusters_of(routes)}
        self._consumers: list[Consumer] = []

    async def start(self) -> None:
        """Connect, create the topics where brokers do that by themselves, and find the place in the reply topics.

        Raises SendFailed when there is no broker or no such topic, MissingToolError without the client library.
        """
        for producer in self._producers.values():
            await producer.start()
        for route in self.routes.values():
            for topic in (route.topic, route.reply_topic(self.name)):
                await self._producers[route.cluster].prepare(topic)
            consumer = Consumer(route.cluster, route.reply_topic(self.name), None, self._receive, in_flight=500)
            self._consumers.append(consumer)
            await consumer.start()

    async def close(self) -> None:
        """Disconnect; whoever still waits gets a TransportError."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(TransportError("connection_lost", "the client was closed"))
        for consumer in self._consumers:
            await consumer.stop()
        for producer in self._producers.values():
            await producer.close()
        await super().close()

    async def request(self, node: str, method: str, path: str, body: bytes = b"",
                      headers: Mapping[str, str] | None = None, *, deadline_ns: int | None = None,
                      connect_timeout_s: float = 10.0) -> Answer:
        """Send an inference request to a node's topic and wait for its reply, at most until `deadline_ns`.

        The reply's first and last byte have one instant: the client library hands records over whole. `header_bytes`
        are the envelope's. Raises TransportError.
        """
        route = self.routes.get(node)
        if route is None:
            raise TransportError("unknown_node", f"{self.name} knows no topic of node {node!r:.60}")
        if method != "POST" or not (path.startswith(_INFER) and path.endswith(_END)):
            raise ValueError(f"{method} {path} does not travel by Kafka: only inference does")
        length = (headers or {}).get(HEADER_LENGTH)
        correlation_id = f"{self._instance}-{next(self._numbers)}"
        send_ns = time.monotonic_ns()
        envelope = Envelope("request", correlation_id, self.name, path[len(_INFER):-len(_END)], send_ns, body,
                            route.reply_topic(self.name), 0, None if length is None else int(length))
        reply: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._waiting[correlation_id] = reply
        self._unanswered.add(correlation_id)
        producer = self._producers[route.cluster]
        task = asyncio.create_task(_send(producer, route.topic, envelope, reply))
        self._sending.add(task)  # goes on when the wait is over: a reply can overtake the broker's acknowledgement
        task.add_done_callback(self._sending.discard)
        try:
            left_s = None if deadline_ns is None else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
            delivery = await asyncio.wait_for(reply, left_s)
        except TimeoutError:
            raise TransportError("timeout", "no reply in time") from None
        finally:
            del self._waiting[correlation_id]
        answer = delivery.envelope
        told = {} if answer.header_length is None else {HEADER_LENGTH.lower(): str(answer.header_length)}
        return Answer(answer.status, told, answer.body, delivery.recv_ns, delivery.recv_ns,
                      envelope.overhead_bytes(producer.record_headers), delivery.envelope_bytes, send_ns)

    def _receive(self, delivery: Delivery) -> None:
        delivery.done()
        correlation_id = delivery.envelope.correlation_id
        waiting = self._waiting.get(correlation_id)
        if waiting is not None and not waiting.done():
            self.replies.matched += 1
            self._unanswered.discard(correlation_id)
            waiting.set_result(delivery)
        elif not correlation_id.startswith(self._instance):
            self.replies.foreign += 1
        elif correlation_id in self._unanswered:
            self._unanswered.discard(correlation_id)
            self.replies.late += 1
        else:
            self.replies.duplicates += 1


async def _send(producer: Producer, topic: str, envelope: Envelope, reply: asyncio.Future[Delivery]) -> None:
    try:
        await producer.send(topic, envelope)
    except SendFailed as error:
        if not reply.done():
            reply.set_exception(TransportError("connection_lost", str(error)))
    except Exception as error:  # whatever it is, whoever waits for the reply must not wait for ever
        if not reply.done():
            reply.set_exception(error)
