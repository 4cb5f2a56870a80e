"""CIFAR-10: equal to what pickle would give, never unpickled, lazily in memory; and fetched whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from testbed.cli import main
from testbed.errors import InputError, MissingToolError
from testbed.inference import cifar10
from testbed.inference.cifar10 import BATCHES, FOLDER, BatchFile, find_cifar10, read_batch
from testbed.inference.data import load_dataset
from testbed.inference.get_data import get_cifar10


@pytest.fixture
def batches(testbed_data: Path) -> Path:
    folder = testbed_data / FOLDER
    if not (folder / "test_batch").is_file():
        pytest.skip(f"CIFAR-10 is not in {testbed_data}")
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TESTBED_DATA and the cache are empty folders."""
    monkeypatch.setenv("TESTBED_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data" / FOLDER).mkdir(parents=True)
    return tmp_path


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_batch", "data_batch_3"])
def test_raw_parsing_equals_unpickling(batches: Path, name: str) -> None:
    with open(batches / name, "rb") as stream:
        oracle = pickle.load(stream, encoding="bytes")
    frames, labels = read_batch(batches / name)
    assert np.array_equal(frames.reshape(-1, 3072), oracle[b"data"]) and labels.tolist() == oracle[b"labels"]


def test_splits_are_the_published_ones(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_DATA", str(batches.parent))
    splits = {name: load_dataset("cifar10", name) for name in ("train", "calibration", "test")}
    assert [len(s) for s in splits.values()] == [45_000, 5_000, 10_000]
    seen = {hashlib.md5(frame.tobytes()).digest() for s in splits.values() for frame in s.frames}
    assert len(seen) == 60_000  # no image twice, so none in two splits
    train = np.concatenate([splits["train"].frames, splits["calibration"].frames])
    assert (train.mean((0, 2, 3)) / 255).round(4).tolist() == [0.4914, 0.4822, 0.4465]  # the known channel means
    assert np.bincount(splits["test"].y).tolist() == [1000] * 10


def test_the_test_split_stays_in_the_file_and_samples_are_floats(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_DATA", str(batches.parent))
    data = load_dataset("cifar10")
    assert isinstance(data.frames, np.memmap) and data.frames.dtype == np.uint8
    sample = data.sample(17)
    assert sample.shape == (1, 3, 32, 32) and sample.dtype == np.float32
    assert np.array_equal(np.rint(sample[0] * 255), data.frames[17]) and sample.max() <= 1


# ---- files that are not the published ones ---------------------------------------------------------------------------


class _Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_never_runs(nowhere: Path) -> None:
    """The file has even the right size; loading it with pickle does create the witness."""
    witness, file = nowhere / "witness", nowhere / "data" / FOLDER / "test_batch"
    content = pickle.dumps({b"data": _Attack(f"touch {witness}"), b"labels": []})
    file.write_bytes(content.ljust(BATCHES["test_batch"].size_bytes, b"\0"))
    with pytest.raises(InputError, match="md5 differs; nothing in it was executed"):
        load_dataset("cifar10")
    assert not witness.exists()
    pickle.loads(content)
    assert witness.exists(), "the attack works where a file is unpickled"


@pytest.mark.parametrize("size", [0, 5, 31035525])
def test_a_truncated_batch_is_refused(nowhere: Path, size: int) -> None:
    with open(nowhere / "data" / FOLDER / "test_batch", "wb") as stream:
        stream.truncate(size)
    with pytest.raises(InputError, match=r"test_batch: is not the published CIFAR-10 batch: its size differs.*data get"):
        load_dataset("cifar10")


def test_a_missing_batch_is_named(nowhere: Path) -> None:
    (nowhere / "data" / FOLDER / "data_batch_1").write_bytes(b"")
    with pytest.raises(InputError, match=r"test_batch: cannot be read \(No such file"):
        load_dataset("cifar10")


def test_without_the_data_the_remedy_names_the_command(nowhere: Path) -> None:
    with pytest.raises(MissingToolError, match=r"CIFAR-10 is not here.*testbed data get cifar10.*TESTBED_DATA"):
        load_dataset("cifar10")


def test_the_data_folder_comes_before_the_cache(nowhere: Path) -> None:
    cached = nowhere / "cache" / "testbed" / "data" / FOLDER
    cached.mkdir(parents=True)
    (cached / "test_batch").write_bytes(b"x")
    assert find_cifar10() == cached, "an empty folder is not the data set"
    (nowhere / "data" / FOLDER / "test_batch").write_bytes(b"x")
    assert find_cifar10() == nowhere / "data" / FOLDER


# ---- testbed data get ------------------------------------------------------------------------------------------------

FILES = {"data_batch_1": b"first" * 1000, "test_batch": b"test" * 1000}


def _archive(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in {**files, "../outside": b"escaped", "readme.html": b"."}.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return gzip.compress(plain.getvalue(), mtime=0)


class _Server(BaseHTTPRequestHandler):
    content: bytes = b""
    cut: int | None = None
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: self.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Server]]:
    """A server of a small archive; the testbed believes that its two batches are the published ones."""
    small = {name: BatchFile(len(c), hashlib.md5(c).hexdigest(), 0) for name, c in FILES.items()}
    for module in ("cifar10", "get_data"):
        monkeypatch.setattr(f"testbed.inference.{module}.BATCHES", small)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(_Server):
        content = _archive(FILES)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        Handler.url = f"http://127.0.0.1:{http.server_port}/cifar-10-python.tar.gz"  # type: ignore[attr-defined]
        yield Handler
        http.shutdown()
        thread.join()


def _get(server: type[_Server], folder: Path, content: bytes | None = None) -> Path | None:
    md5 = hashlib.md5(server.content if content is None else content).hexdigest()
    return get_cifar10(folder, server.url, md5=md5, max_bytes=10**6)  # type: ignore[attr-defined]


def test_only_the_batches_are_unpacked_and_once(server: type[_Server], tmp_path: Path) -> None:
    assert _get(server, tmp_path / "into") == tmp_path / "into" / FOLDER
    assert {p.name: p.read_bytes() for p in (tmp_path / "into" / FOLDER).iterdir()} == FILES
    assert [p.name for p in (tmp_path / "into").iterdir()] == [FOLDER] and not (tmp_path / "outside").exists()
    assert _get(server, tmp_path / "into") is None and server.asked == 1, "nothing is fetched again"
    (tmp_path / "into" / FOLDER / "test_batch").write_bytes(b"damaged")
    assert _get(server, tmp_path / "into") is not None
    assert (tmp_path / "into" / FOLDER / "test_batch").read_bytes() == FILES["test_batch"]


def test_another_archive_is_not_kept(server: type[_Server], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its md5 differs.*nothing was kept"):
        _get(server, tmp_path, content=b"another")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("files", "kind", "message"), [
    ({"data_batch_1": FILES["data_batch_1"]}, tarfile.REGTYPE, "not the archive of CIFAR-10.*test_batch"),
    ({**FILES, "test_batch": b"other"}, tarfile.REGTYPE, "its size differs"),
    (FILES, tarfile.SYMTYPE, "not (a file in the archive|the archive of CIFAR-10)"),
])
def test_an_archive_with_the_wrong_members(server: type[_Server], tmp_path: Path, files: dict[str, bytes], kind: bytes,
                                           message: str) -> None:
    server.content = _archive(files, kind)
    with pytest.raises(InputError, match=message):
        _get(server, tmp_path)
    assert not (tmp_path / FOLDER / "test_batch").exists()


def test_a_connection_that_breaks_leaves_nothing_and_can_be_tried_again(server: type[_Server], tmp_path: Path) -> None:
    server.cut = 100
    with pytest.raises(MissingToolError, match=r"(ended after 100 of|cannot reach).*TESTBED_DATA"):
        _get(server, tmp_path)
    assert not list(tmp_path.iterdir())
    server.cut = None
    assert _get(server, tmp_path) is not None


def test_the_command_offline_names_the_manual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["data", "get", "cifar10", "--into", str(tmp_path), "--url", "http://127.0.0.1:1/a.tar.gz"]) == 3
    printed = capsys.readouterr()
    assert "licence:" in printed.out and "cite:" in printed.out
    assert "cannot reach http://127.0.0.1:1/a.tar.gz" in printed.err and "--url file:///PATH" in printed.err


def test_the_command_takes_an_archive_from_a_file(server: type[_Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(get_cifar10, "__kwdefaults__", {**(get_cifar10.__kwdefaults__ or {}),
                                                        "md5": hashlib.md5(server.content).hexdigest()})
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(server.content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["data", "get", "cifar10", "--url", archive.as_uri()]) == 0
    assert "every md5 agrees" in capsys.readouterr().out
    monkeypatch.setenv("TESTBED_DATA", str(tmp_path / "none"))
    assert cifar10.find_cifar10() == tmp_path / "cache" / "testbed" / "data" / FOLDER
    shutil.rmtree(tmp_path / "cache")


def test_there_is_nothing_else_to_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "get", "imagenet"]) == 2 and "use cifar10" in capsys.readouterr().err
