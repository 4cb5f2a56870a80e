"""A plan and its backup: whichever answers first counts, once; the other side is accounted for, or never begun."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from testbed.inference.data import load_dataset
from testbed.serving.backup import Race, execute_with_backup
from testbed.serving.execute import PlanOutcome

X = load_dataset("digits").x[:1]
TIMEOUT_S = 0.6


def race(three_nodes: Any, plan: list[dict[str, Any]], backup: list[dict[str, Any]], after_s: float, *,
         edge_s: float = 0.0, busy_s: float = 0.0) -> tuple[Race, PlanOutcome | None, float]:
    """The race, its other side, and seconds until it was decided; the edge takes `edge_s` longer, the device is busy first."""
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def go() -> tuple[Race, PlanOutcome | None, float]:
        async with three_nodes() as nodes:
            server = await asyncio.start_server(silent, "127.0.0.1", 0)
            nodes.client.peers |= {"silent": server.sockets[0].getsockname(), "shut": ("127.0.0.1", 1)}
            execute = nodes.edge.worker.execute

            async def slow(*args: Any, **options: Any) -> Any:
                await asyncio.sleep(edge_s)
                return await execute(*args, **options)

            nodes.edge.worker.execute = slow
            busy = asyncio.create_task(nodes.device.execute("digits_branchy", 0, 5, X, wanted=lambda: _wait(busy_s)))
            await asyncio.sleep(0.02)
            start_ns = time.monotonic_ns()
            found = await execute_with_backup("device1", nodes.device, nodes.client, plan, backup, X, request_id="r",
                                              start_ns=start_ns, after_s=after_s, timeout_s=TIMEOUT_S)
            took_s = (time.monotonic_ns() - start_ns) / 1e9
            other = None if found.other is None else await found.other
            await busy
            return found, other, took_s

    return asyncio.run(go())


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def test_a_plan_in_time_has_no_backup(three_nodes: Any, step: Any) -> None:
    found, other, _ = race(three_nodes, [step("edge1", 0, 5)], [step("device1", 0, 5)], after_s=5.0)
    assert (found.first.status, found.first.final_node, found.backup, other) == ("ok", "edge1", None, None)


def test_the_backup_of_a_silent_node_wins_and_the_plan_still_ends(three_nodes: Any, step: Any) -> None:
    found, other, took_s = race(three_nodes, [step("silent", 0, 5)], [step("device1", 0, 5)], after_s=0.1)
    assert (found.first.status, found.first.final_node, found.backup) == ("ok", "device1", "won")
    assert 0.1 <= took_s < TIMEOUT_S
    assert found.first.hops[0]["queue_start_ns"] >= 0 and len(found.first.hops) == 1
    assert other is not None and (other.status, other.error_type) == ("failed", "timeout")
    assert other.completed_ns > found.first.completed_ns and [h["dst_node"] for h in other.hops] == ["silent"]


def test_a_plan_that_answers_later_is_a_duplicate(three_nodes: Any, step: Any) -> None:
    found, other, _ = race(three_nodes, [step("edge1", 0, 5)], [step("device1", 0, 5)], after_s=0.05, edge_s=0.3)
    assert (found.backup, found.first.final_node) == ("won", "device1")
    assert other is not None and (other.status, other.final_node) == ("ok", "edge1")
    assert other.prediction == found.first.prediction  # the same model on the same input


def test_a_backup_that_has_not_begun_is_not_computed(three_nodes: Any, step: Any) -> None:
    found, other, _ = race(three_nodes, [step("edge1", 0, 5)], [step("device1", 0, 5)], after_s=0.05, edge_s=0.1, busy_s=0.5)
    assert (found.backup, found.first.final_node) == ("lost", "edge1")
    assert other is not None and (other.status, other.error_type, other.hops) == ("failed", "withdrawn", [])


def test_a_plan_that_fails_has_its_backup_at_once(three_nodes: Any, step: Any) -> None:
    found, other, took_s = race(three_nodes, [step("shut", 0, 5)], [step("device1", 0, 5)], after_s=5.0)
    assert (found.first.status, found.backup, took_s < 2.0) == ("ok", "won", True)
    assert other is not None and other.error_type == "refused"


@pytest.mark.parametrize("after_s", [0.0, 5.0])
def test_when_both_fail_the_request_has_failed_once(three_nodes: Any, step: Any, after_s: float) -> None:
    wrong = [{**step("device1", 0, 5), "model": "nope"}]
    found, other, _ = race(three_nodes, [step("shut", 0, 5)], wrong, after_s=after_s)
    assert (found.first.status, found.first.error_type, found.backup) == ("failed", "refused", "lost")
    assert other is not None and other.error_type == "unknown_model"
    assert found.first.completed_ns >= other.completed_ns
