"""Fetching public files: pinned, checked against their digest, never half written."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from testbed.errors import InputError, MissingToolError
from testbed.traces.catalogue import HOST, SETS, PublicSet

MAX_BYTES = 64 * 2**20
TIMEOUT_S = 30
_CHUNK_BYTES = 256 * 2**10
_REMEDY = ("`get` needs the internet; without it, copy the file by hand, or name a mirror with --mirror, or use the synthetic "
           "traces in traces/")


def find_set(name: str) -> PublicSet:
    """The public set of that name."""
    if name not in SETS:
        raise InputError("unknown trace set", key="set", value=name, remedy=f"the sets are {', '.join(SETS)}")
    return SETS[name]


def fetch_set(
    chosen: PublicSet,
    folder: Path,
    *,
    only: str = "*",
    host: str = HOST,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Put the files of a set that match `only` into folder/set-name; those already there and right are kept.

    Raises `MissingToolError` when the network does not answer, `InputError` when a file is not the one we
    know.
    """
    files = [item for item in chosen.files if fnmatch(item.name, only)]
    if not files:
        raise InputError(
            f"no file of {chosen.name} matches",
            key="only",
            value=only,
            remedy=f"its files are {', '.join(item.name for item in chosen.files[:6])}, ...",
        )
    done = []
    for item in files:
        path = folder / chosen.name / item.name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == item.sha256:
            say(f"{path}: already there")
        else:
            download(item.url(host), path, "sha256", item.sha256, max_bytes=MAX_BYTES, offline=_REMEDY,
                     moved="the repository may have moved; name another copy with --mirror")
            say(f"{path}: fetched, SHA-256 agrees")
        done.append(path)
    return done


def download(url: str, path: Path, algorithm: str, digest: str, *, max_bytes: int, offline: str, moved: str,
             progress: Callable[[int, int | None], None] = lambda done, of: None) -> None:
    """Fetch `url` into `path`, which appears only when its digest is right: an interrupted run leaves nothing.

    Parameters
    ----------
    algorithm, digest: `sha256` or `md5`, and the hexadecimal digest that the file must have.
    max_bytes: what is longer is refused.
    offline, moved: what to do when the network does not answer, and when the server refuses.
    progress: called with the bytes that have come, and how many the server announced (None when it did not).

    Raises MissingToolError when the network does not answer, InputError when the server refuses, the file is not the
    one we know, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot be written: {error}", file=path) from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            found = _receive(url, stream, algorithm, max_bytes, offline, moved, progress)
        if found != digest:
            raise InputError(f"is not the file we know: its {_SPELT[algorithm]} differs", file=url, value=found,
                             remedy=f"expected {digest}; nothing was kept")
        try:
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError as error:
            raise InputError(f"cannot be written: {error}", file=path) from None
    finally:
        temporary.unlink(missing_ok=True)


_SPELT = {"sha256": "SHA-256", "md5": "md5"}


def _receive(url: str, stream: BinaryIO, algorithm: str, max_bytes: int, offline: str, moved: str,
             progress: Callable[[int, int | None], None]) -> str:
    """Copy what the server sends into `stream`; returns its digest."""
    total, done = hashlib.new(algorithm, usedforsecurity=False), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            announced = answer.headers.get("Content-Length", "")
            size = int(announced) if announced.isdigit() else None
            while chunk := answer.read(min(_CHUNK_BYTES, max_bytes + 1 - done)):
                done += len(chunk)
                if done > max_bytes:
                    raise InputError(f"is longer than {max_bytes} bytes: not the file we know", file=url,
                                     remedy=f"{moved}; nothing was kept")
                total.update(chunk)
                _write(stream, chunk)
                progress(done, size)
    except urllib.error.HTTPError as error:
        raise InputError(f"the server answered {error.code} {error.reason}", file=url, remedy=moved) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MissingToolError(f"cannot reach {url} ({getattr(error, 'reason', error)})", remedy=offline) from None
    if size is not None and done != size:
        raise MissingToolError(f"the connection to {url} ended after {done} of {size} bytes", remedy=offline)
    return total.hexdigest()


def _write(stream: BinaryIO, chunk: bytes) -> None:
    try:
        stream.write(chunk)
    except OSError as error:
        raise InputError(f"cannot be written: {error}", file=getattr(stream, "name", None),
                         remedy="make room on the disk, or choose another folder") from None
