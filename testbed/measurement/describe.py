"""Reference tables in Markdown from the definitions themselves: `python -m testbed.measurement.describe docs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.limits import LIMITS
from testbed.measurement.metrics import COMPONENT_MEANINGS, FAMILIES, METRICS
from testbed.measurement.records import TABLES


def tables_markdown() -> str:
    """Columns of every table."""
    parts = []
    for table in TABLES.values():
        rows = [(f"`{c.name}`", c.unit or "-", c.type, c.meaning) for c in table.columns]
        parts.append(f"### `{table.name}.csv`: {table.row}\n\n" + _table(("column", "unit", "type", "meaning"), rows))
    return "\n\n".join(parts)


def metrics_markdown() -> str:
    """Names, units and formulas of the metrics in `summary.csv`."""
    rows = [(f"`{m.name}`", m.unit or "-", m.formula) for m in METRICS]
    rows += [(f"`{name}`", unit, formula) for name, unit, formula in FAMILIES]
    return _table(("metric", "unit", "formula"), rows)


def components_markdown() -> str:
    """Parts of a latency."""
    return _table(("component", "what it covers"), [(f"`{name}`", text) for name, text in COMPONENT_MEANINGS])


def limits_markdown() -> str:
    """Validity checks with their default limits."""
    rows = []
    for limit in LIMITS:
        sign = "≥" if limit.at_least else "≤"
        rows.append((f"`{limit.name}`", limit.what, f"{sign} {fmt.quantity(limit.default, limit.unit)}", limit.why))
    return _table(("check", "what is measured", "default", "why it matters"), rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "tables": tables_markdown, "metrics": metrics_markdown, "components": components_markdown,
    "limits": limits_markdown,
}


def refresh(text: str) -> str:
    """Replace what stands between `<!-- generated: NAME -->` and `<!-- end -->` by the current definitions."""

    def section(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{SECTIONS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->.*?<!-- end -->", section, text, flags=re.DOTALL)


def main(folder: str) -> None:
    """Refresh every page of a folder."""
    for page in sorted(Path(folder).rglob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = refresh(old)
        if new != old:
            write_text_atomic(page, new)
            print(f"refreshed {page}")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


if __name__ == "__main__":
    main(sys.argv[1])
