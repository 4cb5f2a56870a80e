"""Encoding and decoding on a node: what is quick at once, what is slow in one thread beside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError
from testbed.inference.codecs import CODECS, Codec, Encoded, Registry
from testbed.inference.codecs.base import Array
from testbed.inference.compute import REAL, ComputeProfile
from testbed.serving.worker import hold_until

INLINE_BYTES = 2**20
"""Tensors of this many bytes or more are handled in the thread whatever the codec."""

T = TypeVar("T")


class Coder:
    """The codecs of one node, with one thread for the slow ones (first come, first served).

    The thread works beside the compute thread: the host has a core for its codecs. A profile with a `slowdown` holds
    what is done in the thread for `slowdown` times the processor time that it took here.
    """

    def __init__(self, codecs: Registry = CODECS, profile: ComputeProfile = REAL) -> None:
        self.codecs, self._slowdown = codecs, profile.slowdown
        self._thread: ThreadPoolExecutor | None = None

    async def encode(self, name: str, x: NDArray[np.float32]) -> Encoded:
        """Encode x. Raises ValueError for an unknown codec, and for a tensor that it cannot carry."""
        codec = self._codec(name)
        if codec.slow or x.nbytes >= INLINE_BYTES:
            return await self._in_thread(lambda: codec.encode(x))
        return codec.encode(x)

    async def decode(self, name: str, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        """Decode what came. Raises ValueError for an unknown codec, and for what it did not make."""
        codec = self._codec(name)
        if codec.slow or sum(a.nbytes for a in arrays) >= INLINE_BYTES:
            return await self._in_thread(lambda: codec.decode(arrays, params))
        return codec.decode(arrays, params)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _codec(self, name: str) -> Codec:
        try:
            return self.codecs.named(name)
        except InputError as error:
            raise ValueError(str(error)) from None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "codec")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._held, call)
        except InputError as error:  # a learned codec's weights
            raise ValueError(str(error)) from None

    def _held(self, call: Callable[[], T]) -> T:
        begin_ns, used_ns = time.monotonic_ns(), time.thread_time_ns()
        result = call()
        if self._slowdown is not None:
            hold_until(begin_ns + round((time.thread_time_ns() - used_ns) * self._slowdown))
        return result
