"""Which plans nothing else beats: the Pareto front of accuracy, latency and bytes."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float | None, ...]], higher: Sequence[bool]) -> list[bool]:
    """For each point, whether no other is at least as good in every coordinate and better in one.

    `points`: (n, k), a None excludes its point; `higher[j]` says that more of coordinate j is better. Equal points share a
    place on the front.
    """
    signs = [1.0 if up else -1.0 for up in higher]
    turned = [None if any(x is None for x in point) else tuple(s * x for s, x in zip(signs, point, strict=True) if x is not None)
              for point in points]

    def beaten(p: tuple[float, ...]) -> bool:
        return any(q is not None and q != p and all(a >= b for a, b in zip(q, p, strict=True)) for q in turned)

    return [p is not None and not beaten(p) for p in turned]
