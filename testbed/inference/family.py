"""The shipped models as Markdown tables: `python -m testbed.inference.family CATALOGUE PAGE` renews a page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from testbed.inference.catalogue import Catalogue, load_catalogue


def models_table(catalogue: Catalogue) -> str:
    """A line per model: accuracy, cost, stored size."""
    lines = ["| model | data set | accuracy of the exits, test split | parameters | MMAC | ms | file | stored as |",
             "|---|---|---|---:|---:|---:|---|---|"]
    for info in catalogue.models.values():
        exits = ", ".join(f"{e.name} {e.accuracy:.2%}" for e in info.exits)
        lines.append(f"| `{info.name}` | {info.dataset} | {exits} | {info.parameters:,} | "
                     f"{sum(s.macs for s in info.stages) / 1e6:.1f} | {info.reference_time_s(0, info.num_stages) * 1e3:.2f} | "
                     f"`{info.weights}` | {info.storage} |")
    return "\n".join(lines)


def calibration_table(catalogue: Catalogue) -> str:
    """A line per exit: calibration error before and after division by the temperature."""
    lines = ["| model | exit | accuracy | ECE | temperature | ECE at this temperature |", "|---|---|---:|---:|---:|---:|"]
    for info in catalogue.models.values():
        for e in info.exits:
            if e.ece is not None and e.ece_calibrated is not None:
                lines.append(f"| `{info.name}` | {e.name} | {e.accuracy:.2%} | {e.ece:.2%} | {e.temperature:.2f} | "
                             f"{e.ece_calibrated:.2%} |")
    return "\n".join(lines)


def refresh(text: str, catalogue: Catalogue) -> str:
    """Replace what stands between `<!-- family: NAME -->` and `<!-- end -->`, NAME one of models, calibration."""
    tables = {"models": models_table, "calibration": calibration_table}

    def section(match: re.Match[str]) -> str:
        return f"<!-- family: {match[1]} -->\n{tables[match[1]](catalogue)}\n<!-- end -->"

    return re.sub(r"<!-- family: (\w+) -->.*?<!-- end -->", section, text, flags=re.DOTALL)


if __name__ == "__main__":
    source, page = Path(sys.argv[1]), Path(sys.argv[2])
    page.write_text(refresh(page.read_text(encoding="utf-8"), load_catalogue(source)), encoding="utf-8")
