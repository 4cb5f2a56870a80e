"""Typed errors: every message says what is wrong, where (file, key or line), the value, and the remedy."""

from __future__ import annotations

from pathlib import Path


class TestbedError(Exception):
    """Base of all errors that a user can cause or mend. Shown as one line, without a traceback."""

    __test__ = False  # not a pytest class
    exit_code = 1


class InputError(TestbedError):
    """Something that a person wrote (scenario, topology, trace, model file, option) is not acceptable.

    Parameters
    ----------
    problem: what is wrong, in one clause.
    file: the file it stands in, if any.
    key: dotted key (``links[0].up.rate``) or ``line 12``.
    value: the offending value, shown with ``repr`` and shortened.
    remedy: what would be right.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        key: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.file, self.key, self.value, self.remedy = problem, file, key, value, remedy
        where = ": ".join(str(part) for part in (file, key) if part)
        shown = "" if value is None else f" (got {_short(value)})"
        text = f"{where}: {problem}{shown}" if where else f"{problem}{shown}"
        super().__init__(f"{text}; {remedy}" if remedy else text)


class MissingToolError(TestbedError):
    """A program, kernel feature or permission that is needed is not there; the remedy names how to get it."""

    exit_code = 3

    def __init__(self, problem: str, *, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}; {remedy}")


class EmulationError(TestbedError):
    """The network, a container or a node could not be brought into the asked state."""

    exit_code = 4


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    if len(text) <= limit:
        return text
    # the end of a path says more than its beginning
    return f"'...{text[3 - limit:]}" if isinstance(value, str) and "/" in value else text[: limit - 3] + "..."
