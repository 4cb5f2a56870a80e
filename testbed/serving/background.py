"""Keeps what is slow away from requests: a thread for writing files, and no garbage collection of what stays.

A file system may hold a write up for 100 ms, and a full collection of all that torch brings takes as long.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any


def freeze_garbage() -> None:
    """Collect once, and exempt everything that lives now (imported code, models) from later collections."""
    gc.collect()
    gc.freeze()


class Background:
    """Runs what is handed over, in order, in one thread. Leaving the context waits for all of it.

    The first exception of a call is raised again at `close`; what came after it is not run.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        """Hand a call over; returns at once."""
        self._calls.put((call, arguments))

    def close(self) -> None:
        """Wait until everything has been run; may be called twice. Raises the first exception of a call."""
        self._calls.put(None)
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, arguments = item
            try:
                if self._error is None:
                    call(*arguments)
            except BaseException as error:
                self._error = error
