"""Reading a topic in a thread for an event loop: offsets are committed by hand, after the message has been dealt with."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from testbed.serving.kafka.broker import Cluster, library
from testbed.serving.kafka.envelope import Envelope, unpack
from testbed.serving.protocol import ProtocolError

_LOG = logging.getLogger("testbed.kafka")
_POLL_S = 0.05  # how late a commit or a stop can be on an idle topic


@dataclass(frozen=True)
class Delivery:
    """A message as it came. `recv_ns` is when the library handed it over (CLOCK_MONOTONIC): the record was whole by then.

    `envelope_bytes` is what the record holds besides the body. `done` says that it has been dealt with: only then may its
    offset be committed.
    """

    envelope: Envelope
    partition: int
    offset: int
    recv_ns: int
    envelope_bytes: int
    done: Callable[[], None]


class Progress:
    """Which offsets of each partition are dealt with; a partition is committed up to its first offset that is not."""

    def __init__(self) -> None:
        self._open: dict[int, set[int]] = defaultdict(set)
        self._next: dict[int, int] = {}
        self._committed: dict[int, int] = {}

    @property
    def unfinished(self) -> int:
        """Messages that came and are not dealt with."""
        return sum(len(offsets) for offsets in self._open.values())

    def came(self, partition: int, offset: int) -> None:
        """A message came; within a partition they come in order."""
        self._open[partition].add(offset)
        self._next[partition] = offset + 1

    def done(self, partition: int, offset: int) -> None:
        """A message has been dealt with; one of a partition that was taken away meanwhile counts no more."""
        self._open[partition].discard(offset)

    def to_commit(self) -> dict[int, int]:
        """Partition -> offset of the next message to read, where that has moved since the last `committed`."""
        ends = {p: min(self._open[p], default=after) for p, after in self._next.items()}
        return {p: end for p, end in ends.items() if end > self._committed.get(p, -1)}

    def committed(self, offsets: dict[int, int]) -> None:
        """These have been committed."""
        self._committed |= offsets

    def forget(self, partitions: Iterable[int]) -> None:
        """These partitions belong to another consumer of the group from now on."""
        for partition in partitions:
            for known in (self._open, self._next, self._committed):
                known.pop(partition, None)


class Consumer:
    """Reads one topic and calls `receive(delivery)` in the event loop for each message.

    Parameters
    ----------
    group: consumers of one group share the partitions, and begin where the group has committed, or with the oldest
        message. None: reads all partitions from the end on, and commits nothing (replies).
    in_flight: no more messages than this are handed over and not dealt with; the rest stays on the broker, and a
        consumer that dies holds back no more than these.
    session_timeout_s: after how long without a sign of life the group gives a consumer's partitions to others.
    """

    def __init__(self, cluster: Cluster, topic: str, group: str | None, receive: Callable[[Delivery], None], *,
                 in_flight: int = 1, session_timeout_s: float = 10.0) -> None:
        self.cluster, self.topic, self.group = cluster, topic, group
        self._receive, self._in_flight, self._session_ms = receive, in_flight, round(session_timeout_s * 1e3)
        self._progress, self._lock = Progress(), threading.Lock()
        self._stop, self._room = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.malformed = 0
        self.error: Exception | None = None
        self.partitions: frozenset[int] = frozenset()

    async def start(self) -> None:
        """Begin to read; a consumer without a group has found its place when this returns. Raises MissingToolError."""
        library()
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, begun), name=f"kafka {self.topic}", daemon=True)
        self._thread.start()
        await begun

    def halt(self) -> None:
        """Read no more and leave the group; `stop` is still to be called."""
        self._stop.set()

    async def stop(self) -> None:
        """Commit what is dealt with, leave the group and end the thread. Raises what the thread failed with."""
        self.halt()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 30.0)
        if self.error is not None:
            raise self.error

    def _run(self, loop: asyncio.AbstractEventLoop, begun: asyncio.Future[None]) -> None:
        consumer = None
        try:
            consumer = self._open()
            loop.call_soon_threadsafe(begun.set_result, None)
            self._read(consumer, loop)
            self._commit(consumer)
        except Exception as error:  # handed over to whoever waits for the start or the stop
            self.error = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(_fail, begun, error)
        finally:
            if consumer is not None:
                consumer.close()

    def _open(self) -> Any:
        kafka = library()
        grouped = {} if self.group is None else {"session_timeout_ms": self._session_ms,
                                                 "heartbeat_interval_ms": self._session_ms // 3}
        consumer = kafka.KafkaConsumer(
            **self.cluster.options(), group_id=self.group, enable_auto_commit=False, fetch_max_wait_ms=100,
            auto_offset_reset="earliest", max_poll_records=self._in_flight,
            max_partition_fetch_bytes=self.cluster.max_message_bytes, **grouped)
        if self.group is not None:
            consumer.subscribe([self.topic], listener=self._listener(kafka))
            return consumer
        found: set[int] | None = None
        while not (found := consumer.partitions_for_topic(self.topic)):
            if self._stop.wait(_POLL_S):
                return consumer
        places = [kafka.TopicPartition(self.topic, p) for p in sorted(found)]
        consumer.assign(places)
        consumer.seek_to_end(*places)
        for place in places:
            consumer.position(place)  # asks the broker now: a reply to what is sent next lies behind this place
        self.partitions = frozenset(found)
        return consumer

    def _listener(self, kafka: Any) -> Any:
        outer = self

        class Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                with outer._lock:
                    outer._progress.forget(place.partition for place in revoked)
                outer.partitions = frozenset()

            def on_partitions_assigned(self, assigned: Any) -> None:
                outer.partitions = frozenset(place.partition for place in assigned)

        return Listener()

    def _read(self, consumer: Any, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            places = consumer.assignment()
            with self._lock:
                full = self.group is not None and self._progress.unfinished >= self._in_flight
            (consumer.pause if full else consumer.resume)(*places)
            if full:
                self._room.wait(_POLL_S)
                self._room.clear()
            batch = consumer.poll(timeout_ms=0 if full else round(_POLL_S * 1e3))
            recv_ns = time.monotonic_ns()
            for records in batch.values():
                for record in records:
                    self._hand_over(record, recv_ns, loop)
            self._commit(consumer)

    def _hand_over(self, record: Any, recv_ns: int, loop: asyncio.AbstractEventLoop) -> None:
        partition, offset = record.partition, record.offset

        def done() -> None:
            with self._lock:
                self._progress.done(partition, offset)
            self._room.set()

        with self._lock:
            self._progress.came(partition, offset)
        try:
            envelope, size = unpack(record.value, record.headers or ())
        except ProtocolError as error:  # from nobody that could be answered: counted, and passed over
            self.malformed += 1
            _LOG.warning("topic %s, partition %d, offset %d: %s", self.topic, partition, offset, error)
            done()
            return
        loop.call_soon_threadsafe(self._receive, Delivery(envelope, partition, offset, recv_ns, size, done))

    def _commit(self, consumer: Any) -> None:
        if self.group is None:
            return
        kafka = library()
        with self._lock:
            offsets = {p: end for p, end in self._progress.to_commit().items() if p in self.partitions}
        if not offsets:
            return
        metadata = kafka.structs.OffsetAndMetadata
        try:
            consumer.commit({kafka.TopicPartition(self.topic, p): metadata(end, "", -1) for p, end in offsets.items()})
        except kafka.errors.KafkaError as error:  # the partitions have moved: their new owner gets these messages again
            _LOG.warning("topic %s: offsets not committed: %s", self.topic, error)
            return
        with self._lock:
            self._progress.committed(offsets)


def _fail(begun: asyncio.Future[None], error: Exception) -> None:
    if not begun.done():
        begun.set_exception(error)
