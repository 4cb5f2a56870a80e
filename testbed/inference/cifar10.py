"""CIFAR-10's Python batches, read without unpickling: each file must be the published one, whose layout is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError, MissingToolError
from testbed.schema.data import data_folders

FOLDER = "cifar-10-batches-py"
ABOUT = "60,000 colour photographs of 32x32 pixels in ten classes"
CITATION = "Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009"
LICENCE = "none stated; the page asks for the citation"
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"  # as published on the data set's page
ARCHIVE_BYTES = 170_498_071
PER_BATCH = 10_000
_GET = "run `testbed data get cifar10`, or set TESTBED_DATA to the folder that holds cifar-10-batches-py"


@dataclass(frozen=True)
class BatchFile:
    """A published batch: size, md5, and where in the file its pixels begin."""

    size_bytes: int
    md5: str
    pixels_at: int


BATCHES: dict[str, BatchFile] = {
    "data_batch_1": BatchFile(31035704, "c99cafc152244af753f735de768cd75f", 20218),
    "data_batch_2": BatchFile(31035320, "d4bba439e000b95fd0a9bffe97cbabec", 20218),
    "data_batch_3": BatchFile(31035999, "54ebc095f3ab1f0389bbae665268c751", 20218),
    "data_batch_4": BatchFile(31035696, "634d18415352ddfa80567beed471001a", 20218),
    "data_batch_5": BatchFile(31035623, "482c414d41f54cd18b22e5b47cb7c3cb", 20218),
    "test_batch": BatchFile(31035526, "40351d587109b95175f43aff81a1287e", 20217),
}
TRAINING = tuple(name for name in BATCHES if name != "test_batch")


def find_cifar10() -> Path:
    """The folder of the batches. Raises MissingToolError when none of the data folders has it."""
    folders = [root / FOLDER for root in data_folders()]
    for folder in folders:
        if any((folder / name).is_file() for name in BATCHES):
            return folder
    raise MissingToolError(f"CIFAR-10 is not here (looked for {', '.join(map(str, folders))})", remedy=_GET)


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (10000, 3, 32, 32), memory-mapped, and labels (10000,) of one batch.

    Nothing is unpickled, so nothing in the file can be executed: size and md5 must be those of the published file, and
    then its pixels and labels stand at known places. Raises InputError for any other file.
    """
    known = BATCHES[path.name]
    check_batch(path)
    with open(path, "rb") as stream:
        head = stream.read(known.pixels_at)
    # pickle's list of small integers: `K` and a byte each, in runs of 1000 between `(` and `e`
    text = head[head.index(b"labels"):head.index(b"U\x04data")]
    pairs = np.frombuffer(text[text.index(b"(K"):].translate(None, b"(e"), np.uint8).reshape(-1, 2)
    if len(pairs) != PER_BATCH or not (pairs[:, 0] == ord("K")).all() or pairs[:, 1].max() > 9:
        raise AssertionError(f"{path}: a file of the published md5 has the published layout")
    pixels = np.memmap(path, np.uint8, "r", known.pixels_at, (PER_BATCH, 3, 32, 32))
    return pixels, pairs[:, 1].astype(np.int64)


def check_batch(path: Path) -> None:
    """Raise InputError unless `path` is the published batch of that name, byte for byte."""
    known = BATCHES[path.name]
    try:
        stat = path.stat()
        if stat.st_size != known.size_bytes:
            raise InputError("is not the published CIFAR-10 batch: its size differs", file=path, value=stat.st_size,
                             remedy=f"it has {known.size_bytes} bytes; {_GET}")
        found = file_digest(path, "md5", stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy=_GET) from None
    if found != known.md5:
        raise InputError("is not the published CIFAR-10 batch: its md5 differs; nothing in it was executed", file=path,
                         value=found, remedy=f"expected {known.md5}; {_GET}")


@lru_cache(maxsize=64)
def file_digest(path: Path, algorithm: str, mtime_ns: int) -> str:
    """Digest of a file's content, computed once per process while its modification time is `mtime_ns`."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
