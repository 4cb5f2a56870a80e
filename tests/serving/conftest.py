"""A device, an edge and a cloud on loopback: real model, real HTTP, no emulated links."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.inference.catalogue import LoadedModel, load_catalogue, load_model
from testbed.inference.compute import REAL, ComputeProfile
from testbed.serving.client import NodeClient
from testbed.serving.server import NodeServer
from testbed.serving.worker import Worker

CATALOGUE = Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml"
TIERS = {"device1": "device", "edge1": "edge", "cloud1": "cloud"}
ORDER = ("device", "edge", "cloud")


@dataclass
class Nodes:
    """The three, and the ports of the two that serve."""

    device: Worker
    client: NodeClient
    edge: NodeServer
    cloud: NodeServer
    ports: dict[str, int]


@pytest.fixture(scope="session")
def models() -> dict[str, LoadedModel]:
    return {"digits_branchy": load_model(load_catalogue(CATALOGUE), "digits_branchy")}


@pytest.fixture
def three_nodes(models: dict[str, LoadedModel]) -> Callable[..., AbstractAsyncContextManager[Nodes]]:
    @asynccontextmanager
    async def make(profile: ComputeProfile = REAL, **limits: Any) -> AsyncIterator[Nodes]:
        workers = [Worker(models, profile) for _ in range(3)]
        cloud = NodeServer("cloud1", workers[2], NodeClient("cloud1", {}, TIERS, ORDER), **limits)
        ports = {"cloud1": await cloud.start("127.0.0.1", 0)}
        peers = {"cloud1": f"127.0.0.1:{ports['cloud1']}"}
        edge = NodeServer("edge1", workers[1], NodeClient("edge1", peers, TIERS, ORDER), **limits)
        ports["edge1"] = await edge.start("127.0.0.1", 0)
        client = NodeClient("device1", peers | {"edge1": f"127.0.0.1:{ports['edge1']}"}, TIERS, ORDER)
        cloud.ready = edge.ready = True
        try:
            yield Nodes(workers[0], client, edge, cloud, ports)
        finally:
            for server in (edge, cloud):
                await server.stop()
                await server.client.close()
            await client.close()
            for worker in workers:
                worker.close()

    return make


@pytest.fixture
def step() -> Callable[..., dict[str, Any]]:
    def make(node: str, start: int, stop: int, codec: str = "raw", threshold: float | None = None,
             kind: str = "max_probability") -> dict[str, Any]:
        rule = None if threshold is None else {"kind": kind, "threshold": threshold}
        return {"node": node, "model": "digits_branchy", "start": start, "stop": stop, "codec": codec, "exit": rule}

    return make


@pytest.fixture
def now_ns() -> Callable[[], int]:
    return time.monotonic_ns
