"""A plan with a backup on the device: whichever answers first is the answer, the other side is waited for apart.

What has not begun to compute when the answer is there is not computed; what another node does is not called back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.serving.client import NodeClient
from testbed.serving.coding import Coder
from testbed.serving.execute import PlanOutcome, execute_plan
from testbed.serving.worker import Worker


@dataclass(frozen=True)
class Race:
    """What became of a plan with a backup.

    `first`: the answer that counts, or that of the plan when neither side gave one. `backup`: whether the backup gave it;
    None when the backup was not started, then there is no other side. `other`: the other side, which may still be running.
    """

    first: PlanOutcome
    backup: Literal["won", "lost"] | None = None
    other: asyncio.Task[PlanOutcome] | None = None


async def execute_with_backup(local: str, worker: Worker, client: NodeClient, steps: Sequence[Mapping[str, Any]],
                              backup: Sequence[Mapping[str, Any]], x: NDArray[np.float32], *, request_id: str,
                              start_ns: int, after_s: float, timeout_s: float = 10.0, retries: int = 0,
                              coder: Coder | None = None) -> Race:
    """Execute a plan (see `execute_plan`) and, `after_s` after `start_ns` if there is no answer yet, its backup.

    A plan that fails earlier has its backup started at once; it needs no fallback. The backup has no time-out.
    """
    answered = False
    loop = asyncio.get_running_loop()

    def wanted() -> bool:
        return not answered

    plan = loop.create_task(execute_plan(
        local, worker, client, steps, x, request_id=request_id, start_ns=start_ns, timeout_s=timeout_s, retries=retries,
        coder=coder, wanted=wanted))
    wait_s = max(0.0, after_s - (time.monotonic_ns() - start_ns) / 1e9)
    await asyncio.wait([plan], timeout=wait_s)
    if plan.done() and plan.result().status == "ok":
        return Race(plan.result())
    spare = loop.create_task(execute_plan(
        local, worker, client, backup, x, request_id=request_id, start_ns=time.monotonic_ns(), timeout_s=None, coder=coder,
        wanted=wanted))
    running = {plan, spare} - ({plan} if plan.done() else set())
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if any(side.result().status == "ok" for side in done):
            break
    answered = True
    ended = [side for side in (plan, spare) if side.done() and side.result().status == "ok"]
    if not ended:
        return Race(replace(plan.result(), completed_ns=max(s.result().completed_ns for s in (plan, spare))), "lost", spare)
    winner = min(ended, key=lambda side: side.result().completed_ns)
    return Race(winner.result(), "won" if winner is spare else "lost", plan if winner is spare else spare)
