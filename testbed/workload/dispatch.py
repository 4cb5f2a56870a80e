"""Requests that wait on a device: in the order of arrival or of deadlines, a limited number under way at a time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["fifo", "edf"]


@dataclass(frozen=True)
class Request:
    """One request of a device. Instants on CLOCK_MONOTONIC; `issued_ns` is when the load generator handed it over."""

    index: int
    request_id: str
    scheduled_ns: int
    issued_ns: int
    deadline_s: float

    @property
    def due_ns(self) -> int:
        """The instant of its deadline."""
        return self.scheduled_ns + round(self.deadline_s * 1e9)


class RequestQueue:
    """Requests that wait. `fifo`: the first that came is next. `edf`: the one whose deadline is earliest, then the first."""

    def __init__(self, order: Order = "fifo") -> None:
        self.order = order
        self._heap: list[tuple[int, int, Request]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, request: Request) -> None:
        """Put a request in."""
        heapq.heappush(self._heap, (request.due_ns if self.order == "edf" else 0, self._count, request))
        self._count += 1

    def pop(self) -> Request:
        """Take the next request out. Raises IndexError when there is none."""
        return heapq.heappop(self._heap)[2]


class Dispatcher:
    """Hands requests on, at most `workers` (None: any number) under way at a time.

    `begin(request, taken_ns)` is called when a request's turn comes, and returns what there is to wait for until it is
    answered. `taken_ns` is the instant of that; the request's own `issued_ns` when it did not have to wait.
    """

    def __init__(self, begin: Callable[[Request, int], Coroutine[Any, Any, None]], order: Order = "fifo",
                 workers: int | None = None) -> None:
        self._begin, self._workers = begin, workers
        self._queue = RequestQueue(order)
        self._running = 0
        self._tasks = Tasks()

    def submit(self, request: Request) -> None:
        """Begin a request, or let it wait. What `begin` raises is raised here, or by `drain` when the request waited."""
        if self._workers is None or self._running < self._workers:
            self._start(request, request.issued_ns)
        else:
            self._queue.push(request)

    async def drain(self) -> None:
        """Wait until every request has been answered; raises what the first that failed has raised."""
        await self._tasks.drain()

    def _start(self, request: Request, taken_ns: int) -> None:
        work = self._begin(request, taken_ns)
        self._running += 1
        self._tasks.add(self._run(work))

    async def _run(self, work: Awaitable[None]) -> None:
        await work
        self._running -= 1
        if len(self._queue):
            self._start(self._queue.pop(), time.monotonic_ns())


class Tasks:
    """Coroutines that run beside each other; the first error is kept until `drain`."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._over = asyncio.Event()  # nothing runs any more, or there is an error

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it."""
        task = asyncio.create_task(work)
        self._running.add(task)
        if self._error is None:
            self._over.clear()
        task.add_done_callback(self._ended)

    async def drain(self) -> None:
        """Wait until all have ended, those too that are added meanwhile. Raises the first error as soon as there is one."""
        while self._running and self._error is None:
            await self._over.wait()
        if self._error is not None:
            raise self._error

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None and self._error is None:
            self._error = task.exception()
        if self._error is not None or not self._running:
            self._over.set()
