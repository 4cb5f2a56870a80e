"""The worker: first come first served, exits by rule, and held to the profile's service time."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import numpy as np
import pytest

from testbed.inference.compute import ComputeProfile
from testbed.inference.data import load_dataset
from testbed.inference.exits import ExitRule
from testbed.serving.worker import BadInput, Expired, StageResult, UnknownModel, Worker, WorkerClosed

X = load_dataset("digits").x[:1]
M = "digits_branchy"


def execute(models: Any, *args: Any, profile: ComputeProfile | None = None, **options: Any) -> StageResult:
    async def go() -> StageResult:
        worker = Worker(models, profile or ComputeProfile("real"))
        try:
            return await worker.execute(M, *args, **options)
        finally:
            worker.close()

    return asyncio.run(go())


def test_requests_are_computed_one_at_a_time_in_order(models: Any) -> None:
    async def go() -> list[StageResult]:
        worker = Worker(models, ComputeProfile("slow", "test", slowdown=2))
        tasks = [asyncio.create_task(worker.execute(M, 0, 5, X)) for _ in range(4)]
        await asyncio.sleep(0)
        assert worker.inflight == 4
        results = await asyncio.gather(*tasks)
        assert worker.inflight == worker.queue_depth == 0
        worker.close()
        return results

    results = asyncio.run(go())
    for before, after in itertools.pairwise(results):
        assert before.compute_end_ns <= after.compute_start_ns
        assert after.queue_start_ns < before.compute_end_ns  # it did wait


def test_service_time_is_the_profiles(models: Any) -> None:
    profile = ComputeProfile("table", "test", table={M: {(0, 5): 0.120}})  # far above what any busy machine takes
    result = execute(models, 0, 5, X, profile=profile)
    took_ns = result.compute_end_ns - result.compute_start_ns
    assert result.service_ns == 120_000_000 and took_ns >= result.service_ns and result.overrun_ns == 0


def test_an_overrun_is_recorded_not_hidden(models: Any) -> None:
    result = execute(models, 0, 5, X, profile=ComputeProfile("impossible", "test", slowdown=1e-6))
    assert result.overrun_ns > 0
    assert result.overrun_ns <= result.compute_end_ns - result.compute_start_ns


def test_an_exit_shortens_the_service_time(models: Any) -> None:
    profile = ComputeProfile("factor", "test", slowdown=30)
    fired = execute(models, 0, 5, X, ExitRule("max_probability", 0.0), profile=profile)
    info = models[M].info
    assert (fired.exit_id, fired.stop) == ("early", 3)
    assert fired.service_ns == round(30 * info.reference_time_s(0, 3, (2,)) * 1e9)


@pytest.mark.parametrize(("start", "stop", "rule", "exit_id", "reached"), [
    (0, 5, None, "final", 5),
    (0, 5, ExitRule("max_probability", 0.0), "early", 3),
    (0, 5, ExitRule("max_probability", 1.1), "final", 5),
    (0, 5, ExitRule("entropy", 1.0), "early", 3),
    (0, 5, ExitRule("entropy", 0.0), "final", 5),
    (0, 4, ExitRule("max_probability", 1.1), None, 4),
    (0, 4, ExitRule("always"), "early", 3),
    (0, 5, ExitRule("always"), "final", 5),
    (0, 2, ExitRule("max_probability", 0.0), None, 2),
])
def test_exit_semantics(models: Any, start: int, stop: int, rule: ExitRule | None, exit_id: str | None,
                        reached: int) -> None:
    result = execute(models, start, stop, X, rule)
    assert (result.exit_id, result.stop) == (exit_id, reached)
    assert (result.confidence is None) == (exit_id is None)
    assert result.output.shape == ((1, 10) if exit_id else (1, *models[M].info.shape_at(stop)))


@pytest.mark.parametrize(("args", "error"), [
    (("nope", 0, 5, X), UnknownModel), ((M, 0, 6, X), BadInput), ((M, 3, 3, X), BadInput),
    ((M, 1, 5, X), BadInput), ((M, 0, 5, X[0]), BadInput), ((M, 0, 5, X[:0]), BadInput),
    ((M, 0, 5, np.concatenate([X, X]), ExitRule("entropy", 0.1)), BadInput),
    ((M, 0, 2, X, ExitRule("always")), BadInput)])
def test_what_does_not_fit_is_refused(models: Any, args: Any, error: type[Exception]) -> None:
    async def go() -> None:
        with pytest.raises(error):
            await Worker(models).execute(*args)

    asyncio.run(go())


def test_expired_and_closed(models: Any) -> None:
    async def go() -> None:
        worker = Worker(models)
        with pytest.raises(Expired):
            await worker.execute(M, 0, 5, X, deadline_ns=time.monotonic_ns() - 1)
        worker.close()
        with pytest.raises(WorkerClosed):
            await worker.execute(M, 0, 5, X)

    asyncio.run(go())


def test_read_only_input_is_not_written_to(models: Any) -> None:
    frame = np.frombuffer(X.tobytes(), np.float32).reshape(X.shape)
    assert execute(models, 0, 5, frame).output.argmax() == execute(models, 0, 5, X).output.argmax()
    assert np.array_equal(frame, X)
