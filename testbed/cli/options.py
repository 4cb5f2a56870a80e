"""Options that several commands share: `--set key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from testbed.errors import InputError


def parse_settings(settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Split `--set` options into overrides (one value) and sweep axes (several, by commas). Raises InputError.

    `["load.rate_per_s=1,2", "seed=3"]` -> `({"seed": 3}, {"load.rate_per_s": [1, 2]})`
    """
    overrides: dict[str, Any] = {}
    sweep: dict[str, list[Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise InputError("is not key=value", key="--set", value=setting,
                             remedy="write for example --set load.rate_per_s=2 or --set load.rate_per_s=1,2,4")
        try:
            # a bracketed value is YAML as it stands; otherwise commas separate the values of a sweep
            values = [yaml.safe_load(text)] if text[0] in "[{" else [yaml.safe_load(v) for v in text.split(",")]
        except yaml.YAMLError as error:
            raise InputError(f"has a value that is not YAML ({str(error).splitlines()[0]})", key="--set", value=setting,
                             remedy="quote the value") from None
        if len(values) == 1:
            overrides[key.strip()] = values[0]
        else:
            sweep[key.strip()] = values
    return overrides, sweep
