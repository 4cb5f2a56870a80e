"""What happens to one packet behind the queue: lost, doubled, delayed, or let past; in netem's order of decisions.

Imports nothing heavy: the delay line's process starts with it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

TABLE_SCALE = 8192  # netem's unit: a table entry of 8192 is one jitter


class Impairment:
    """Decides for each packet of one direction, from a seeded generator of its own.

    The fate of packet n depends on the seed, the parameters and n alone, so the same seed loses the same packets.
    """

    def __init__(self, values: Mapping[str, Any], seed: str) -> None:
        self._random = random.Random(seed)  # text seeds hash the same in every process
        self._bad = False
        self.change(values)

    def change(self, values: Mapping[str, Any]) -> None:
        """Take new parameters (see ``parameters`` in `direction`); the generator and the loss state go on."""
        self._delay_ns = int(values["delay_ns"])
        self._jitter_ns = int(values["jitter_ns"])
        self._table: list[int] = list(values["table"])
        self._loss = float(values["loss"])
        self._chain: list[float] | None = values["chain"]
        self._reorder = float(values["reorder"])
        self._duplicate = float(values["duplicate"])
        # one constant delay is what most links have: no drawing then
        self.constant_ns: int | None = None
        if not (self._jitter_ns or self._loss or self._chain or self._reorder or self._duplicate):
            self.constant_ns = self._delay_ns

    def delays_ns(self) -> tuple[int, ...]:
        """One delay per copy to deliver of the next packet: none when it is lost, two when it is doubled."""
        if self.constant_ns is not None:
            return (self.constant_ns,)
        copies = 1
        if self._duplicate and self._random.random() < self._duplicate:
            copies = 2
        if self._lost():
            copies -= 1
        if copies == 2 and self._lost():  # netem sends the second copy through the loss again
            copies = 1
        return tuple(self._delay() for _ in range(copies))

    def _lost(self) -> bool:
        draw = self._random.random
        if self._chain is None:
            return self._loss > 0 and draw() < self._loss
        to_bad, to_good, loss_bad, loss_good = self._chain
        # as netem's: the state changes first, the loss is drawn for the state before the change
        if self._bad:
            self._bad = not draw() < to_good
            return draw() < loss_bad
        self._bad = draw() < to_bad
        return draw() < loss_good

    def _delay(self) -> int:
        if self._reorder and self._random.random() < self._reorder:
            return 0
        if not self._jitter_ns:
            return self._delay_ns
        deviation = self._table[self._random.randrange(len(self._table))]
        return max(0, self._delay_ns + deviation * self._jitter_ns // TABLE_SCALE)
