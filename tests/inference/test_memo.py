"""Memoised outputs: what is looked up is what would be computed; the store outlives writers, kills and damage."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import EmulationError
from testbed.inference.catalogue import LoadedModel, load_catalogue, load_model
from testbed.inference.codecs import codec
from testbed.inference.data import load_dataset
from testbed.inference.execution import TorchRun, run_step
from testbed.inference.exits import ExitRule
from testbed.inference.memo import MemoisedModel, MemoStore, Record, digest, make_room, model_key
from testbed.inference.staged import StagedModel

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")
M = "digits_branchy"
X = load_dataset("digits").x
RULES = [ExitRule(), ExitRule("always"), *(ExitRule("max_probability", t) for t in (0.0, 0.8, 0.999, 1.1)),
         ExitRule("entropy", 0.2)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(CATALOGUE, M)


def forbidden() -> StagedModel:
    raise AssertionError("torch was asked for, though everything is stored")


def model(folder: Path, loaded: LoadedModel, load: Callable[[], StagedModel] | None = None) -> MemoisedModel:
    return MemoisedModel(loaded.info, MemoStore.of(loaded.info, CATALOGUE.path, folder), load or (lambda: loaded.model))


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 3), (0, 4), (3, 5), (4, 5), (2, 3)])
def test_every_rule_is_served_as_it_would_be_computed(tmp_path: Path, loaded: LoadedModel, start: int, stop: int) -> None:
    inputs = [TorchRun(loaded.model, X[i:i + 1]) for i in range(8)]
    for run in inputs:
        for stage in range(start):
            run.advance(stage)
    tensors = [run.tensor() if start else X[i:i + 1] for i, run in enumerate(inputs)]
    for tensor in tensors:
        model(tmp_path, loaded).whole_step(tensor, start, stop)
    served = model(tmp_path, loaded, forbidden)
    for rule in RULES:
        if rule.kind == "always" and not any(start <= i < stop for i in loaded.info.exit_after):
            continue
        for tensor in tensors:
            for final_answers in (True, False):
                want = run_step(TorchRun(loaded.model, tensor), loaded.info, start, stop, rule, final_answers)
                got = served.step(tensor, start, stop, rule, final_answers)
                assert got.memo_hit and want.memo_hit is None
                assert (got.exit_id, got.stop, got.heads) == (want.exit_id, want.stop, want.heads)
                assert got.output.dtype == np.float32 and np.array_equal(got.output, want.output)  # to the last bit
    assert served.misses == 0


def test_what_a_lossy_codec_changed_is_another_input(tmp_path: Path, loaded: LoadedModel) -> None:
    memo = model(tmp_path, loaded)
    tensor = memo.whole_step(X[:1], 0, 3)
    memo.whole_step(tensor, 3, 5)
    int8 = codec("int8")
    encoded = int8.encode(tensor)
    changed = int8.decode(encoded.arrays, encoded.params)
    got = memo.step(changed, 3, 5, ExitRule(), True)
    assert not np.array_equal(changed, tensor) and got.memo_hit is False
    assert np.array_equal(got.output, run_step(TorchRun(loaded.model, changed), loaded.info, 3, 5, ExitRule(), True).output)
    assert memo.step(changed, 3, 5, ExitRule(), True).memo_hit  # and is stored from then on


def test_a_look_up_takes_less_than_300_us(tmp_path: Path, loaded: LoadedModel) -> None:
    """The fastest of many: what it costs, not what else runs here. Cut 1 has the largest tensor, 64 KB."""
    memo = model(tmp_path, loaded)
    memo.whole_step(X[:1], 0, 1)
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        assert memo.step(X[:1], 0, 1, ExitRule(), True).memo_hit
        times.append(time.perf_counter() - begin)
    assert min(times) < 300e-6


def test_a_store_belongs_to_weights_code_and_shape(tmp_path: Path, loaded: LoadedModel) -> None:
    info = loaded.info
    file = tmp_path / "mine.py"
    keys = {model_key(info, CATALOGUE.path), model_key(info.model_copy(update={"sha256": "0" * 64}), CATALOGUE.path)}
    for code in ("a = 1\n", "a = 2\n"):
        file.write_text(code)
        keys.add(model_key(info.model_copy(update={"builder": "mine.py:build"}), tmp_path / "catalogue.yaml"))
    assert len(keys) == 4
    assert model_key(info, CATALOGUE.path) in keys  # and it is the same every time


WRITER = """
import sys
from pathlib import Path
from testbed.inference.memo import MemoStore, Record, digest
import numpy as np
store, first, count = MemoStore(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
for i in range(first, first + count):
    x = np.full((1, 4096), i, np.float32)
    y = x + 1
    store.add(Record([(0, digest(x), digest(y), b"logits")], {digest(y): y.tobytes()}))
    print(i, flush=True)
"""


def writer(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first), str(count)], stdout=subprocess.PIPE, text=True)


def stored(store: MemoStore, i: int) -> bool:
    """Whether entry i of a WRITER is there, whole and right; damaged or half is an error, absent is not."""
    x = np.full((1, 4096), i, np.float32)
    row = store.stage(0, digest(x))
    if row is None:
        assert store.tensor(digest(x + 1)) is None, "a transaction was torn apart"
        return False
    assert row == (digest(x + 1), b"logits") and store.tensor(row[0]) == (x + 1).tobytes()
    return True


def test_several_processes_write_at_a_time(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "s.sqlite", first, 60) for first in (0, 30, 60)]  # overlapping
    assert [w.wait(120) for w in writers] == [0, 0, 0]
    store = MemoStore(tmp_path / "s.sqlite")
    assert all(stored(store, i) for i in range(120)) and not stored(store, 120)


def test_a_writer_that_is_killed_leaves_whole_entries(tmp_path: Path) -> None:
    process = writer(tmp_path / "s.sqlite", 0, 1_000_000)
    assert process.stdout is not None
    for _ in range(25):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    store = MemoStore(tmp_path / "s.sqlite")
    assert all(stored(store, i) for i in range(last + 1)), "what was acknowledged is there"
    assert [stored(store, i) for i in range(last + 1, last + 1000)] == sorted(
        (stored(store, i) for i in range(last + 1, last + 1000)), reverse=True), "and nothing in part, or out of order"
    assert store.repair() is False
    store.add(Record([(7, b"given", b"output", None)]))
    assert store.stage(7, b"given") == (b"output", None)


def test_a_damaged_tensor_is_computed_again_with_a_warning(tmp_path: Path, loaded: LoadedModel,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    memo = model(tmp_path, loaded)
    want = memo.whole_step(X[:1], 0, 3)
    with sqlite3.connect(memo.store.path) as connection:
        connection.execute("UPDATE tensors SET data = zeroblob(length(data))")
    again = model(tmp_path, loaded)
    with caplog.at_level(logging.WARNING, "testbed.memo"):
        got = again.step(X[:1], 0, 3, ExitRule(), True)
    assert got.memo_hit is False and np.array_equal(got.output, want) and "a tensor is damaged" in caplog.text
    assert model(tmp_path, loaded, forbidden).step(X[:1], 0, 3, ExitRule(), True).memo_hit  # mended


@pytest.mark.parametrize("column", ["output", "logits", "seal"])
def test_a_damaged_row_is_not_believed(tmp_path: Path, loaded: LoadedModel, column: str) -> None:
    memo = model(tmp_path, loaded)
    memo.whole_step(X[:1], 0, 5)
    with sqlite3.connect(memo.store.path) as connection:
        connection.execute(f"UPDATE stages SET {column} = x'00112233'")
    assert model(tmp_path, loaded).step(X[:1], 0, 5, ExitRule(), True).memo_hit is False


def test_a_file_that_is_no_store_answers_nothing_and_can_be_replaced(tmp_path: Path, loaded: LoadedModel,
                                                                    caplog: pytest.LogCaptureFixture) -> None:
    memo = model(tmp_path, loaded)
    memo.store.path.write_bytes(b"this was a database once" * 400)
    with caplog.at_level(logging.WARNING, "testbed.memo"):
        got = memo.step(X[:1], 0, 5, ExitRule(), True)  # a node answers all the same
    assert got.memo_hit is False and got.exit_id == "final" and "not a database" in caplog.text
    with pytest.raises(EmulationError, match="cannot be stored"):  # what fills the store must not go on
        memo.whole_step(X[:1], 0, 5)
    fresh = model(tmp_path, loaded)
    assert fresh.store.repair() and fresh.store.path.with_suffix(".broken").exists()
    fresh.whole_step(X[:1], 0, 5)
    assert fresh.step(X[:1], 0, 5, ExitRule(), True).memo_hit


def test_room_is_made_of_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for name, hours in (("oldest", 9), ("old", 5), ("older", 7), ("now", 0)):
        path = tmp_path / f"{name}.sqlite"
        path.write_bytes(bytes(1000))
        then = time.time() - 3600 * hours
        os.utime(path, (then, then))
    assert make_room(tmp_path, {tmp_path / "oldest.sqlite"}, limit_bytes=3000) == [tmp_path / "older.sqlite"]
    assert make_room(tmp_path, {tmp_path / "oldest.sqlite"}, limit_bytes=0) == [tmp_path / "old.sqlite"]
    assert sorted(p.stem for p in tmp_path.glob("*.sqlite")) == ["now", "oldest"]  # to be kept; in use a moment ago
