"""The queue of a device: its order, its limit, and that earliest deadline first does what theory says of it."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from testbed.workload.dispatch import Dispatcher, Order, Request, RequestQueue


def request(index: int, at_s: float, deadline_s: float) -> Request:
    at_ns = round(at_s * 1e9)
    return Request(index, f"r{index}", at_ns, at_ns, deadline_s)


def finished_s(order: Order, arrivals_s: list[float], service_s: list[float], deadlines_s: list[float]) -> list[float]:
    """One worker, no pre-emption: when each request is done."""
    queue, done, now, nxt = RequestQueue(order), [0.0] * len(arrivals_s), 0.0, 0
    while nxt < len(arrivals_s) or len(queue):
        if not len(queue):
            now = max(now, arrivals_s[nxt])
        while nxt < len(arrivals_s) and arrivals_s[nxt] <= now:
            queue.push(request(nxt, arrivals_s[nxt], deadlines_s[nxt]))
            nxt += 1
        taken = queue.pop()
        now += service_s[taken.index]
        done[taken.index] = now
    return done


def test_fifo_is_the_order_of_arrival_and_edf_that_of_deadlines() -> None:
    requests = [request(0, 0.0, 9.0), request(1, 1.0, 2.0), request(2, 2.0, 5.0), request(3, 3.0, 0.0)]
    for order, expected in (("fifo", [0, 1, 2, 3]), ("edf", [1, 3, 2, 0])):  # absolute deadlines 9, 3, 7, 3
        queue = RequestQueue(order)  # type: ignore[arg-type]
        for r in requests:
            queue.push(r)
        assert [queue.pop().index for _ in requests] == expected
        with pytest.raises(IndexError):
            queue.pop()


@pytest.mark.parametrize("seed", range(20))
def test_edf_misses_nothing_when_fifo_meets_all(seed: int) -> None:
    """Holds for one worker without pre-emption: at the start of a job with a later deadline the unfinished work is the same
    in both orders, and in FIFO all of it comes before what arrives afterwards."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1.0, 60)).tolist()
    service = rng.gamma(0.5, 1.8, 60).tolist()  # load 0.9, uneven
    fifo = finished_s("fifo", arrivals, service, [1.0] * 60)
    deadlines = [f - a + s for f, a, s in zip(fifo, arrivals, rng.exponential(0.3, 60), strict=True)]  # FIFO meets each
    edf = finished_s("edf", arrivals, service, deadlines)
    assert all(end <= a + d + 1e-6 for end, a, d in zip(edf, arrivals, deadlines, strict=True))
    assert edf != fifo  # it is another order


def test_edf_meets_deadlines_that_fifo_misses() -> None:
    late = {}
    for order in ("fifo", "edf"):
        done = finished_s(order, [0.0, 0.1, 0.2], [1.0, 1.0, 1.0], [9.0, 9.0, 2.0])  # type: ignore[arg-type]
        late[order] = [i for i, (end, at, allowed) in enumerate(zip(done, [0.0, 0.1, 0.2], [9.0, 9.0, 2.0], strict=True))
                       if end > at + allowed]
    assert late == {"fifo": [2], "edf": []}


def run(order: Order, workers: int | None, deadlines_s: list[float]) -> tuple[list[int], int, list[tuple[Request, int]]]:
    """All requests handed over at once, 10 ms each: the order in which they were taken, the most at a time, when."""
    taken: list[tuple[Request, int]] = []
    now = most = 0

    async def work() -> None:
        nonlocal now
        await asyncio.sleep(0.01)
        now -= 1

    def begin(r: Request, taken_ns: int):  # type: ignore[no-untyped-def]
        nonlocal now, most
        taken.append((r, taken_ns))
        now += 1
        most = max(most, now)
        return work()

    async def go() -> None:
        dispatcher = Dispatcher(begin, order, workers)
        for i, d in enumerate(deadlines_s):
            dispatcher.submit(Request(i, f"r{i}", 0, time.monotonic_ns(), d))
        await dispatcher.drain()

    asyncio.run(go())
    return [r.index for r, _ in taken], most, taken


def test_without_a_limit_nobody_waits() -> None:
    order, most, taken = run("fifo", None, [1.0] * 8)
    assert order == list(range(8)) and most == 8
    assert all(t == r.issued_ns for r, t in taken)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_at_most_so_many_are_under_way_and_the_rest_waits_in_order(workers: int) -> None:
    deadlines = [5.0, 4.0, 3.0, 2.0, 1.0, 6.0]
    order, most, taken = run("edf", workers, deadlines)
    assert most == workers and sorted(order) == list(range(6))
    assert order[:workers] == list(range(workers))  # they came when there was room
    assert order[workers:] == sorted(order[workers:], key=lambda i: deadlines[i])
    assert all(t == r.issued_ns for r, t in taken[:workers]) and all(t > r.issued_ns for r, t in taken[workers:])


@pytest.mark.parametrize("when", ["at once", "after waiting", "while it runs"])
def test_what_goes_wrong_is_raised(when: str) -> None:
    async def fine() -> None:
        await asyncio.sleep(0.01)

    async def broken() -> None:
        raise ValueError("broken")

    def begin(r: Request, taken_ns: int):  # type: ignore[no-untyped-def]
        if r.index == 1 and when != "while it runs":
            raise ValueError("broken")
        return broken() if r.index == 1 else fine()

    async def go() -> None:
        dispatcher = Dispatcher(begin, "fifo", 1 if when == "after waiting" else None)
        for i in range(3):
            dispatcher.submit(request(i, 0.0, 1.0))
        await dispatcher.drain()

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(go())
