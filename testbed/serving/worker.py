"""Worker: the one compute thread of a node or device, with a FIFO queue and exits decided stage by stage."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.inference.catalogue import Catalogue, LoadedModel, ModelInfo, load_model
from testbed.inference.compute import REAL, ComputeProfile
from testbed.inference.execution import TorchRun, run_step
from testbed.inference.exits import ExitRule, max_probability
from testbed.inference.memo import MemoisedModel
from testbed.serving.residency import Residency, residency_from

_SPIN_NS = 150_000  # the last part of a hold is spun: a sleep ends up to about this late on a busy machine


class UnknownModel(Exception):
    """The worker has no model of this name."""


class BadInput(Exception):
    """Stage range, tensor or exit rule do not fit the model."""


class Expired(Exception):
    """The request's deadline had passed before its turn came; nothing was computed."""


class Withdrawn(Exception):
    """Nobody wanted the result any more when its turn came; nothing was computed."""


class WorkerClosed(Exception):
    """The worker was closed before the work was done."""


@dataclass(frozen=True)
class StageResult:
    """What came of one step: an answer (an exit fired, or the last stage was reached) or a tensor to send on.

    `output` is logits (N, classes) when `exit_id` is set, else the tensor after stage `stop` - 1. `confidence` is the
    largest softmax probability (for a batch: of its first sample). `service_ns` is what the compute profile asked for
    (None when real), `overrun_ns` how much longer the real computation took than that. `memo_hit` is whether the output was
    looked up; None where outputs are not memoised.
    """

    output: NDArray[np.float32]
    exit_id: str | None
    confidence: float | None
    start: int
    stop: int
    queue_start_ns: int
    compute_start_ns: int
    compute_end_ns: int
    service_ns: int | None
    overrun_ns: int
    memo_hit: bool | None = None
    load_ns: int | None = None  # what loading the model took before the computation; None when it was in memory


@dataclass
class _Job:
    model: str
    info: ModelInfo
    start: int
    stop: int
    tensor: NDArray[np.float32]
    rule: ExitRule
    final_answers: bool
    queue_start_ns: int
    deadline_ns: int | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[StageResult]
    wanted: Callable[[], bool] | None = None


class Worker:
    """Runs stages of models, one request at a time, in the order of arrival.

    With a compute profile, the thread is held until the profile's service time for the stages that were run has
    passed since the start of the computation: the next request waits as it would on the slower host.

    With a residency, models are loaded from disk when their turn comes and they are not in memory.

    A memoised model looks its outputs up; the profile's time passes all the same, and torch is not loaded.

    Sets torch to one thread and the interpreter's switch interval to 0.5 ms, so that the event loop of the process
    gets the interpreter back soon while Python code of the compute thread runs.
    """

    def __init__(self, models: Mapping[str, LoadedModel | MemoisedModel], profile: ComputeProfile = REAL,
                 residency: Residency | None = None) -> None:
        self.models, self.profile, self.residency = dict(models), profile, residency
        self.infos = {name: model.info for name, model in self.models.items()}
        if residency is not None:
            self.infos |= {name: loader.info for name, loader in residency.loaders.items()}
        if any(isinstance(model, LoadedModel) for model in self.models.values()) or residency is not None:
            import torch

            torch.set_num_threads(1)
        sys.setswitchinterval(5e-4)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting, self._running, self._closed = 0, 0, False
        self._thread: threading.Thread | None = None
        self.held, self.overruns, self.overrun_max_ns = 0, 0, 0  # computations held to a profile; those too slow for it

    @property
    def queue_depth(self) -> int:
        """Requests that wait for the compute thread."""
        return self._waiting

    @property
    def inflight(self) -> int:
        """Requests that wait or are computed."""
        return self._waiting + self._running

    def info(self, model: str) -> ModelInfo:
        """The catalogue's entry of a model that this worker has. Raises UnknownModel."""
        if model not in self.infos:
            raise UnknownModel(f"model {model!r:.80} is not on this node; it has {', '.join(self.infos) or 'none'}")
        return self.infos[model]

    def check(self, model: str, start: int, stop: int, shape: tuple[int, ...], rule: ExitRule) -> None:
        """Raise UnknownModel or BadInput when this step cannot be run on a tensor of this shape."""
        info = self.info(model)
        if not 0 <= start < stop <= info.num_stages:
            raise BadInput(f"stages {start}:{stop} are not a range within 0:{info.num_stages} of {model}")
        want = info.shape_at(start)
        if len(shape) < 1 or tuple(shape[1:]) != want or shape[0] < 1:
            raise BadInput(f"input of {model} at stage {start} has shape [-1, {', '.join(map(str, want))}], "
                           f"got {list(shape)}")
        if rule.kind != "none" and shape[0] != 1:
            raise BadInput("an exit rule decides for one sample; send a batch of 1")
        if rule.kind == "always" and not any(start <= i < stop for i in info.exit_after):
            raise BadInput(f"stages {start}:{stop} of {model} have no exit that could always answer")

    async def execute(self, model: str, start: int, stop: int, tensor: NDArray[np.float32],
                      rule: ExitRule | None = None, *, queue_start_ns: int | None = None,
                      deadline_ns: int | None = None, final_answers: bool = True,
                      wanted: Callable[[], bool] | None = None) -> StageResult:
        """Queue one step and wait for its result.

        Parameters: tensor (N, *shape at `start`); `queue_start_ns`, the instant from which queueing counts (now when
        absent); `deadline_ns`, the instant after which it is not worth starting, both on CLOCK_MONOTONIC;
        `final_answers`, whether the final exit answers in any case: not when a stronger model stands behind this one
        in the plan, where the rule decides at the final exit too; `wanted`, asked (in the compute thread) when its turn
        comes, whether it is still to be computed.
        Raises UnknownModel, BadInput, Expired, Withdrawn, WorkerClosed.
        """
        rule = rule or ExitRule()
        self.check(model, start, stop, tensor.shape, rule)
        if self._closed:
            raise WorkerClosed("the worker is closed")
        loop = asyncio.get_running_loop()
        job = _Job(model, self.infos[model], start, stop, np.asarray(tensor, np.float32), rule, final_answers,
                   time.monotonic_ns() if queue_start_ns is None else queue_start_ns, deadline_ns, loop,
                   loop.create_future(), wanted)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
            self._thread.start()
        self._waiting += 1
        self._queue.put(job)
        return await job.future

    async def warm_up(self, runs: int = 5) -> None:
        """Run every model a few times, unheld: the first calls of a process are slower."""
        held, self.profile = self.profile, REAL
        try:
            for name, info in self.infos.items():
                x = np.zeros((1, *info.input_shape), np.float32)
                for _ in range(runs):
                    await self.execute(name, 0, info.num_stages, x)
        finally:
            self.profile = held

    def settle(self) -> None:
        """Put the models in memory that are there when the load begins; call it while nothing is computed."""
        if self.residency is not None:
            self.residency.reset()

    def close(self) -> None:
        """Stop the compute thread after its current work; whatever waits gets WorkerClosed."""
        self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _work(self) -> None:
        _precise_sleep()
        while (job := self._queue.get()) is not None:
            self._waiting, self._running = self._waiting - 1, 1
            result: StageResult | BaseException
            try:
                result = self._compute(job)
            except Exception as error:  # goes to the one who waits for it, never lost
                result = error
            self._running = 0
            _deliver(job, result)
        while not self._queue.empty():
            left = self._queue.get()
            if left is not None:
                _deliver(left, WorkerClosed("the worker was closed"))

    def _compute(self, job: _Job) -> StageResult:
        start_ns, load_ns = time.monotonic_ns(), None
        if job.deadline_ns is not None and start_ns >= job.deadline_ns:
            raise Expired("the deadline passed while the request waited")
        if job.wanted is not None and not job.wanted():
            raise Withdrawn("an answer was there before this computation began")
        if self.residency is None:
            loaded = self.models[job.model]
        else:
            loaded, load_ns = self.residency.acquire(job.model)
            start_ns = time.monotonic_ns()
        step = (job.start, job.stop, job.rule, job.final_answers)
        if isinstance(loaded, MemoisedModel):
            made = loaded.step(job.tensor, *step)
        else:
            made = run_step(TorchRun(loaded.model, job.tensor), loaded.info, *step)
        confidence = None if made.exit_id is None else max_probability(
            job.rule.scaled(made.output, job.info.exit_after[made.stop - 1].temperature))
        service_s = self.profile.service_time_s(loaded.info, job.start, made.stop, made.heads)
        service_ns, overrun_ns = None, 0
        if service_s is not None:
            service_ns = round(service_s * 1e9) * len(job.tensor)
            overrun_ns = max(0, time.monotonic_ns() - (start_ns + service_ns))
            self.held, self.overruns = self.held + 1, self.overruns + (overrun_ns > 0)
            self.overrun_max_ns = max(self.overrun_max_ns, overrun_ns)
            hold_until(start_ns + service_ns)
        return StageResult(made.output, made.exit_id, confidence, job.start, made.stop, job.queue_start_ns, start_ns,
                           time.monotonic_ns(), service_ns, overrun_ns, made.memo_hit, load_ns)


def served_models(catalogue: Catalogue, names: Iterable[str], outputs: str | None) -> dict[str, LoadedModel | MemoisedModel]:
    """The models of a node or device by name: loaded, or looked up in the folder of memoised `outputs`. Raises InputError."""
    if outputs is None:
        return {name: load_model(catalogue, name) for name in names}
    return {name: MemoisedModel.of(catalogue, name, Path(outputs)) for name in names}


def make_worker(catalogue: Catalogue, names: Iterable[str], profile: ComputeProfile, outputs: str | None = None,
                residency: Mapping[str, Any] | None = None) -> Worker:
    """The worker of a node or device: its models loaded, or loaded as they are needed. Raises InputError."""
    names = list(names)
    kept = residency_from(residency, catalogue, names, outputs)
    return Worker(served_models(catalogue, names, outputs) if kept is None else {}, profile, kept)


def hold_until(deadline_ns: int) -> None:
    """Sleep until shortly before an instant of CLOCK_MONOTONIC, then spin to it."""
    while (left := deadline_ns - time.monotonic_ns()) > 0:
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)


def _deliver(job: _Job, result: StageResult | BaseException) -> None:
    def set_result() -> None:
        if job.future.done():  # the one who asked has given up
            return
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)

    try:
        job.loop.call_soon_threadsafe(set_result)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _precise_sleep() -> None:
    """Ask the kernel for 1 us instead of 50 us slack on this thread's timers (PR_SET_TIMERSLACK = 29)."""
    import ctypes

    libc: Any = ctypes.CDLL(None)
    libc.prctl(29, 1000, 0, 0, 0)
