"""Quantities with units as people write them: `25ms`, `5mbit`, `200KB`, `1%`."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_NUMBER = re.compile(r"^\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([A-Za-zµ%/]*)\s*$", re.IGNORECASE)

DURATION_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
RATE_BPS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "bps": 1, "kbps": 10**3, "mbps": 10**6,
            "gbps": 10**9, "bit/s": 1, "kbit/s": 10**3, "mbit/s": 10**6, "gbit/s": 10**9}
SIZE_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _split(text: object, units: dict[str, float] | dict[str, int], example: str, what: str) -> float:
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"is not a {what}|write it with a unit, for example {example}")
    if isinstance(text, (int, float)):
        if text == 0:
            return 0.0
        raise ValueError(f"has no unit|write it with a unit, for example {example}")
    match = _NUMBER.match(text)
    if match is None:
        raise ValueError(f"is not a {what}|write it with a unit, for example {example}")
    number, unit = float(match[1]), match[2]
    if not unit and number == 0:
        return 0.0
    if not unit:
        raise ValueError(f"has no unit|write it with a unit, for example {example}")
    if unit.lower() not in units:
        raise ValueError(f"has the unknown unit {unit!r}|use one of {', '.join(units)}")
    value = number * units[unit.lower()]
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"is not a finite {what} of at least zero|for example {example}")
    return value


def parse_duration_s(text: object) -> float:
    """`"25ms"` -> 0.025 seconds. Raises ValueError `problem|remedy`."""
    return _split(text, DURATION_S, "25ms", "duration")


def parse_rate_bps(text: object) -> int:
    """`"5mbit"` -> 5000000 bits per second (decimal prefixes, as tc and the field use them)."""
    return round(_split(text, RATE_BPS, "5mbit", "rate"))


def parse_size_bytes(text: object) -> int:
    """`"200KB"` -> 200000 bytes; `KiB`, `MiB`, `GiB` are powers of two."""
    return round(_split(text, SIZE_BYTES, "200KB", "size"))


def parse_fraction(text: object) -> float:
    """`"1%"` or `0.01` -> 0.01."""
    if isinstance(text, str) and text.strip().endswith("%"):
        value = _split(text, {"%": 0.01}, "1%", "fraction")
    elif isinstance(text, (int, float)) and not isinstance(text, bool):
        value = float(text)
    else:
        raise ValueError("is not a fraction|write 0.01 or 1%")
    if not 0 <= value <= 1:
        raise ValueError("is not between 0 and 1|write 0.01 or 1%")
    return value


def _schema(example: str, kind: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "description": f"{kind} with unit", "examples": [example]})


# Written back with their unit, so that a resolved configuration can be read again.
Duration = Annotated[float, BeforeValidator(parse_duration_s), PlainSerializer(lambda v: f"{float(v)!r}s"),
                     _schema("25ms", "duration")]
Rate = Annotated[int, BeforeValidator(parse_rate_bps), PlainSerializer(lambda v: f"{v}bit"), _schema("5mbit", "rate")]
Size = Annotated[int, BeforeValidator(parse_size_bytes), PlainSerializer(lambda v: f"{v}B"), _schema("200KB", "size")]
Fraction = Annotated[float, BeforeValidator(parse_fraction), _schema("1%", "fraction")]
