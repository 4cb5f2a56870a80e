"""What the JSON formats share: parsing with a typed error, and finding the line of an entry."""

from __future__ import annotations

import json
import re
from typing import Any

from testbed.errors import InputError
from testbed.traces.source import Source


def parse(source: Source) -> Any:
    """The document; a syntax error names its line."""
    try:
        return json.loads(source.text)
    except json.JSONDecodeError as error:
        raise source.error(
            f"is not JSON: {error.msg}", error.lineno, remedy="fetch or write the file again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise source.error(
            f"is not usable JSON: {type(error).__name__}", remedy="fetch or write the file again"
        ) from None


def peek(source: Source) -> Any:
    """The document, or None where the file does not look like JSON at all: for detection."""
    if not source.text.lstrip()[:1] or source.text.lstrip()[0] not in "[{":
        return None
    try:
        return parse(source)
    except InputError:
        return None


def looks_like(source: Source, *words: str) -> bool:
    """Broken JSON that names these keys: so that its own reader can say what is wrong with it."""
    start = source.text.lstrip()[:1]
    return start in ("[", "{") and start != "" and all(f'"{word}"' in source.text for word in words)


def entry_places(
    source: Source, key: str, count: int, path: str, after: str | None = None
) -> list[int | str]:
    """Where each of `count` entries stands: the line of its `key`, or ``path[i]`` if that cannot be told."""
    start = source.text.find(f'"{after}"') if after else 0
    found = [match.start() for match in re.finditer(rf'"{re.escape(key)}"\s*:', source.text[max(start, 0) :])]
    if len(found) < count or (after is None and len(found) != count):
        return [f"{path}[{index}]" for index in range(count)]
    places: list[int | str] = []
    line, position = source.text.count("\n", 0, max(start, 0)) + 1, max(start, 0)
    for index, offset in enumerate(found[:count]):
        here = max(start, 0) + offset
        line += source.text.count("\n", position, here)
        position = here
        places.append(f"line {line}, {path}[{index}]")
    return places


def mapping(source: Source, value: Any, place: int | str) -> dict[str, Any]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise source.error("is not an object", place, value=value)
    return value


def field(source: Source, entry: dict[str, Any], key: str, place: int | str) -> float:
    """A number that must be there."""
    if key not in entry:
        raise source.error(f"{key} is missing", place, remedy=f"every entry needs {key}")
    return source.number(entry[key], place, key)
