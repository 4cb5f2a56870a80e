"""Our own CSV: one row per segment, exact to the nanosecond and the bit, easy to write by hand.

::

    # any number of comment lines
    # packet_bits=12000            (only where credit comes in whole packets)
    duration_ms,rate_bps,delay_ms,loss
    100,5000000,20,0
    20.5,0,35,0.01

``duration_ms`` may have up to six decimals. Instead of ``rate_bps`` the column may be ``bits`` (bits in the
segment), which can say every trace exactly. ``delay_ms`` (one way) and ``loss`` (0..1) are optional. The
sum of the durations is the period: after it the trace begins again.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import numpy as np

from testbed.traces.source import Rows, Source
from testbed.traces.trace import NS_PER_S, Trace

NS_PER_MS = 1_000_000
KNOWN = ("duration_ms", "rate_bps", "bits", "delay_ms", "loss")


def sniff(source: Source) -> bool:
    """The header begins with ``duration_ms``."""
    return bool(source.head) and source.head[0].split(",")[0].strip() == "duration_ms"


def read(source: Source, column: str | None, clip: float | None) -> Trace:
    """The segments of a file; only the hard limit on rates holds, because it was written on purpose."""
    if column is not None:
        raise source.error(
            "this format has no columns to choose from", value=column, remedy="leave --column out"
        )
    rows, names, packet_bits = Rows(source), [""], None
    for line, text in enumerate(source.lines, 1):
        text = text.strip()
        if text.startswith("#"):
            key, _, value = text[1:].partition("=")
            if key.strip() == "packet_bits":
                packet_bits = source.integer(value.strip(), line, "packet_bits")
                if not 0 < packet_bits <= 8 * 65_536:
                    raise source.error(
                        "packet_bits must be the size of an IP packet", line, value=packet_bits
                    )
            continue
        if not text:
            continue
        if names == [""]:
            names = [name.strip() for name in text.split(",")]
            _check_header(source, names, line)
            continue
        fields = [part.strip() for part in text.split(",")]
        if len(fields) != len(names):
            raise source.error(
                f"{len(fields)} fields where the header has {len(names)}",
                line,
                value=text,
                remedy="mend or remove the line",
            )
        _add(rows, dict(zip(names, fields, strict=True)), line)
    if packet_bits is not None:
        for bits, where in zip(rows.bits, rows.lines, strict=True):
            if bits % packet_bits:
                raise source.error(
                    "bits are not whole packets",
                    where,
                    value=bits,
                    remedy="leave the packet_bits comment out",
                )
    return rows.trace(
        clip, measured=False, delay="delay_ms" in names, loss="loss" in names, packet_bits=packet_bits
    )


def write(trace: Trace, comments: list[str]) -> str:
    """The text of the file: ``rate_bps`` where that is exact, else ``bits``."""
    lengths = np.diff(trace.times_ns)
    pairs = list(zip(trace.bits.tolist(), lengths.tolist(), strict=True))
    as_rate = all(bits * NS_PER_S % length == 0 for bits, length in pairs)
    columns = [[_milliseconds(length) for length in lengths.tolist()]]
    columns.append([str(bits * NS_PER_S // length if as_rate else bits) for bits, length in pairs])
    header = ["duration_ms", "rate_bps" if as_rate else "bits"]
    if trace.delay_s is not None:
        header.append("delay_ms")
        columns.append([repr(value * 1e3) for value in trace.delay_s.tolist()])
    if trace.loss is not None:
        header.append("loss")
        columns.append([repr(value) for value in trace.loss.tolist()])
    top = [f"# {' '.join(comment.split())}" for comment in comments]
    if trace.packet_bits is not None:
        top.append(f"# packet_bits={trace.packet_bits}")
    return "\n".join([*top, ",".join(header), *map(",".join, zip(*columns, strict=True))]) + "\n"


def _check_header(source: Source, names: list[str], line: int) -> None:
    unknown = [name for name in names if name not in KNOWN]
    if unknown or len(set(names)) != len(names):
        raise source.error(
            "unknown or repeated column",
            line,
            value=",".join(unknown or names),
            remedy=f"the columns are {', '.join(KNOWN)}",
        )
    if "duration_ms" not in names or ("rate_bps" in names) == ("bits" in names):
        raise source.error(
            "needs duration_ms and exactly one of rate_bps and bits", line, value=",".join(names)
        )


def _add(rows: Rows, fields: dict[str, str], line: int) -> None:
    source = rows.source
    duration_ns = _exact(source, fields["duration_ms"], line, "duration_ms", NS_PER_MS)
    if "bits" in fields:
        bits = source.integer(fields["bits"], line, "bits")
    else:
        bits = _exact(source, fields["rate_bps"], line, "rate_bps", duration_ns, whole=False) // NS_PER_S
    delay_s = source.number(fields.get("delay_ms", "0"), line, "delay_ms") / 1e3
    rows.add(duration_ns, bits, line, delay_s, source.number(fields.get("loss", "0"), line, "loss"))


def _exact(source: Source, text: str, line: int, what: str, factor: int, *, whole: bool = True) -> int:
    """A decimal number times an integer, without passing through floating point."""
    source.number(text, line, what)
    try:
        value = Decimal(text)
        scaled = value * factor if abs(value) < Decimal(10) ** 25 else Decimal("NaN")
    except InvalidOperation:
        scaled = Decimal("NaN")
    if not scaled.is_finite():
        raise source.error(f"{what} is out of range", line, value=text)
    if whole and scaled != scaled.to_integral_value():
        raise source.error(
            f"{what} is finer than a nanosecond", line, value=text, remedy="use at most six decimals"
        )
    return int(scaled.to_integral_value(rounding="ROUND_FLOOR"))


def _milliseconds(length_ns: int) -> str:
    whole, rest = divmod(length_ns, NS_PER_MS)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)
