"""The level of one running token bucket: time is that of the requests' schedule, and requests under way count as spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from testbed.policies.token_bucket.bucket import Bucket

_ROUNDING = 1e-4  # parts; a schedule in ns and its times in s round differently


@dataclass
class _Entry:
    request_id: str
    t_ns: int
    spends: bool
    known: bool


class Meter:
    """Level of a bucket that gains `bucket.refill` parts per `unit_ns`, and loses `bucket.token` per request that spends.

    Until it is known whether a request spent its token it counts as spent; when it was kept, the level is what it would be had
    the request never been there, cut at the depth at every later instant.
    """

    def __init__(self, bucket: Bucket, unit_ns: int) -> None:
        self._bucket, self._parts_per_ns = bucket, bucket.refill / unit_ns
        self._level, self._t_ns = float(bucket.depth), 0  # after everything that is known; the rest is in the entries
        self._entries: list[_Entry] = []
        self._now_ns: int | None = None

    @property
    def open_count(self) -> int:
        """Requests of which it is not known whether they spent."""
        return sum(not entry.known for entry in self._entries)

    def at(self, t_ns: int) -> int:
        """Whole parts at an instant; instants before the last one asked for count as that one."""
        if self._now_ns is None:
            self._t_ns = t_ns
        self._now_ns = t_ns if self._now_ns is None else max(t_ns, self._now_ns)
        level, since_ns = self._level, self._t_ns
        for entry in self._entries:
            level, since_ns = self._after(level, since_ns, entry), entry.t_ns
        return max(0, math.floor(self._refilled(level, self._now_ns - since_ns) + _ROUNDING))

    def open(self, request_id: str) -> None:
        """A request begins, at the instant of the last `at`, that may spend a token."""
        if self._now_ns is None:
            raise ValueError("ask for the level before a request begins")
        self._entries.append(_Entry(request_id, self._now_ns, True, False))

    def close(self, request_id: str, spent: bool) -> None:
        """It is known whether a request spent its token; nothing happens for one that was not opened."""
        for entry in self._entries:
            if entry.request_id == request_id:
                entry.spends, entry.known = spent, True
        while self._entries and self._entries[0].known:
            entry = self._entries.pop(0)
            self._level, self._t_ns = self._after(self._level, self._t_ns, entry), entry.t_ns

    def _after(self, level: float, since_ns: int, entry: _Entry) -> float:
        return self._refilled(level, entry.t_ns - since_ns) - self._bucket.token * entry.spends

    def _refilled(self, level: float, duration_ns: int) -> float:
        return min(float(self._bucket.depth), level + duration_ns * self._parts_per_ns)
