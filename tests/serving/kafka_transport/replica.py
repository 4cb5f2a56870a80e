"""A replica as a process of its own, to be killed: answers each request with its own body, after a pause.

usage: replica.py BROKER VERSION TOPIC GROUP PAUSE_S
"""

from __future__ import annotations

import asyncio
import sys

from testbed.serving.kafka.broker import Cluster, Route
from testbed.serving.kafka.envelope import Envelope
from testbed.serving.kafka.server import KafkaServer


async def main(broker: str, version: str, topic: str, group: str, pause_s: float) -> None:
    async def echo(request: Envelope, recv_ns: int) -> tuple[int, bytes, int | None]:
        await asyncio.sleep(pause_s)
        return 200, request.body, None

    cluster = Cluster((broker,), None if version == "ask" else tuple(map(int, version.split("."))))
    server = KafkaServer("replica", echo, Route(cluster, topic), group, session_timeout_s=1.5)
    await server.start()
    while not server.partitions:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5], float(sys.argv[5])))  # type: ignore[call-arg]
