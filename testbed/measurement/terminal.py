"""The table that a run ends with: one row per plan, the verdict and its reasons below it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from testbed.measurement import format as fmt
from testbed.measurement.reroutes import reroute_words
from testbed.measurement.stats import samples_needed
from testbed.measurement.summary import Group, group_trials, verdict
from testbed.measurement.trial import Trial, load_run
from testbed.measurement.validity import VALID, worst_checks

_ROOM = 25  # columns that the parts of the latency need to be readable
_GAP = 2
_TIME = "where the time went"
_SHORT = {"device": "dev", "compute": "comp", "unaccounted": "rest", "downlink": "down", "decision": "decide"}
_MIN_SHARE = 0.04  # parts of the latency below this are summed into `rest`


def terminal_table(run_dir: str | Path, *, trials: Sequence[str | Path] | None = None,
                   report: str | Path | None = None, width: int | None = None) -> tuple[Table, Text]:
    """Table and footer of a run, to be printed one after the other.

    `trials` are its trial directories (all by default), `report` is named in the footer, `width` is the
    terminal's by default.
    """
    loaded = load_run(run_dir, trials)
    columns = width or shutil.get_terminal_size((100, 24)).columns
    groups = group_trials(loaded, intervals=False)
    return plan_table(groups, columns), footer(groups, report)


def plan_table(rows: Sequence[Group], width: int) -> Table:
    """One row per plan (and sweep point): requests, accuracy, latency, where it went, deadline, bytes, exits.

    What does not fit into `width` gives way in this order: exits, bytes, p99, the number of requests.
    """
    exits = [_exits(group) if len(_exits(group)) > 1 else ["-"] for group in rows]
    optional = [name for name in ("req", "p99", "up/req", "exits") if name != "exits" or any(map(len, exits))]
    for dropped in ([], ["exits"], ["exits", "up/req"], ["exits", "up/req", "p99"], optional):
        columns = _columns(rows, exits, [name for name in optional if name not in dropped])
        taken = sum(max(len(name), *(len(line) for cell in cells for line in cell)) + _GAP
                    for name, cells in columns.items()) if rows else 0
        room = width - taken
        if room >= _ROOM:
            break
    room = max(14, room)

    table = Table(pad_edge=False, box=None, header_style="bold", show_edge=False, padding=(0, _GAP, 0, 0))
    for name in columns:
        if name == "in time":
            table.add_column(_TIME, no_wrap=True)
        table.add_column(name, justify="left" if name in ("plan", "exits") else "right", no_wrap=True)
    for i, group in enumerate(rows):
        cells = {name: Text("\n".join(cell[i])) for name, cell in columns.items()}
        cells["plan"].stylize("bold")
        if group.value("failed") and "req" in cells:
            cells["req"].stylize("bold red")
        before = [name for name in columns if name in ("plan", "req", "acc") or name.startswith("p50")]
        after = [name for name in columns if name not in before]
        table.add_row(*(cells[n] for n in before), _wrap(shares(group), room), *(cells[n] for n in after))
    return table


def _columns(rows: Sequence[Group], exits: list[list[str]], optional: Sequence[str]) -> dict[str, list[list[str]]]:
    """Column -> cell per row -> lines."""
    plans = [[group.policy, *(f"  {key.rsplit('.', 1)[-1]}={fmt.swept(value)}" for key, value in group.sweep_point.items())]
             for group in rows]
    tail = "p99" in optional
    columns = {
        "plan": plans, "req": [[_count(group)] for group in rows],
        "acc": [[fmt.share(group.value("accuracy"))] for group in rows],
        "p50/p95/p99 ms" if tail else "p50/p95 ms": _aligned([_latencies(group)[: 3 if tail else 2] for group in rows]),
        "in time": [[fmt.share(group.value("deadline_hit"))] for group in rows],
        "up/req": [[fmt.size(group.value("bytes_up"))] for group in rows],
        "exits": exits,
    }
    free = ("req", "up/req", "exits")
    return {name: cells for name, cells in columns.items() if name not in free or name in optional}


def footer(groups: Sequence[Group], report: str | Path | None = None) -> Text:
    """VALID or INVALID with reasons, how nodes and links were run, and the path of the report."""
    loaded = [trial for group in groups for trial in group.trials]
    text = Text("\n")
    word = verdict(loaded)
    checks = worst_checks(loaded)
    passed = sum(check["state"] == "passed" for check in checks)
    text.append(word, style="bold green" if word == VALID else "bold red")
    text.append(f"  {len(loaded)} trial{'s' if len(loaded) > 1 else ''}, {passed} of {len(checks)} checks passed")
    for check in checks:
        if check["state"] in ("failed", "warned"):
            others = len(check["failures"]) - 1
            also = f" (and {others} other trial{'s' if others > 1 else ''})" if others else ""
            prefix = "warning, " if check["state"] == "warned" else ""
            text.append(f"\n  {prefix}{check['trial']}{also}: {check['reason']}",
                        style="yellow" if prefix else "red")
    unknown = [check["name"] for check in checks if check["state"] == "not measured"]
    if unknown:
        text.append(f"\n  not measured: {', '.join(unknown)}", style="yellow")
    blank = [e.metric.removeprefix("latency_") for group in groups for e in group.estimates
             if e.note.startswith("blank") and e.metric.startswith("latency_")]
    if blank:
        needed = ", ".join(f"{name} needs {samples_needed(int(name[1:]) / 100)}" for name in sorted(set(blank)))
        text.append(f"\n  a dash for a percentile: too few samples ({needed})", style="dim")
    fell_back = [f"{group.label} {fmt.share(group.value('fallback'))}" for group in groups if group.value("fallback")]
    if fell_back:
        text.append(f"\nanswered by the device because a remote step failed: {', '.join(fell_back)}")
    regret = [f"{group.label} {fmt.seconds(value)}" for group in groups if (value := group.value("regret_mean")) is not None]
    if regret:
        text.append(f"\nmean regret against the best plan of each request: {', '.join(regret)}")
    text.append(f"\nnodes: {_runtimes(loaded)}   links: {_backends(loaded)}")
    for words in reroute_words(loaded):
        text.append(f"\n{words}")
    if report is not None:
        text.append("\nreport: ").append(os.path.relpath(report), style="bold")
    return text


def shares(group: Group) -> list[str]:
    """`["dev-edge up 47%", "edge comp 28%", "down 21%", "rest 4%"]`: largest first, small parts summed."""
    parts = group.family("time_share")
    named = {name: value for name, value in parts.items() if value >= _MIN_SHARE and name != "unaccounted"}
    rest = sum(parts.values()) - sum(named.values())
    words = [f"{_shorten(name)} {value:.0%}" for name, value in sorted(named.items(), key=lambda item: -item[1])]
    return [*words, f"rest {rest:.0%}"] if rest >= 0.005 else words


def _count(group: Group) -> str:
    """`236`, or `231/236` when five were not answered."""
    asked, answered = int(group.value("requests") or 0), int(group.value("ok") or 0)
    return f"{asked}" if asked == answered else f"{answered}/{asked}"


def _latencies(group: Group) -> list[str]:
    return [fmt.milliseconds(group.value(f"latency_p{percentile}")) for percentile in (50, 95, 99)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Numbers of one cell padded, so that they stand below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True))] for row in rows]


def _exits(group: Group) -> list[str]:
    return [f"{name} {value:.0%}" for name, value in group.family("exit_share").items()]


def _wrap(words: Sequence[str], room: int) -> Text:
    """Join with commas, breaking lines only between words of the list."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= room:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return Text("\n".join(lines) or "-")


def _runtimes(trials: Sequence[Trial]) -> str:
    kinds = {f"{node.get('runtime', 'unknown')}" + (f" ({node['engine']})" if node.get("engine") else "")
             for trial in trials for node in trial.manifest.get("nodes") or []}
    return ", ".join(sorted(kinds)) or "unknown"


def _backends(trials: Sequence[Trial]) -> str:
    kinds = {str(link.get("backend")) for trial in trials for link in trial.manifest.get("links") or []}
    return ", ".join(sorted(kinds)) or "none"


def _shorten(name: str) -> str:
    """Component names for a narrow cell: `device-edge up` -> `dev-edge up`."""
    return " ".join("-".join(_SHORT.get(part, part) for part in word.split("-")) for word in name.split(" "))
