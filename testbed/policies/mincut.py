"""Minimum cut of a directed graph with whole-number capacities: Dinic's algorithm."""

from __future__ import annotations

from collections import deque


class FlowNetwork:
    """Arcs with capacities between vertices 0..n-1; `min_cut` separates a source from a sink at least cost.

    Capacities are whole numbers, so that the result is exact. O(V^2 E) (Dinic, 1970).
    """

    def __init__(self, num_vertices: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(num_vertices)]  # arc numbers by tail; arc a ^ 1 is its reverse
        self._head: list[int] = []
        self._room: list[int] = []

    def add_arc(self, tail: int, head: int, capacity: int) -> None:
        """Add an arc. Raises ValueError for a negative capacity."""
        if capacity < 0:
            raise ValueError(f"capacity {capacity} of arc {tail} -> {head} is negative")
        for end, start, room in ((head, tail, capacity), (tail, head, 0)):
            self._out[start].append(len(self._head))
            self._head.append(end)
            self._room.append(room)

    def min_cut(self, source: int, sink: int) -> tuple[int, frozenset[int]]:
        """Capacity of a minimum cut, and the vertices on the source's side of the one with the fewest of them.

        Uses the capacities up: call it once.
        """
        total = 0
        while True:
            level = self._levels(source)
            if level[sink] < 0:
                return total, frozenset(v for v, at in enumerate(level) if at >= 0)
            total += self._blocking_flow(source, sink, level)

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._out)
        level[source] = 0
        queue = deque([source])
        while queue:
            v = queue.popleft()
            for arc in self._out[v]:
                if self._room[arc] and level[self._head[arc]] < 0:
                    level[self._head[arc]] = level[v] + 1
                    queue.append(self._head[arc])
        return level

    def _blocking_flow(self, source: int, sink: int, level: list[int]) -> int:
        """Paths of rising levels from source to sink, until there is none; no recursion, graphs may be deep."""
        head, room = self._head, self._room
        tried = [0] * len(self._out)  # arcs of each vertex that lead nowhere any more
        path: list[int] = []
        total, v = 0, source
        while True:
            if v == sink:
                flow = min(room[arc] for arc in path)
                total += flow
                full = 0
                for place in reversed(range(len(path))):
                    room[path[place]] -= flow
                    room[path[place] ^ 1] += flow
                    if not room[path[place]]:
                        full = place
                v = head[path[full] ^ 1]  # the tail of the first arc that is full now
                del path[full:]
                continue
            arcs = self._out[v]
            while tried[v] < len(arcs):
                arc = arcs[tried[v]]
                if room[arc] and level[head[arc]] == level[v] + 1:
                    path.append(arc)
                    v = head[arc]
                    break
                tried[v] += 1
            else:
                if not path:
                    return total
                level[v] = -1  # a dead end
                v = head[path.pop() ^ 1]
