"""Fetching public trace sets: pinned, checked against their digest, never half written."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from testbed.errors import InputError, MissingToolError
from testbed.traces.catalogue import HOST, SETS, PublicFile, PublicSet

MAX_BYTES = 64 * 2**20
TIMEOUT_S = 30


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
            _store(path, fetch(item, host))
            say(f"{path}: fetched, SHA-256 agrees")
        done.append(path)
    return done


def fetch(item: PublicFile, host: str = HOST) -> bytes:
    """The bytes of one file, checked."""
    url = item.url(host)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            raw: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise InputError(
            f"the server answered {error.code} {error.reason}",
            file=url,
            remedy="the repository may have moved; name another copy with --mirror",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise MissingToolError(
            f"cannot reach {url} ({reason})",
            remedy="`get` needs the internet; without it, copy the file by hand, or name a mirror "
            "with --mirror, or use the synthetic traces in traces/",
        ) from None
    found = hashlib.sha256(raw).hexdigest()
    if found != item.sha256:
        raise InputError(
            "is not the file we know: its SHA-256 differs",
            file=url,
            value=found,
            remedy=f"expected {item.sha256}; nothing was kept",
        )
    return raw


def _store(path: Path, raw: bytes) -> None:
    """Write beside, then rename: an interrupted run leaves no half file under the real name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(raw)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"cannot be written: {error}", file=path) from None
