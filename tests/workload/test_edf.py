"""Earliest deadline first on one server, simulated with the device's own queue: it meets all deadlines whenever arrival order does."""

from __future__ import annotations

import random

from testbed.workload.dispatch import Order, Request, RequestQueue

MS = 1_000_000


def lateness_ns(requests: list[Request], service_ns: list[int], order: Order) -> list[int]:
    """Completion minus deadline of each request on one server that never idles while a request waits and never interrupts one."""
    queue, late, free_ns, waiting = RequestQueue(order), [0] * len(requests), 0, list(requests)
    while waiting or len(queue):
        if not len(queue):
            free_ns = max(free_ns, waiting[0].scheduled_ns)
        while waiting and waiting[0].scheduled_ns <= free_ns:
            queue.push(waiting.pop(0))
        request = queue.pop()
        free_ns += service_ns[request.index]
        late[request.index] = free_ns - request.due_ns
    return late


def instance(rng: random.Random) -> tuple[list[Request], list[int]]:
    t_ns, requests = 0, []
    for i in range(rng.randint(2, 9)):
        t_ns += rng.choice((0, 5, 20, 60)) * MS
        requests.append(Request(i, f"r{i}", t_ns, t_ns, rng.choice((0.02, 0.05, 0.1, 0.15, 0.3))))
    return requests, [rng.choice((5, 10, 30, 80)) * MS for _ in requests]


def test_edf_meets_all_deadlines_whenever_fifo_does_and_sometimes_when_it_does_not() -> None:
    """Moving the earliest deadline up delays only requests that are due later than it, which in order of arrival was late enough."""
    rng = random.Random(11)
    feasible = only_edf = 0
    for _ in range(4000):
        requests, service_ns = instance(rng)
        fifo, edf = (max(lateness_ns(requests, service_ns, order)) for order in ("fifo", "edf"))
        if fifo <= 0:
            assert edf <= 0
            feasible += 1
        only_edf += edf <= 0 < fifo
    assert feasible > 400 and only_edf > 20


def test_edf_keeps_the_order_of_arrival_when_all_deadlines_are_equally_long() -> None:
    rng = random.Random(12)
    for _ in range(200):
        requests, service_ns = instance(rng)
        alike = [Request(r.index, r.request_id, r.scheduled_ns, r.issued_ns, 0.1) for r in requests]
        assert lateness_ns(alike, service_ns, "edf") == lateness_ns(alike, service_ns, "fifo")
