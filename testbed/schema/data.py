"""Where data that is not shipped lies: `$TESTBED_DATA`, `shared/data` beside the project, or the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.errors import InputError

_VARIABLE = "${TESTBED_DATA}"


def data_root(start: Path) -> Path | None:
    """The data folder: `$TESTBED_DATA`, else `shared/data` beside a parent folder of `start`, else None."""
    named = os.environ.get("TESTBED_DATA")
    if named:
        return Path(named)
    for parent in start.resolve().parents:
        if (parent / "shared" / "data").is_dir():
            return parent / "shared" / "data"
    return None


def cache_root() -> Path:
    """Where `testbed data get` puts data sets: `$XDG_CACHE_HOME/testbed/data`, `~/.cache/testbed/data` by default."""
    return cache_folder("data")


def data_folders() -> list[Path]:
    """Folders that may hold data sets, first come first served: that of `data_root`, then the cache."""
    root = data_root(Path.cwd() / "any")
    return [*([root] if root is not None else []), cache_root()]


def expand_data_path(name: str, origin: Path) -> str:
    """Replace `${TESTBED_DATA}`. Raises InputError when the data are not there, with the way to get them."""
    if _VARIABLE not in name:
        return name
    root = data_root(origin)
    if root is None or not root.is_dir():
        raise InputError("needs recorded data that are not shipped", file=origin, value=name,
                         remedy="run `testbed traces get` and set TESTBED_DATA to the folder it names")
    return name.replace(_VARIABLE, str(root))


def cache_folder(name: str) -> Path:
    """The folder for what can be made again: `$XDG_CACHE_HOME/testbed/<name>`, else `~/.cache/testbed/<name>`."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(named) if named.startswith("/") else Path.home() / ".cache"
    return root / "testbed" / name
