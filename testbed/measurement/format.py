"""Numbers for people: the same value looks the same in the terminal, the report and the figures."""

from __future__ import annotations

import math


def seconds(value: float | None) -> str:
    """`0.0471` -> `47.1 ms`; three figures; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 1.0:
        return f"{_three(value)} s"
    if size >= 1e-3 or size == 0:
        return f"{_three(value * 1e3)} ms"
    return f"{_three(value * 1e6)} µs"


def milliseconds(value: float | None) -> str:
    """Milliseconds without the unit, for columns that name it."""
    return "-" if value is None or not math.isfinite(value) else _three(value * 1e3)


def share(value: float | None) -> str:
    """`0.953` -> `95.3%`."""
    if value is None or not math.isfinite(value):
        return "-"
    percent = value * 100
    return f"{percent:.0f}%" if percent in (0.0, 100.0) else f"{percent:.1f}%"


def size(value: float | None) -> str:
    """`16910` -> `16.9 kB` (powers of ten)."""
    return "-" if value is None or not math.isfinite(value) else _prefixed(value, "B")


def rate(value: float | None) -> str:
    """`4.2e6` -> `4.2 Mbit/s`."""
    return "-" if value is None or not math.isfinite(value) else _prefixed(value, "bit/s")


def quantity(value: float | None, unit: str) -> str:
    """A value in its unit's usual form."""
    if value is None:
        return "-"
    special = {"s": seconds, "share": share, "bytes": size, "bit/s": rate}
    if unit in special:
        return special[unit](value)
    number = f"{value:.0f}" if float(value).is_integer() else _three(value)
    return f"{number} {unit}".strip()


def _prefixed(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{value:.0f} {unit}" if float(value).is_integer() else f"{_three(value)} {unit}"


def _three(value: float) -> str:
    """Three significant figures, without an exponent: 0.0123, 9.98, 10.0, 123, 1234."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # first, so that 9.9976 has the digits of 10.0
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{digits}f}"


def swept(value: object) -> str:
    """A swept value: a file by its name, anything else as it is."""
    text = str(value)
    return text.rsplit("/", 1)[-1] if "/" in text else text
