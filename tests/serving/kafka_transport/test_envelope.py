"""Envelopes: what was packed is what comes out, in both forms; anything else is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError, MissingToolError
from testbed.serving.client import TransportError
from testbed.serving.kafka.broker import Cluster, Route, clusters_of
from testbed.serving.kafka.client import KafkaClient
from testbed.serving.kafka.consumer import Progress
from testbed.serving.kafka.envelope import MAGIC, Envelope, unpack
from testbed.serving.protocol import ProtocolError

REQUEST = Envelope("request", "c-1", "device1", "vgg", 123, b"head\x00\xff", "t.reply.device1", 0, 4)


@given(st.builds(
    Envelope, kind=st.just("request"), correlation_id=st.text(min_size=1), source=st.text(), model=st.text(),
    sent_ns=st.integers(0, 2**62), body=st.binary(min_size=9), reply_to=st.text(min_size=1), status=st.integers(0, 599),
    header_length=st.none() | st.integers(0, 9)), st.booleans())
def test_round_trip(envelope: Envelope, record_headers: bool) -> None:
    value, headers = envelope.pack(record_headers)
    told, size = unpack(value, headers)
    assert told == envelope
    assert size + len(envelope.body) == len(value) + sum(len(k) + len(v) for k, v in headers)  # every byte has an owner
    assert envelope.overhead_bytes(record_headers) == size
    assert (value == envelope.body) is record_headers


@pytest.mark.parametrize("value", [
    None, b"", b"x" * 7, b"x" * 100, MAGIC + b"\xff\xff\xff\xff", MAGIC + b"\x00\x00\x00\x09{}", MAGIC + b"\x00\x00\x00\x02{}",
    dataclasses.replace(REQUEST, correlation_id="").pack(False)[0], dataclasses.replace(REQUEST, reply_to="").pack(False)[0],
    dataclasses.replace(REQUEST, header_length=99).pack(False)[0]])
def test_what_is_no_message_is_refused(value: bytes | None) -> None:
    with pytest.raises(ProtocolError):
        unpack(value)


@given(st.data())
def test_commits_never_pass_an_unfinished_message(data: st.DataObject) -> None:
    """Against the definition, by brute force: all offsets before the committed one are done, and the next one is not."""
    progress, came, done = Progress(), {0: 0, 1: 0}, {0: set[int](), 1: set[int]()}
    before = {0: 0, 1: 0}
    for _ in range(data.draw(st.integers(1, 30))):
        partition = data.draw(st.sampled_from([0, 1]))
        waiting = sorted(set(range(came[partition])) - done[partition])
        if waiting and data.draw(st.booleans()):
            offset = data.draw(st.sampled_from(waiting))
            done[partition].add(offset)
            progress.done(partition, offset)
        else:
            progress.came(partition, came[partition])
            came[partition] += 1
        commit = progress.to_commit()
        for p in (0, 1):
            first_open = next(i for i in range(came[p] + 1) if i not in done[p])
            assert commit.get(p, before[p]) == first_open
        progress.committed(commit)
        before |= commit
    assert progress.unfinished == sum(came.values()) - sum(map(len, done.values()))
    progress.forget([0, 1])
    assert progress.to_commit() == {} and progress.unfinished == 0


@pytest.mark.parametrize("brokers", [(), ("10.0.0.1",), (":9092",), ("a:0",), ("a:b",)])
def test_addresses_are_checked(brokers: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="address:port"):
        Cluster(brokers)


def test_a_cluster_of_several_nodes_is_connected_once() -> None:
    edge, cloud = Cluster(("10.0.0.1:9092",), (0, 9)), Cluster(("10.0.0.2:9092",))
    assert clusters_of({"e1": Route(edge, "a"), "e2": Route(Cluster(("10.0.0.1:9092",), (0, 9)), "b"),
                        "c": Route(cloud, "c")}) == [edge, cloud]


def test_a_missing_client_library_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kafka", None)
    client = KafkaClient("d", {"n": Route(Cluster(("127.0.0.1:9",)), "t")})
    with pytest.raises(MissingToolError, match=r"testbed\[kafka\]"):
        asyncio.run(client.start())


def test_only_inference_and_only_to_known_nodes() -> None:
    client = KafkaClient("d", {"n": Route(Cluster(("127.0.0.1:9",)), "t")})
    with pytest.raises(TransportError, match="no topic") as caught:
        asyncio.run(client.request("m", "POST", "/v2/models/x/infer"))
    assert caught.value.error_type == "unknown_node"
    with pytest.raises(ValueError, match="only inference"):
        asyncio.run(client.request("n", "POST", "/v2/testbed/echo"))
