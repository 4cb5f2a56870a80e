"""A stock client of the Open Inference Protocol (tritonclient, test only) gets right answers from a running node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from testbed.inference.data import load_dataset

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed (pip install .[test])")


@pytest.mark.parametrize("binary", [True, False])
def test_stock_client_gets_right_class_scores(three_nodes: Any, binary: bool) -> None:
    data = load_dataset("digits")

    def ask(port: int) -> None:  # in a thread: this client blocks
        client = tritonclient.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits_branchy")
        assert client.get_model_metadata("digits_branchy")["inputs"][0]["shape"] == [-1, 1, 64, 64]
        batch = data.x[:8]
        tensor = tritonclient.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch, binary_data=binary)
        wanted = [tritonclient.InferRequestedOutput("probabilities", binary_data=binary)]
        result = client.infer("digits_branchy", [tensor], outputs=wanted, request_id="stock-1")
        assert result.get_response()["id"] == "stock-1"
        assert (result.as_numpy("probabilities").argmax(1) == data.y[:8]).mean() >= 7 / 8
        everything = client.infer("digits_branchy", [tensor], request_compression_algorithm="gzip")
        assert everything.as_numpy("logits").shape == (8, 10)
        with pytest.raises(Exception, match="is not on this node"):
            client.infer("nope", [tensor])
        client.close()

    async def go() -> None:
        async with three_nodes() as nodes:
            await asyncio.to_thread(ask, nodes.ports["edge1"])

    asyncio.run(go())
