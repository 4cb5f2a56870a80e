"""Plans over real nodes: right answers whatever the cut, instants that tile, and an end status for every failure."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch

from testbed.inference.data import load_dataset
from testbed.measurement.records import HOPS
from testbed.serving.execute import PlanError, PlanOutcome, execute_plan

X = load_dataset("digits").x


def segments(hops: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(start, end) of every part of a request, in the order of the rows."""
    parts = []
    for hop in hops:
        if hop["kind"] == "transfer":
            parts += [(hop["encode_start_ns"], hop["encode_end_ns"]), (hop["send_start_ns"], hop["recv_first_ns"]),
                      (hop["recv_first_ns"], hop["recv_last_ns"])]
        else:
            parts += [(hop["queue_start_ns"], hop["compute_start_ns"]), (hop["compute_start_ns"], hop["compute_end_ns"])]
    return parts


def run(three_nodes: Any, plan: list[dict[str, Any]], **options: Any) -> tuple[PlanOutcome, int]:
    async def go() -> tuple[PlanOutcome, int]:
        async with three_nodes() as nodes:
            start_ns = time.monotonic_ns()
            return await execute_plan("device1", nodes.device, nodes.client, plan, X[:1], request_id="r1",
                                      start_ns=start_ns, **options), start_ns

    return asyncio.run(go())


PLACES = [("device1",), ("edge1",), ("cloud1",), ("device1", "edge1"), ("device1", "cloud1"), ("edge1", "cloud1"),
          ("device1", "edge1", "cloud1")]


@pytest.mark.parametrize("places", PLACES, ids="-".join)
def test_every_split_gives_the_whole_models_logits_and_tiling_instants(three_nodes: Any, step: Any, models: Any,
                                                                      places: tuple[str, ...]) -> None:
    whole = models["digits_branchy"].model(torch.from_numpy(X[:1])).numpy()
    cuts = [*[0, 2, 3, 5][:len(places)], 5]
    plan = [step(node, cuts[i], cuts[i + 1]) for i, node in enumerate(places)]
    outcome, start_ns = run(three_nodes, plan)
    assert outcome.status == "ok" and outcome.error_type is None
    assert outcome.logits is not None and np.allclose(outcome.logits, whole, atol=1e-5)
    assert outcome.prediction == whole.argmax() and outcome.exit_id == "final" and outcome.final_node == places[-1]
    parts = segments(outcome.hops)
    assert parts[0][0] == start_ns and parts[-1][1] == outcome.completed_ns
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))  # end to end, exactly
    assert all(begin <= end for begin, end in parts)  # and forwards
    assert sum(end - begin for begin, end in parts) == outcome.completed_ns - start_ns


def test_rows_say_who_sent_what_where(three_nodes: Any, step: Any) -> None:
    outcome, _ = run(three_nodes, [step("device1", 0, 2), step("edge1", 2, 3), step("cloud1", 3, 5, "int8")])
    told = [(h["kind"], h["src_node"], h["dst_node"], h["direction"], h["stage"]) for h in outcome.hops]
    assert told == [
        ("compute", "device1", "device1", "local", "0:2"), ("transfer", "device1", "edge1", "up", "2:3"),
        ("compute", "edge1", "edge1", "local", "2:3"), ("transfer", "edge1", "cloud1", "up", "3:5"),
        ("compute", "cloud1", "cloud1", "local", "3:5"), ("transfer", "cloud1", "edge1", "down", "3:5"),
        ("transfer", "edge1", "device1", "down", "2:3")]
    up, over = outcome.hops[1], outcome.hops[3]
    assert up["payload_bytes"] == outcome.request_bytes and 24_576 < up["payload_bytes"] < 24_576 + 1024
    assert 8192 // 4 < over["payload_bytes"] < 8192 // 4 + 1024
    assert outcome.hops[-1]["payload_bytes"] == outcome.response_bytes
    assert all(set(h) <= set(HOPS.names) for h in outcome.hops)


def test_early_exit_answers_at_the_edge_or_escalates(three_nodes: Any, step: Any, models: Any) -> None:
    async def go() -> list[PlanOutcome]:
        async with three_nodes() as nodes:
            plan = [step("edge1", 0, 3, threshold=0.8), step("cloud1", 3, 5)]
            return [await execute_plan("device1", nodes.device, nodes.client, plan, X[i:i + 1], request_id=str(i))
                    for i in range(20)]

    early = models["digits_branchy"].model.all_exits(torch.from_numpy(X[:20]))
    for i, outcome in enumerate(asyncio.run(go())):
        confidence, label = early["early"][i].softmax(0).max(0)
        fires = bool(confidence >= 0.8)
        assert (outcome.exit_id, outcome.final_node) == (("early", "edge1") if fires else ("final", "cloud1"))
        assert len(outcome.hops) == (3 if fires else 6)
        if fires:
            assert outcome.prediction == label and outcome.exit_confidence == pytest.approx(float(confidence), abs=1e-5)
        else:
            assert outcome.prediction == early["final"][i].argmax()


def test_a_weak_model_in_front_of_a_strong_one(three_nodes: Any, step: Any) -> None:
    """The second step begins anew with the request's input, unless the first one's last exit was sure."""
    sure, _ = run(three_nodes, [step("edge1", 0, 5, threshold=0.0), step("cloud1", 0, 5)])
    unsure, _ = run(three_nodes, [step("edge1", 0, 5, threshold=1.1), step("cloud1", 0, 5)])
    assert (sure.final_node, sure.exit_id) == ("edge1", "early")
    assert (unsure.final_node, unsure.exit_id) == ("cloud1", "final")
    assert unsure.hops[2]["payload_bytes"] > 16_384  # the frame, not the logits


def test_fallback_answers_when_the_remote_node_does_not(three_nodes: Any, step: Any) -> None:
    local = [step("device1", 0, 3, threshold=0, kind="always")]
    outcome, _ = run(three_nodes, [step("device1", 0, 2), step("mars", 2, 5)], fallback=local)
    assert (outcome.status, outcome.error_type, outcome.remote_error) == ("ok", None, "unknown_node")
    assert outcome.used_fallback and outcome.exit_id == "early" and outcome.final_node == "device1"


def test_every_failure_has_a_status_and_a_type(three_nodes: Any, step: Any) -> None:
    async def go() -> dict[str, PlanOutcome]:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)

        async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HELO\r\n\r\n")
            await writer.drain()

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

        found = {}
        async with three_nodes() as nodes:
            for name, handler in (("silent", silent), ("rude", rude), ("cut", cut)):
                server = await asyncio.start_server(handler, "127.0.0.1", 0)
                nodes.client.peers[name] = server.sockets[0].getsockname()
            nodes.client.peers["shut"] = ("127.0.0.1", 1)
            for name in ("silent", "rude", "cut", "shut"):
                found[name] = await execute_plan("device1", nodes.device, nodes.client, [step(name, 0, 5)], X[:1],
                                                 request_id=name, timeout_s=0.3)
            model = [{**step("edge1", 0, 5), "model": "nope"}]
            found["model"] = await execute_plan("device1", nodes.device, nodes.client, model, X[:1], request_id="m")
            over = [step("edge1", 0, 6)]
            found["range"] = await execute_plan("device1", nodes.device, nodes.client, over, X[:1], request_id="r")
            behind = [step("edge1", 0, 2), step("moon", 2, 5)]
            found["behind"] = await execute_plan("device1", nodes.device, nodes.client, behind, X[:1], request_id="b")
            short = [step("edge1", 0, 2)]
            found["short"] = await execute_plan("device1", nodes.device, nodes.client, short, X[:1], request_id="s")
            again = await execute_plan("device1", nodes.device, nodes.client, [step("edge1", 0, 5)], X[:1], request_id="a")
            assert again.status == "ok"  # none of it hurt the node
        return found

    found = asyncio.run(go())
    assert {name: o.status for name, o in found.items()} == dict.fromkeys(found, "failed")
    assert {name: o.error_type for name, o in found.items()} == {
        "silent": "timeout", "rude": "bad_response", "cut": "connection_lost", "shut": "refused",
        "model": "unknown_model", "range": "bad_request", "behind": "unknown_node", "short": "bad_request"}


def test_retries_share_the_time_and_are_counted(three_nodes: Any, step: Any) -> None:
    async def go() -> tuple[PlanOutcome, int]:
        calls = 0

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            await asyncio.sleep(30)

        async with three_nodes() as nodes:
            server = await asyncio.start_server(silent, "127.0.0.1", 0)
            nodes.client.peers["silent"] = server.sockets[0].getsockname()
            return await execute_plan("device1", nodes.device, nodes.client, [step("silent", 0, 5)], X[:1],
                                      request_id="r", timeout_s=0.6, retries=2), calls

    outcome, calls = asyncio.run(go())
    assert (outcome.status, outcome.error_type, calls, len(outcome.hops)) == ("failed", "timeout", 3, 3)


@pytest.mark.parametrize("change", [{"start": 3}, {"stop": 0}, {"codec": "mp3"}, {"exit": {"kind": "luck"}},
                                    {"node": ""}, {"extra": 1}, {"start": "0"}, {"model": None}])
def test_plans_that_cannot_be_are_refused_before_anything_is_sent(three_nodes: Any, step: Any, change: Any) -> None:
    plan = [step("device1", 0, 2), {**step("edge1", 2, 5), **change}]
    with pytest.raises(PlanError):
        run(three_nodes, plan)
