"""Fetching CIFAR-10: one archive, checked, from which only the known batches are taken."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from testbed.errors import InputError
from testbed.inference.cifar10 import ARCHIVE_BYTES, ARCHIVE_MD5, ARCHIVE_URL, BATCHES, FOLDER, check_batch
from testbed.traces.download import download

OFFLINE = ("without the internet, fetch cifar-10-python.tar.gz elsewhere and give it as --url file:///PATH, or unpack it by "
           "hand and set TESTBED_DATA to the folder that then holds cifar-10-batches-py")
MOVED = f"name another copy of the archive with --url (its md5 must be {ARCHIVE_MD5})"


def get_cifar10(folder: Path, url: str = ARCHIVE_URL, *, md5: str = ARCHIVE_MD5, max_bytes: int = ARCHIVE_BYTES,
                progress: Callable[[int, int | None], None] = lambda done, of: None) -> Path | None:
    """Put the six batches into folder/cifar-10-batches-py; returns it, or None when all of them are there and right.

    Files that are there and right are kept, others are replaced one by one, each at once. Raises MissingToolError when
    the network does not answer, InputError for an archive or batch that is not the published one.
    """
    target = folder / FOLDER
    missing = [name for name in BATCHES if not _is_right(target / name)]
    if not missing:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".get-")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=folder,
                         remedy="choose another folder with --into, and set TESTBED_DATA to it") from None
    with scratch as name:
        archive = Path(name) / "archive"
        download(url, archive, "md5", md5, max_bytes=max_bytes, offline=OFFLINE, moved=MOVED, progress=progress)
        _unpack(archive, missing, target)
    return target


def _is_right(path: Path) -> bool:
    try:
        check_batch(path)
    except InputError:
        return False
    return True


def _unpack(archive: Path, names: list[str], target: Path) -> None:
    """Take the named batches out of the archive: regular members only, and nothing but their bytes."""
    try:
        target.mkdir(exist_ok=True)
        with tarfile.open(archive, "r:gz") as tar:
            for name in names:
                source = tar.extractfile(f"{FOLDER}/{name}")
                if source is None:
                    raise InputError("is not a file in the archive", file=archive, key=name, remedy=MOVED)
                part = archive.with_name(name)
                with source, open(part, "wb") as stream:
                    while chunk := source.read(2**20):
                        stream.write(chunk)
                check_batch(part)
                part.replace(target / name)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise InputError(f"is not the archive of CIFAR-10 ({error})", file=archive, remedy=MOVED) from None
    except OSError as error:
        raise InputError(f"cannot be unpacked: {error}", file=target, remedy="make room on the disk, or choose --into") from None
