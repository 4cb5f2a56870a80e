"""Sending to topics from an event loop: acknowledged by all in-sync replicas, partitions in turn."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from testbed.serving.kafka.broker import HEADERS_SINCE, Cluster, library
from testbed.serving.kafka.envelope import Envelope


class SendFailed(Exception):
    """No broker has taken the message."""


class Producer:
    """Sends envelopes to the topics of one cluster.

    A message that a broker did not acknowledge is sent again until `delivery_timeout_s` has passed: it can be in the
    topic twice, and is never lost silently. Each topic's partitions are used in turn.
    """

    def __init__(self, cluster: Cluster, *, delivery_timeout_s: float = 120.0) -> None:
        self.cluster, self._delivery_timeout_s = cluster, delivery_timeout_s
        self._producer: Any = None
        self._turns: dict[str, itertools.cycle[int]] = {}
        self.record_headers = False

    async def start(self) -> None:
        """Connect. Raises SendFailed when no broker can be reached, MissingToolError without the library."""
        kafka = library()
        delivery_ms = round(self._delivery_timeout_s * 1e3)
        idempotent = self.cluster.version is None or self.cluster.version >= HEADERS_SINCE  # both came with 0.11
        try:
            self._producer = await asyncio.to_thread(
                kafka.KafkaProducer, **self.cluster.options(), acks="all", linger_ms=0,
                enable_idempotence=idempotent, delivery_timeout_ms=delivery_ms,
                request_timeout_ms=min(30_000, delivery_ms), max_request_size=self.cluster.max_message_bytes,
                max_block_ms=delivery_ms, bootstrap_timeout_ms=min(30_000, delivery_ms))
        except kafka.errors.KafkaError as error:
            raise SendFailed(f"no broker at {', '.join(self.cluster.brokers)}: {error}") from None
        self.record_headers = tuple(self._producer.config["api_version"]) >= HEADERS_SINCE

    async def prepare(self, topic: str) -> None:
        """Learn the partitions of a topic (a broker that creates topics by itself creates it). Raises SendFailed."""
        if topic in self._turns:
            return
        try:
            partitions = await asyncio.to_thread(self._producer.partitions_for, topic)
        except library().errors.KafkaError as error:
            raise SendFailed(f"topic {topic}: {error}") from None
        self._turns.setdefault(topic, itertools.cycle(sorted(partitions)))

    async def send(self, topic: str, envelope: Envelope) -> None:
        """Send one message and wait until it is acknowledged. Raises SendFailed."""
        await self.prepare(topic)
        value, headers = envelope.pack(self.record_headers)
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[None] = loop.create_future()
        partition = next(self._turns[topic])
        try:
            record = self._producer.send(topic, value, partition=partition, **({"headers": headers} if headers else {}))
        except library().errors.KafkaError as error:  # too large, or the buffer stayed full
            raise SendFailed(f"topic {topic}: {error}") from None
        record.add_callback(lambda _: _tell(loop, acknowledged, None))
        record.add_errback(lambda error: _tell(loop, acknowledged, error))
        await acknowledged

    async def close(self) -> None:
        """Disconnect; what is not acknowledged within a second fails for whoever waits for it."""
        if self._producer is not None:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        try:
            self._producer.close(1.0)
        except library().errors.KafkaTimeoutError:
            self._producer._sender.force_close()  # the library's own close stops at its flush and leaves the thread
            self._producer.close(1.0)


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], error: BaseException | None) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(SendFailed(str(error)))

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
