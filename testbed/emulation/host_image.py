"""The host-backed image: a root of a few empty folders, onto which this machine's interpreter is mounted
read-only.

For machines without a registry, and for development: the container runs the very Python, packages and source
of the host, at the same paths, without building or pulling anything.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import testbed
from testbed.emulation.container import Mount

_FOLDERS = ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp")
# without it, what asks for the name of user 0 (torch does) fails; nothing of the host's own file is shown
_FILES = {
    "etc/passwd": "root:x:0:0:root:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "hosts: files\npasswd: files\ngroup: files\n",
}


def links() -> dict[str, str]:
    """Merged-/usr links as they are on this machine (``bin -> usr/bin``)."""
    return {
        name: f"usr/{name}"
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
        if Path("/usr", name).is_dir()
    }


def make_root(folder: Path, mounts: list[Mount]) -> Path:
    """Write the root as a folder (Podman's ``--rootfs``), with mount points for ``mounts``."""
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, target in links().items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    for mount in mounts:
        point = folder / mount.target.relative_to("/")
        if point.exists():
            continue
        if mount.src.is_dir():
            point.mkdir(parents=True, exist_ok=True)
        else:
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
    return folder


def make_archive() -> bytes:
    """The same root as an archive (``docker import``); mount points are made by the engine."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
            archive.addfile(entry)
        for name, target in links().items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for name, text in _FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return stream.getvalue()


def host_mounts() -> list[Mount]:
    """What of this machine a host-backed container sees, all of it read-only."""
    wanted = [Path("/usr"), Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    # the environment, its interpreter when that is not the system's, and the package when it is installed
    # editable
    wanted += [Path(sys.prefix), Path(sys.base_prefix), Path(testbed.__file__).resolve().parent]
    mounts: list[Mount] = []
    for path in wanted:
        if path.exists() and not any(path.is_relative_to(mount.src) for mount in mounts):
            mounts.append(Mount(path))
    return mounts
