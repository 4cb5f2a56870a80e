"""Plans over a real broker: right answers, one per request, rows as over HTTP, and nothing lost when a part dies."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.inference.catalogue import LoadedModel
from testbed.inference.data import load_dataset
from testbed.serving.client import NodeClient, TransportError
from testbed.serving.execute import PlanOutcome, execute_plan
from testbed.serving.kafka.broker import Cluster, Route
from testbed.serving.kafka.client import KafkaClient
from testbed.serving.kafka.envelope import Envelope
from testbed.serving.kafka.producer import Producer, SendFailed
from testbed.serving.kafka.server import KafkaServer, answers_of
from testbed.serving.server import NodeServer
from testbed.serving.worker import Worker

kafka = pytest.importorskip("kafka", reason="kafka-python is not installed (pip install 'testbed[kafka]')")
pytestmark = pytest.mark.kafka
X = load_dataset("digits").x
TIERS, ORDER = {"device1": "device", "edge1": "edge", "cloud1": "cloud"}, ("device", "edge", "cloud")


@pytest.fixture
def cluster(broker: Any) -> Cluster:
    return Cluster(broker.addresses, broker.version)


def route(cluster: Cluster) -> Route:
    return Route(cluster, f"t{uuid.uuid4().hex[:10]}")


@dataclass
class Tiers:
    device: Worker
    clients: list[KafkaClient]
    edge_client: KafkaClient


@asynccontextmanager
async def tiers(cluster: Cluster, models: dict[str, LoadedModel], *, clients: int = 1, in_flight: int = 1,
                tensors: Any = "binary") -> AsyncIterator[Tiers]:
    to_edge, to_cloud = route(cluster), route(cluster)
    workers = [Worker(models) for _ in range(3)]
    up = KafkaClient("edge1", {"cloud1": to_cloud}, TIERS, ORDER, tensors=tensors)
    cloud = NodeServer("cloud1", workers[2], NodeClient("cloud1", {}, TIERS, ORDER))
    edge = NodeServer("edge1", workers[1], up)
    edge.ready = cloud.ready = True
    servers = [KafkaServer("cloud1", answers_of(cloud), to_cloud, "cloud", in_flight=in_flight),
               KafkaServer("edge1", answers_of(edge), to_edge, "edge", in_flight=in_flight)]
    devices = [KafkaClient(f"device{i}", {"edge1": to_edge, "cloud1": to_cloud}, TIERS, ORDER, tensors=tensors)
               for i in range(1, clients + 1)]
    for client in (up, *devices):
        await client.start()
    for server in servers:
        await server.start()
    try:
        yield Tiers(workers[0], devices, up)
    finally:
        for client in devices:
            await client.close()
        for server in reversed(servers):
            await server.stop()
        await up.close()
        for worker in workers:
            worker.close()


def test_k_clients_get_their_own_answers_once(cluster: Cluster, models: Any, step: Any) -> None:
    """The oracle is the unsplit network on the same sample: a swapped reply would be another sample's logits."""
    plan = [step("edge1", 0, 2), step("cloud1", 2, 5)]
    whole = models["digits_branchy"]
    n, k = 10, 3

    async def go() -> tuple[list[list[PlanOutcome]], list[Any]]:
        async with tiers(cluster, models, clients=k, in_flight=4) as there:
            async def load(i: int) -> list[PlanOutcome]:
                return list(await asyncio.gather(*(
                    execute_plan(f"device{i + 1}", there.device, there.clients[i], plan, X[i * n + j:i * n + j + 1],
                                 request_id=f"r{i}-{j}", timeout_s=60) for j in range(n))))

            return list(await asyncio.gather(*map(load, range(k)))), [c.replies for c in there.clients]

    answers, replies = asyncio.run(go())
    import torch

    for i, j in itertools.product(range(k), range(n)):
        outcome = answers[i][j]
        assert outcome.status == "ok" and outcome.final_node == "cloud1" and outcome.logits is not None, outcome.error
        sample = X[i * n + j:i * n + j + 1]
        assert np.allclose(outcome.logits, whole.model(torch.from_numpy(sample)).numpy(), atol=1e-5)
    assert [(r.matched, r.late, r.duplicates, r.foreign) for r in replies] == [(n, 0, 0, 0)] * k


def test_rows_tile_and_name_the_same_hops_as_over_http(cluster: Cluster, models: Any, step: Any) -> None:
    plan = [step("device1", 0, 2), step("edge1", 2, 3), step("cloud1", 3, 5)]

    async def go() -> tuple[PlanOutcome, int]:
        async with tiers(cluster, models) as there:
            start_ns = time.monotonic_ns()
            return await execute_plan("device1", there.device, there.clients[0], plan, X[:1], request_id="r",
                                      start_ns=start_ns, timeout_s=60), start_ns

    outcome, start_ns = asyncio.run(go())
    assert outcome.status == "ok", outcome.error
    assert [(h["kind"], h["src_node"], h["dst_node"], h["direction"], h["stage"]) for h in outcome.hops] == [
        ("compute", "device1", "device1", "local", "0:2"), ("transfer", "device1", "edge1", "up", "2:3"),
        ("compute", "edge1", "edge1", "local", "2:3"), ("transfer", "edge1", "cloud1", "up", "3:5"),
        ("compute", "cloud1", "cloud1", "local", "3:5"), ("transfer", "cloud1", "edge1", "down", "3:5"),
        ("transfer", "edge1", "device1", "down", "2:3")]
    marks = [start_ns]
    for hop in outcome.hops:
        keys = ("encode_start_ns", "send_start_ns", "recv_last_ns") if hop["kind"] == "transfer" else (
            "queue_start_ns", "compute_start_ns", "compute_end_ns")
        assert hop[keys[0]] == marks[-1]  # begins where the row before it ended
        marks += [hop[key] for key in keys[1:]]
        if hop["kind"] == "transfer":
            assert hop["payload_bytes"] > 0 and 0 < hop["header_bytes"] < 600
    assert marks == sorted(marks) and marks[-1] == outcome.completed_ns


def test_early_exits_are_monotone_in_the_threshold(cluster: Cluster, models: Any, step: Any) -> None:
    thresholds, n = (0.0, 0.9, 0.999, 1.01), 20

    async def go() -> list[list[PlanOutcome]]:
        async with tiers(cluster, models, in_flight=4) as there:
            found = []
            for threshold in thresholds:
                plan = [step("edge1", 0, 3, threshold=threshold), step("cloud1", 3, 5)]
                found.append(list(await asyncio.gather(*(
                    execute_plan("device1", there.device, there.clients[0], plan, X[i:i + 1], request_id=f"r{i}", timeout_s=60)
                    for i in range(n)))))
            return found

    found = asyncio.run(go())
    assert all(o.status == "ok" for outcomes in found for o in outcomes)
    shares = [sum(o.final_node == "edge1" for o in outcomes) / n for outcomes in found]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == 0
    escalated = [next(h for h in o.hops if (h["kind"], h["dst_node"]) == ("transfer", "cloud1")) for o in found[-1]]
    size = int(np.prod(models["digits_branchy"].info.shape_at(3))) * 4
    assert all(size < hop["payload_bytes"] < size + 1024 for hop in escalated)


def test_decimal_tensors_give_the_same_answer_in_many_more_bytes(cluster: Cluster, models: Any, step: Any) -> None:
    def one(tensors: str) -> PlanOutcome:
        async def go() -> PlanOutcome:
            async with tiers(cluster, models, tensors=tensors) as there:
                return await execute_plan("device1", there.device, there.clients[0], [step("edge1", 0, 2), step("cloud1", 2, 5)],
                                          X[:1], request_id="r", timeout_s=60)

        return asyncio.run(go())

    binary, decimal = one("binary"), one("json")
    assert binary.logits is not None and decimal.logits is not None
    assert np.array_equal(binary.logits, decimal.logits)  # a float32 in decimal comes back as itself
    sent = [next(h["payload_bytes"] for h in o.hops if h["dst_node"] == "cloud1") for o in (binary, decimal)]
    assert sent[1] > 1.2 * sent[0]


async def echo(request: Envelope, recv_ns: int) -> tuple[int, bytes, int | None]:
    return 200, request.body, None


async def ask(client: KafkaClient, body: bytes, timeout_s: float = 60) -> bytes:
    answer = await client.request("n", "POST", "/v2/models/m/infer", body,
                                  deadline_ns=time.monotonic_ns() + round(timeout_s * 1e9))
    return answer.body


def test_late_start_and_order_within_a_partition(cluster: Cluster) -> None:
    seen: list[bytes] = []

    async def noted(request: Envelope, recv_ns: int) -> tuple[int, bytes, int | None]:
        seen.append(request.body)
        return 200, request.body, None

    async def go() -> list[bytes]:
        there = route(cluster)
        client = KafkaClient("d", {"n": there})
        await client.start()
        asked = [asyncio.create_task(ask(client, b"%d" % i)) for i in range(8)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in asked)
        server = KafkaServer("n", noted, there, "g")
        await server.start()
        try:
            return list(await asyncio.gather(*asked))
        finally:
            await server.stop()
            await client.close()

    assert asyncio.run(go()) == seen == [b"%d" % i for i in range(8)]  # one partition: the order of sending


def test_a_deadline_ends_the_wait_and_the_late_reply_is_counted(cluster: Cluster) -> None:
    async def go() -> tuple[str, int, int]:
        there = route(cluster)
        client = KafkaClient("d", {"n": there})
        await client.start()
        with pytest.raises(TransportError) as caught:
            await ask(client, b"x", 0.3)
        server = KafkaServer("n", echo, there, "g")
        await server.start()
        assert await ask(client, b"y") == b"y"  # behind the late one in the partition
        await server.stop()
        await client.close()
        return caught.value.error_type, client.replies.late, client.replies.matched

    assert asyncio.run(go()) == ("timeout", 1, 1)


def test_a_record_in_the_topic_twice_is_answered_once_and_junk_is_passed_over(cluster: Cluster) -> None:
    async def go() -> tuple[int, int, int]:
        there = route(cluster)
        client, producer = KafkaClient("d", {"n": there}), Producer(cluster)
        await client.start()
        await producer.start()
        seen: list[Envelope] = []

        async def noted(request: Envelope, recv_ns: int) -> tuple[int, bytes, int | None]:
            seen.append(request)
            return 200, request.body, None

        server = KafkaServer("n", noted, there, "g")
        await server.start()
        assert await ask(client, b"x") == b"x"
        producer._producer.send(there.topic, b"junk").get(10)
        await producer.send(there.topic, seen[0])
        assert await ask(client, b"y") == b"y"
        await server.stop()
        await producer.close()
        await client.close()
        return client.replies.matched, client.replies.duplicates, server.malformed

    assert asyncio.run(go()) == (2, 1, 1)


def test_replicas_beyond_the_partitions_idle(broker: Any, cluster: Cluster) -> None:
    """Useful replicas = min(replicas, partitions), and the partitions are shared out without overlap."""
    there = route(cluster)
    broker.create_topic(there.topic, 2)

    async def go() -> list[frozenset[int]]:
        replicas = [KafkaServer(f"n{i}", echo, there, "g", session_timeout_s=3) for i in range(3)]
        await asyncio.gather(*(replica.start() for replica in replicas))
        limit_s = time.monotonic() + 30
        while sorted(len(r.partitions) for r in replicas) != [0, 1, 1] and time.monotonic() < limit_s:
            await asyncio.sleep(0.05)
        shares = [replica.partitions for replica in replicas]
        await asyncio.gather(*(replica.stop() for replica in replicas))
        return shares

    shares = asyncio.run(go())
    assert sorted(map(len, shares)) == [0, 1, 1] and frozenset().union(*shares) == {0, 1}


def test_a_killed_replica_loses_nothing(broker: Any, cluster: Cluster) -> None:
    there, n = route(cluster), 30
    version = "ask" if cluster.version is None else ".".join(map(str, cluster.version))

    def replica() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, str(Path(__file__).with_name("replica.py")), broker.addresses[0], version,
             there.topic, "g", "0.02"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    async def go() -> tuple[list[bytes], Any]:
        client = KafkaClient("d", {"n": there})
        await client.start()
        first = await asyncio.to_thread(replica)
        asked = [asyncio.create_task(ask(client, b"%d" % i)) for i in range(n)]
        while sum(task.done() for task in asked) < n // 3:
            await asyncio.sleep(0.005)
        first.kill()
        first.wait()
        assert not all(task.done() for task in asked)
        second = await asyncio.to_thread(replica)
        try:
            return list(await asyncio.gather(*asked)), client.replies
        finally:
            second.kill()
            second.wait()
            await client.close()

    answers, replies = asyncio.run(go())
    assert answers == [b"%d" % i for i in range(n)]
    assert replies.matched == n and replies.foreign == replies.late == 0
    assert replies.duplicates <= 2  # at most what was answered and not yet committed


def test_a_broker_that_dies_and_comes_back_loses_nothing(own_broker: Any) -> None:
    async def go() -> tuple[list[bytes], Any]:
        there = route(Cluster(own_broker.addresses, own_broker.version))
        client, server = KafkaClient("d", {"n": there}), KafkaServer("n", echo, there, "g", session_timeout_s=3)
        await client.start()
        await server.start()
        assert await ask(client, b"before") == b"before"
        await asyncio.to_thread(own_broker.kill_kafka)
        asked = [asyncio.create_task(ask(client, b"%d" % i)) for i in range(5)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_broker.start_kafka)
        try:
            return list(await asyncio.gather(*asked)), client.replies
        finally:
            await server.stop()
            await client.close()

    answers, replies = asyncio.run(go())
    assert answers == [b"%d" % i for i in range(5)] and replies.matched == 6


def leader_of(cluster: Cluster, topic: str) -> int:
    consumer = kafka.KafkaConsumer(**cluster.options())
    try:
        consumer.partitions_for_topic(topic)  # asks for the topic's metadata
        leader: int = consumer._cluster.leader_for_partition(kafka.TopicPartition(topic, 0))
        return leader
    finally:
        consumer.close()


def test_the_leader_of_three_brokers_dies_and_nothing_is_lost(three_brokers: Any) -> None:
    """Topics on three brokers, two of which must have a message before it counts as sent; the requests' leader is killed."""
    async def go() -> tuple[list[bytes], Any]:
        there = route(Cluster(three_brokers.addresses, three_brokers.version))
        client, server = KafkaClient("d", {"n": there}), KafkaServer("n", echo, there, "g", session_timeout_s=3)
        await client.start()
        await server.start()
        assert await ask(client, b"before") == b"before"
        leader = await asyncio.to_thread(leader_of, there.cluster, there.topic)
        assert leader in (0, 1, 2)
        killing = asyncio.create_task(asyncio.to_thread(three_brokers.kill_kafka, leader))
        asked = []
        for i in range(20):
            asked.append(asyncio.create_task(ask(client, b"%d" % i)))
            await asyncio.sleep(0.02)
        try:
            await killing
            return list(await asyncio.gather(*asked)), client.replies
        finally:
            await server.stop()
            await client.close()

    answers, replies = asyncio.run(go())
    assert answers == [b"%d" % i for i in range(20)] and replies.matched == 21


def test_what_no_broker_takes_fails_for_its_sender_and_closing_ends(own_broker: Any) -> None:
    async def go() -> None:
        there = route(Cluster(own_broker.addresses, own_broker.version))
        producer = Producer(there.cluster, delivery_timeout_s=30)
        await producer.start()
        await producer.prepare(there.topic)
        await asyncio.to_thread(own_broker.kill_kafka)
        sending = asyncio.create_task(producer.send(there.topic, Envelope("request", "c", "d", "m", 0, b"x", "r")))
        await asyncio.sleep(0.1)
        await producer.close()
        with pytest.raises(SendFailed):
            await asyncio.wait_for(sending, 10)

    asyncio.run(go())


def test_no_broker_is_a_typed_error(broker: Any) -> None:
    async def go() -> None:
        await Producer(Cluster(("127.0.0.1:9",)), delivery_timeout_s=1).start()

    with pytest.raises(SendFailed, match="no broker at 127"):
        asyncio.run(go())
