"""Active probes: from time to time every remote node gets an empty echo, and then one with a body."""

from __future__ import annotations

import asyncio
import random
import time
from types import TracebackType
from typing import Any

from testbed.policies import Context, Policy, Probe
from testbed.serving.client import Answer, NodeClient, TransportError
from testbed.serving.execute import Hop
from testbed.serving.protocol import ProtocolError, parse_json
from testbed.workload.learning import Knowledge, ask
from testbed.workload.recording import Recorder

ECHO = "/v2/testbed/echo"


class Prober:
    """Sends the probes that a policy asks for and tells it what came of them; nothing when it asks for none.

    The first at the start of the load, the second after a part of the period that is the device's own (devices must not move
    in lockstep), then one per period; one node after the other, from near to far, so that they do not disturb each other.
    Leaving the context waits for the probe that is under way, at most its time-out. The messages are rows of the `hops` table,
    with `kind` probe.
    """

    def __init__(self, policy: Policy, context: Context, client: NodeClient, knowledge: Knowledge, recorder: Recorder) -> None:
        self._policy, self._context, self._client = policy, context, client
        self._knowledge, self._recorder = knowledge, recorder
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    async def __aenter__(self) -> Prober:
        if self._policy.probes is not None and self._context.remote_nodes:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        spec = self._policy.probes
        assert spec is not None
        due_s = time.monotonic() - spec.period_s * random.Random(self._context.seed).random()
        while not self._stop.is_set():
            for node in self._context.remote_nodes:
                if not self._stop.is_set():
                    await self._probe(node, spec.size_bytes, spec.timeout_s)
            due_s = max(due_s + spec.period_s, time.monotonic())
            try:
                await asyncio.wait_for(self._stop.wait(), due_s - time.monotonic())
            except TimeoutError:
                continue

    async def _probe(self, node: str, size_bytes: int, timeout_s: float) -> None:
        self._count += 1
        probe_id = f"{self._context.device}-probe-{self._count:04d}"
        hops: list[Hop] = []
        rtt_s = await self._echo(node, 0, timeout_s, hops)
        duration_s = None if rtt_s is None else await self._echo(node, size_bytes, timeout_s, hops)
        self._recorder.probe_hops(probe_id, hops)
        t_ns = time.monotonic_ns()
        probe = Probe(node, t_ns, rtt_s, size_bytes, duration_s, self._knowledge.state(node, t_ns))
        ask(self._policy.id or type(self._policy).__name__, probe_id, self._policy.observe_probe, probe)
        self._recorder.probe(probe)

    async def _echo(self, node: str, size_bytes: int, timeout_s: float, hops: list[Hop]) -> float | None:
        """Seconds from the first byte handed over to the acknowledgement, without what the node needed; None when it failed."""
        device, client, begin_ns = self._context.device, self._client, time.monotonic_ns()
        up: Hop = {"kind": "probe", "src_node": device, "dst_node": node, "direction": client.direction(device, node, "up"),
                   "payload_bytes": size_bytes, "send_start_ns": begin_ns}
        try:
            answer = await client.request(node, "POST", ECHO, bytes(size_bytes), {"Content-Type": "application/octet-stream"},
                                          deadline_ns=begin_ns + round(timeout_s * 1e9))
            told = _told(answer)
        except (TransportError, ProtocolError):
            hops.append(up)  # whether and when it arrived is not known: those cells stay empty
            return None
        hops.append(up | {"header_bytes": answer.request_header_bytes, "send_start_ns": answer.send_start_ns,
                          "recv_first_ns": told["recv_first_ns"], "recv_last_ns": told["recv_last_ns"]})
        hops.append({"kind": "probe", "src_node": node, "dst_node": device, "direction": client.direction(node, device, "down"),
                     "payload_bytes": len(answer.body), "header_bytes": answer.response_header_bytes,
                     "send_start_ns": told["recv_last_ns"] + told["server_ns"],
                     "recv_first_ns": answer.recv_first_ns, "recv_last_ns": answer.recv_last_ns})
        self._knowledge.told(node, told.get("state"), answer.recv_last_ns)
        server_ns: int = told["server_ns"]
        return max(0, answer.recv_last_ns - answer.send_start_ns - server_ns) / 1e9


def _told(answer: Answer) -> dict[str, Any]:
    """What a node says of an echo: its instants, and its state. Raises ProtocolError."""
    told = parse_json(answer.body) if answer.status == 200 else {}
    if not all(type(told.get(key)) is int for key in ("recv_first_ns", "recv_last_ns", "server_ns")):
        raise ProtocolError(f"status {answer.status} is no answer to an echo")
    return told
