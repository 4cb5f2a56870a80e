"""Models in memory: a budget of weights, the least recently used goes, loading is real and takes its time."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue
from testbed.inference.compute import REAL
from testbed.serving.residency import Loader, Residency
from testbed.serving.worker import Worker, make_worker

CATALOGUE = load_catalogue(Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml")
SIZES = {"a": 50, "b": 30, "c": 40, "d": 10}


def made(sizes: dict[str, int] = SIZES, **options: Any) -> tuple[Residency, list[str]]:
    loads: list[str] = []

    def loader(name: str) -> Loader:
        def load() -> Any:
            loads.append(name)
            return name

        return Loader(CATALOGUE["digits_branchy"], sizes[name], load)

    return Residency({name: loader(name) for name in sizes}, **options), loads


def test_the_least_recently_used_model_goes_first() -> None:
    kept, loads = made(budget_bytes=90)
    for name in "abac":  # a was used after b: b goes for c, and 50 + 40 fill the budget
        kept.acquire(name)
    assert kept.resident == ("a", "c") and loads == ["a", "b", "c"]


def test_any_sequence_of_uses_is_that_of_a_reference_lru() -> None:
    rng = random.Random(4)
    for _ in range(200):
        budget = rng.randrange(50, 131)
        kept, _ = made(budget_bytes=budget)
        reference: list[str] = []
        for name in rng.choices("abcd", k=12):
            _, load_ns = kept.acquire(name)
            assert (load_ns is None) == (name in reference)
            reference = [n for n in reference if n != name]
            while reference and sum(SIZES[n] for n in reference) + SIZES[name] > budget and load_ns is not None:
                reference.pop(0)
            reference.append(name)
            assert list(kept.resident) == reference
            assert sum(SIZES[n] for n in kept.resident) <= budget


def test_a_model_that_is_not_used_for_long_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10**9]
    monkeypatch.setattr("testbed.serving.residency.time.monotonic_ns", lambda: now[0])
    kept, loads = made(keep_alive_s=2.0)
    kept.acquire("a")
    now[0] += 1_900_000_000
    kept.acquire("a")
    now[0] += 2_100_000_000
    assert kept.resident == ()
    kept.acquire("a")
    assert loads == ["a", "a"]


def test_loading_is_held_to_its_rate_once_the_load_has_begun() -> None:
    kept, _ = made({"a": 10_000, "b": 10_000}, load_bps=8e6, load_floor_s=0.02, resident=["b"])
    kept.reset()
    assert kept.resident == ("b",)
    _, load_ns = kept.acquire("a")
    assert load_ns is not None and load_ns >= 30_000_000  # 20 ms floor, 10 kB at 1 MB/s
    assert kept.acquire("b")[1] is None


@pytest.mark.parametrize(("options", "key"), [
    ({"budget_bytes": 49}, "residency.budget"), ({"budget_bytes": 60, "resident": ["a", "b"]}, "residency.resident")])
def test_a_budget_that_cannot_hold_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        made(**options)
    assert error.value.key == key


def test_a_worker_that_swaps_models_answers_as_one_that_holds_them_all() -> None:
    names = ["mobilenet_012s2", "mobilenet_025s2"]
    sizes = [(CATALOGUE.path.parent / str(CATALOGUE[n].weights)).stat().st_size for n in names]
    x = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)

    async def answers(worker: Worker) -> tuple[list[Any], list[bool]]:
        worker.settle()
        results = [await worker.execute(n, 0, CATALOGUE[n].num_stages, x) for n in (*names, *names, names[1])]
        worker.close()
        return [r.output for r in results], [r.load_ns is not None for r in results]

    swapped, cold = asyncio.run(answers(make_worker(CATALOGUE, names, REAL, residency={"budget": max(sizes)})))
    held, never = asyncio.run(answers(make_worker(CATALOGUE, names, REAL)))
    assert all(np.array_equal(a, b) for a, b in zip(swapped, held, strict=True))
    assert cold == [True, True, True, True, False] and never == [False] * 5


def test_answers_and_echoes_bring_the_nodes_state(three_nodes: Any) -> None:
    import json

    from testbed.serving.execute import execute_plan

    async def go() -> None:
        async with three_nodes() as nodes:
            steps = [{"node": "edge1", "model": "digits_branchy", "start": 0, "stop": 2},
                     {"node": "cloud1", "model": "digits_branchy", "start": 2, "stop": 5}]
            x = np.zeros((1, *CATALOGUE["digits_branchy"].input_shape), np.float32)
            outcome = await execute_plan("device1", nodes.device, nodes.client, steps, x, request_id="r")
            assert set(outcome.states) == {"edge1", "cloud1"}
            assert outcome.states["cloud1"] == {"queue_depth": 0, "inflight": 0, "resident": None}
            assert [h["model"] for h in outcome.hops if h["kind"] == "compute"] == ["digits_branchy"] * 2
            echo = await nodes.client.request("edge1", "POST", "/v2/testbed/echo", bytes(100_000))
            told = json.loads(echo.body)
            assert echo.status == 200 and told["server_ns"] >= 0 and told["state"]["inflight"] == 0
            assert (await nodes.client.request("edge1", "GET", "/v2/testbed/echo")).status == 405

    asyncio.run(go())
