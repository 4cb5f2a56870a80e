"""A user's own class, named in a file that people write as `file.py:Class`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from testbed.errors import InputError


def load_user_class(name: str, base: Any, kind: str, key: str) -> Any:
    """The class that `file.py:Class` names, derived from `base`; `kind` is what messages call it. Raises InputError."""
    file, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"testbed_user_{kind}_{Path(file).stem}", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise InputError(f"there is no such {kind} file", key=key, value=file, remedy="check the path")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"cannot be loaded: {type(error).__name__}: {error}", file=file, key=key,
                         remedy="run the file with python to see the whole error") from error
    cls = getattr(module, attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        place = ".".join(base.__module__.split(".")[:2])
        raise InputError(f"has no class {attribute} derived from {place}.{base.__name__}", file=file, key=key, value=attribute,
                         remedy=f"derive your class from {base.__name__}")
    return cls
