"""The table of codecs in docs/codecs.md: `python -m testbed.inference.codecs.table docs/codecs.md` writes it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from testbed.inference.codecs.image import QUALITIES
from testbed.inference.codecs.lossless import METHODS
from testbed.inference.codecs.registry import Registry, standard_names

_PLACE = re.compile(r"(<!-- table of codecs -->\n).*?(<!-- end of table -->)", re.DOTALL)


def table_markdown() -> str:
    """A row per family."""
    codecs = Registry()
    lines = ["| codec | for | what it is | bytes | largest error |", "|---|---|---|---|---|"]
    for name in standard_names():
        codec = codecs[name]
        if "+" in name:
            continue
        shown = f"`{name}`" + (f", `{name}-1` to `-{QUALITIES[name]}`" if name in QUALITIES else "")
        lines.append(f"| {shown} | {codec.kind} | {codec.description} | {codec.rate} | {codec.bound} |".replace("|x|", "\\|x\\|"))
    methods = ", ".join(f"`+{method}`" for method in METHODS)
    lines.append(f"| {methods} after `raw` to `uint8`, or after a learned codec | as before it | lossless over its bytes "
                 "| by content | that of the codec before it |")
    lines.append("| `bottleneck:MODEL@CUT` | tensor | learned for one cut of one model | in the catalogue | none promised; "
                 "accuracy in the catalogue |")
    return "\n".join(lines) + "\n"


def refreshed(page: str) -> str:
    """A page with the present table between its two marks."""
    return _PLACE.sub(lambda match: match[1] + table_markdown() + match[2], page)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
