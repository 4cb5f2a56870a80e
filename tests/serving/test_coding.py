"""Codecs on a node: bytes in the rows are bytes on the wire, slow codecs leave the event loop free, instants still tile."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from testbed.inference.codecs import CODECS, Codec, Encoded, Registry
from testbed.inference.compute import REAL, ComputeProfile
from testbed.inference.data import load_dataset
from testbed.serving.client import Answer
from testbed.serving.coding import INLINE_BYTES, Coder
from testbed.serving.execute import PlanOutcome, execute_plan
from testbed.serving.protocol import HEADER_LENGTH

X = load_dataset("digits").x[:1]
CATALOGUE = Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml"


def exchange(three_nodes: Any, plan: list[dict[str, Any]], coder: Coder | None = None) -> tuple[PlanOutcome, list[tuple[bytes, int]], int]:
    """Outcome of a plan, every request body that the device sent with the length of its JSON header, and the start."""
    sent: list[tuple[bytes, int]] = []

    async def go() -> tuple[PlanOutcome, int]:
        async with three_nodes(coder=coder) as nodes:
            request = nodes.client.request

            async def watched(node: str, method: str, path: str, body: bytes = b"",
                              headers: Mapping[str, str] | None = None, **rest: Any) -> Answer:
                sent.append((body, int((headers or {})[HEADER_LENGTH])))
                return await request(node, method, path, body, headers, **rest)

            nodes.client.request = watched
            start_ns = time.monotonic_ns()
            return await execute_plan("device1", nodes.device, nodes.client, plan, X, request_id="r1", start_ns=start_ns,
                                      coder=coder), start_ns

    outcome, start_ns = asyncio.run(go())
    return outcome, sent, start_ns


@pytest.mark.parametrize(("cut", "name"), [(3, "raw"), (3, "fp16"), (3, "int8"), (3, "int8-channel"), (3, "fp16+lz4"),
                                           (3, "int8-channel+zstd"), (0, "uint8"), (0, "uint8+zlib"), (0, "jpeg-30"),
                                           (0, "jpeg-progressive"), (0, "webp"), (0, "png")])
def test_bytes_in_the_rows_are_bytes_on_the_wire(three_nodes: Any, step: Any, models: Any, cut: int, name: str) -> None:
    """payload_bytes = the HTTP body = its JSON header + the codec's bytes; and the answer is that of the decoded tensor."""
    plan = [step("device1", 0, cut), step("edge1", cut, 5, name)] if cut else [step("edge1", 0, 5, name)]
    outcome, sent, start_ns = exchange(three_nodes, plan)
    assert outcome.status == "ok", outcome.error
    model = models["digits_branchy"].model
    with torch.inference_mode():
        tensor = model.run(torch.from_numpy(X), 0, cut)
        encoded = CODECS[name].encode(tensor.numpy())
        decoded = torch.from_numpy(CODECS[name].decode(encoded.arrays, encoded.params))
        expected = model.run(decoded, cut, 5).numpy()
    (body, header), = sent
    up = next(h for h in outcome.hops if h["kind"] == "transfer" and h["src_node"] == "device1")
    assert up["payload_bytes"] == outcome.request_bytes == len(body) == header + encoded.size_bytes
    assert outcome.logits is not None and np.allclose(outcome.logits, expected, atol=1e-4)
    ends = [t for hop in outcome.hops for t in (
        (hop["encode_start_ns"], hop["encode_end_ns"], hop["send_start_ns"], hop["recv_last_ns"]) if hop["kind"] == "transfer"
        else (hop["queue_start_ns"], hop["compute_start_ns"], hop["compute_end_ns"]))]
    assert ends == sorted(ends) and ends[0] == start_ns and ends[-1] == outcome.completed_ns  # end to end, forwards
    for before, after in itertools.pairwise(outcome.hops):
        end = before["recv_last_ns"] if before["kind"] == "transfer" else before["compute_end_ns"]
        assert end == (after["encode_start_ns"] if after["kind"] == "transfer" else after["queue_start_ns"])


def test_a_learned_codec_travels(three_nodes: Any, step: Any, models: Any) -> None:
    registry = Registry(CATALOGUE)
    learned = registry.learned("bottleneck:digits_branchy@1")
    for name in (learned.name, f"{learned.name}+zstd"):
        outcome, sent, _ = exchange(three_nodes, [step("device1", 0, 1), step("edge1", 1, 5, name)], Coder(registry))
        assert outcome.status == "ok", outcome.error
        model = models["digits_branchy"].model
        with torch.inference_mode():
            encoded = registry[name].encode(model.run(torch.from_numpy(X), 0, 1).numpy())
            expected = model.run(torch.from_numpy(registry[name].decode(encoded.arrays, encoded.params)), 1, 5).numpy()
        (body, header), = sent
        assert len(body) - header == encoded.size_bytes
        assert (encoded.size_bytes == learned.info.size_bytes) == ("+" not in name)
        assert outcome.logits is not None and np.allclose(outcome.logits, expected, atol=1e-3)


@pytest.mark.parametrize(("cut", "name", "message"), [
    (0, "bottleneck:digits_branchy@1", "no such codec"), (2, "jpeg", "encodes frames of shape")])
def test_a_codec_that_cannot_be_used_is_a_status(three_nodes: Any, step: Any, cut: int, name: str, message: str) -> None:
    plan = [step("device1", 0, cut), step("edge1", cut, 5, name)] if cut else [step("edge1", 0, 5, name)]
    outcome, sent, _ = exchange(three_nodes, plan)
    assert (outcome.status, outcome.error_type, sent) == ("failed", "bad_request", [])
    assert message in str(outcome.error)


class Busy(Codec):
    """float32 as it is, after `work`."""

    description = rate = bound = "-"

    def __init__(self, name: str, slow: bool, work: Any) -> None:
        self.name, self.slow, self._work = name, slow, work

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        self._work()
        return Encoded([array])

    def decode(self, arrays: Sequence[Any], params: Mapping[str, Any]) -> NDArray[np.float32]:
        self._work()
        return np.asarray(arrays[0])

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return 0.0


class Only(Registry):
    """A registry of these codecs."""

    def __init__(self, *codecs: Codec) -> None:
        super().__init__()
        self._only = {c.name: c for c in codecs}

    def _find(self, name: str) -> Codec | None:
        return self._only.get(name)


def test_a_slow_codec_leaves_the_event_loop_free_and_takes_turns() -> None:
    spans: list[tuple[float, float]] = []

    def work() -> None:
        begin = time.monotonic()
        time.sleep(0.15)
        spans.append((begin, time.monotonic()))

    async def go() -> tuple[int, int]:
        coder, ticks = Coder(Only(Busy("slow", True, work), Busy("quick", False, lambda: None))), 0
        waiting = [asyncio.ensure_future(coder.encode("slow", X)), asyncio.ensure_future(coder.decode("slow", [X], {}))]
        during = 0
        while not all(w.done() for w in waiting):
            await asyncio.sleep(0.01)
            await coder.encode("quick", X)  # does not wait behind the slow ones
            ticks += 1
            during += not waiting[0].done()
        coder.close()
        return ticks, during

    ticks, during = asyncio.run(go())
    assert ticks >= 4 and during >= 2
    (_, first_end), (second_begin, _) = spans
    assert first_end <= second_begin  # one thread: first come, first served


def test_large_tensors_go_to_the_thread_whatever_the_codec() -> None:
    import threading

    seen: list[str] = []
    codecs = Only(Busy("quick", False, lambda: seen.append(threading.current_thread().name)))

    async def go() -> None:
        coder = Coder(codecs)
        for size in (INLINE_BYTES // 4 - 1, INLINE_BYTES // 4):
            await coder.encode("quick", np.zeros(size, np.float32))
        coder.close()

    asyncio.run(go())
    assert seen[0] == threading.main_thread().name and seen[1].startswith("codec")


@pytest.mark.parametrize("slowdown", [None, 6.0])
def test_a_profile_holds_slow_codecs(slowdown: float | None) -> None:
    """The hold is `slowdown` times the processor time that the codec took."""
    used: list[int] = []

    def work() -> None:
        begin_ns = time.thread_time_ns()
        while time.thread_time_ns() - begin_ns < 20_000_000:
            pass
        used.append(time.thread_time_ns() - begin_ns)

    async def go() -> float:
        coder = Coder(Only(Busy("slow", True, work)), REAL if slowdown is None else ComputeProfile("slower", "test", slowdown))
        begin = time.monotonic()
        await coder.encode("slow", X)
        coder.close()
        return time.monotonic() - begin

    assert asyncio.run(go()) >= used[0] / 1e9 * (slowdown or 1.0)
