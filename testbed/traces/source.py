"""What a reader starts from (`Source`: a file's text) and what it collects (`Rows`), with all checks.

A reader only says what stands in which line; whether rates are believable is decided here, once for all
formats.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from testbed.errors import InputError
from testbed.traces.trace import NS_PER_S, Trace

MAX_FILE_BYTES = 256 * 2**20
MAX_DURATION_NS = 30 * 86_400 * NS_PER_S  # longer means a wrong unit of time; keeps sums far from 2**63

# What counts as an absurd rate. No radio link of the measured formats has carried more than 10 Gbit/s (the
# fastest mmWave file we know has seconds of 2.1 Gbit/s), and capture errors show as single steps far above
# all others: more than 1 Gbit/s *and* more than 50 times the 99th percentile of the rates that are not
# zero. A real mmWave trace passes, because its 99th percentile is high as well.
ABSURD_RATE_BPS = 10e9
SPIKE_RATE_BPS = 1e9
SPIKE_RATIO = 50.0
HAND_WRITTEN_LIMIT_BPS = 100e9  # our own CSV is written on purpose: only this limit holds for it


@dataclass(frozen=True)
class Source:
    """The decoded text of one trace file and its name for messages."""

    name: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """All lines; line 1 is ``lines[0]``. Trailing blank lines are dropped."""
        lines = self.text.split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        return [line.removesuffix("\r") for line in lines]

    @cached_property
    def head(self) -> list[str]:
        """The first 20 lines that are neither blank nor a comment: enough to know a format by."""
        picked: list[str] = []
        for line in self.lines[:400]:
            if line.strip() and not line.lstrip().startswith("#"):
                picked.append(line.strip())
            if len(picked) == 20:
                break
        return picked

    def mostly(self, pattern: re.Pattern[str]) -> bool:
        """Do more than half of the first lines match? One broken line must not hide what a file is."""
        return sum(bool(pattern.fullmatch(line)) for line in self.head) * 2 > len(self.head)

    def data_lines(self) -> Iterator[tuple[int, str]]:
        """(line number, stripped text) of every line that is neither blank nor a comment."""
        for line, text in enumerate(self.lines, 1):
            text = text.strip()
            if text and not text.startswith("#"):
                yield line, text

    def error(
        self, problem: str, line: int | str | None = None, *, value: object = None, remedy: str | None = None
    ) -> InputError:
        """An `InputError` that names this file and a line (or a place inside a JSON document)."""
        key = f"line {line}" if isinstance(line, int) else line
        return InputError(problem, file=self.name, key=key, value=value, remedy=remedy)

    def number(self, text: object, line: int | str, what: str) -> float:
        """A finite float from a field of the file."""
        try:
            if isinstance(text, bool) or not isinstance(text, (str, int, float)) or "_" in str(text):
                raise ValueError
            value = float(text)
        except (ValueError, OverflowError):
            raise self.error(
                f"{what} is not a number", line, value=text, remedy="mend or remove the line"
            ) from None
        if not math.isfinite(value):
            raise self.error(f"{what} is not finite", line, value=text, remedy="mend or remove the line")
        return value

    def integer(self, text: object, line: int | str, what: str) -> int:
        """A whole number from a field of the file (``3.0`` counts)."""
        value = self.number(text, line, what)
        if value != int(value):
            raise self.error(
                f"{what} is not a whole number", line, value=text, remedy="mend or remove the line"
            )
        return int(text) if isinstance(text, str) and text.strip().lstrip("+-").isdecimal() else int(value)


def open_source(path: str | Path) -> Source:
    """Read a file, unzip it when its first bytes are gzip's (whatever its name), decode it as UTF-8."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError("is a directory, not a trace", file=path, remedy="name one file in it")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            "no such trace file",
            file=path,
            remedy="`testbed traces list` shows those that ship; check the path",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None
    return source_from_bytes(raw, str(path))


def source_from_bytes(raw: bytes, name: str) -> Source:
    """As `open_source`, for bytes that are already in memory."""
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"damaged gzip file: {error}", file=name, remedy="fetch the file again"
            ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise InputError(
            f"is larger than {MAX_FILE_BYTES >> 20} MB", file=name, remedy="cut it into shorter traces"
        )
    if not raw.strip():
        raise InputError("is empty", file=name, remedy="a trace needs at least one line")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            "is not text", file=name, key=f"line {line}", remedy="traces are UTF-8 text, plain or gzip"
        ) from None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise InputError(
            "is not text", file=name, key=f"line {line}", remedy="traces are UTF-8 text, plain or gzip"
        )
    return Source(name, text)


@dataclass
class Rows:
    """Segments as a reader finds them: how long, how many bits, from which line."""

    source: Source
    durations_ns: list[int] = field(default_factory=list)
    bits: list[int] = field(default_factory=list)
    lines: list[int | str] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def add(
        self, duration_ns: int, bits: int, line: int | str, delay_s: float = 0.0, loss: float = 0.0
    ) -> None:
        """Append one segment; its duration must be positive, its delay and loss must make sense."""
        if duration_ns <= 0:
            raise self.source.error("time does not go forward", line, remedy="mend or remove the line")
        if duration_ns > MAX_DURATION_NS:
            raise self.source.error(
                "a step longer than 30 days",
                line,
                value=f"{duration_ns / NS_PER_S:.6g} s",
                remedy="check the unit of time, or name the format with --format",
            )
        if not 0 <= loss <= 1:
            raise self.source.error("loss must lie between 0 and 1", line, value=loss)
        if not 0 <= delay_s <= 3600:
            raise self.source.error("delay must lie between 0 and an hour", line, value=delay_s)
        self.durations_ns.append(duration_ns)
        self.bits.append(bits)
        self.lines.append(line)
        self.delay_s.append(delay_s)
        self.loss.append(loss)

    def add_rate(
        self, duration_ns: int, rate_bps: float, line: int | str, delay_s: float = 0.0, loss: float = 0.0
    ) -> None:
        """Append one segment given by its rate; bits are rounded to the nearest whole one."""
        bits = rate_bps * duration_ns / NS_PER_S
        self.add(duration_ns, round(bits) if math.isfinite(bits) else 2**200, line, delay_s, loss)

    def trace(
        self,
        clip: float | None,
        *,
        measured: bool = True,
        delay: bool = False,
        loss: bool = False,
        packet_bits: int | None = None,
    ) -> Trace:
        """Check the rates, or cut them to [0, clip] bit/s, and make the trace."""
        source = self.source
        if not self.bits:
            raise source.error("holds no segment", remedy="a trace needs at least one interval of time")
        if sum(self.durations_ns) > MAX_DURATION_NS:
            raise source.error(
                "is longer than 30 days", remedy="check the unit of time, or name the format with --format"
            )
        # nothing shorter than a millisecond has a rate of its own (an opportunity at stamp 0 lasts a
        # nanosecond)
        pairs = [
            (bits, max(duration, 1_000_000))
            for bits, duration in zip(self.bits, self.durations_ns, strict=True)
        ]
        rates = [bits * NS_PER_S / duration for bits, duration in pairs]
        if clip is None:
            check_rates(source, np.array([min(rate, 1e300) for rate in rates]), self.lines, measured=measured)
        else:
            # 1 Tbit/s keeps the numbers small; the exact limit is the trace's own business
            self.bits = [min(max(bits, 0), 10**12 * duration // NS_PER_S) for bits, duration in pairs]
            if packet_bits is not None:
                self.bits = [bits - bits % packet_bits for bits in self.bits]
        trace = Trace(
            times_ns=np.concatenate(([0], np.cumsum(np.array(self.durations_ns, dtype=np.int64)))),
            bits=np.array(self.bits, dtype=np.int64),
            packet_bits=packet_bits,
            delay_s=np.array(self.delay_s) if delay else None,
            loss=np.array(self.loss) if loss else None,
            name=source.name,
        )
        return trace if clip is None else trace.clipped(clip)


def check_rates(source: Source, rates_bps: np.ndarray, lines: list[int | str], *, measured: bool) -> None:
    """Refuse negative and absurd rates, naming the line of the worst one."""
    low = int(np.argmin(rates_bps))
    if rates_bps[low] < 0:
        raise source.error(
            "negative rate",
            lines[low],
            value=f"{rates_bps[low]:.6g} bit/s",
            remedy="mend the line, or give --clip RATE to cut all rates to 0..RATE",
        )
    top = int(np.argmax(rates_bps))
    worst = float(rates_bps[top])
    limit = ABSURD_RATE_BPS if measured else HAND_WRITTEN_LIMIT_BPS
    busy = rates_bps[rates_bps > 0]
    # "lower" keeps a lone spike out of its own yardstick even in a short file
    usual = float(np.quantile(busy, 0.99, method="lower")) if len(busy) > 1 else worst
    spike = measured and worst > SPIKE_RATE_BPS and worst > SPIKE_RATIO * usual
    if worst > limit or spike:
        above = (
            f"more than {limit / 1e9:g} Gbit/s"
            if worst > limit
            else f"{worst / usual:.0f} times the 99th percentile"
        )
        raise source.error(
            f"absurd rate, {above}",
            lines[top],
            value=f"{worst / 1e6:.6g} Mbit/s",
            remedy="mend the line, or give --clip RATE (for example 100mbit) to cut all rates to 0..RATE",
        )
