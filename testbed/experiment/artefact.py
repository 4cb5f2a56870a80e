"""A run as one archive for an artefact appendix: tables, manifests, report, content, and a README with a glossary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.experiment.bundle import Recipe, pack, zip_folder
from testbed.measurement.atomic import write_bytes_atomic, write_text_atomic
from testbed.measurement.describe import components_markdown, limits_markdown, metrics_markdown, tables_markdown
from testbed.measurement.report import render_report
from testbed.measurement.summary import group_trials, verdict, write_run_tables
from testbed.measurement.trial import MANIFEST, Trial, load_run

_LEFT_OUT = ("lock",)  # and folders: logs name paths of the machine and are no result


def export_run(run: Path, target: Path, *, content: bool = True) -> list[Trial]:
    """Write `target` (a zip archive) from the trials that `find_trials` names, and return these.

    Everything stands in one folder named after the run. Its layout is that of the run, so `testbed report` and
    `testbed rerun` work on the unpacked archive. Raises InputError when there is no finished trial, or when a file that
    is to be packed has changed since.
    """
    trials = load_run(run)
    with tempfile.TemporaryDirectory(prefix="testbed-export-") as scratch:
        folder = Path(scratch) / run.resolve().name
        for trial in trials:
            place = folder / str(trial.manifest["config_hash"]) / str(trial.manifest["repeat"])
            place.mkdir(parents=True)
            for file in trial.path.iterdir():
                if file.is_file() and file.name not in _LEFT_OUT:
                    shutil.copyfile(file, place / file.name)
        if content:
            pack([Recipe.of_manifest(t.manifest, t.path / MANIFEST) for t in trials], folder / "content")
        groups = group_trials(load_run(folder))
        write_run_tables(folder, groups)
        render_report(folder, groups=groups)
        write_text_atomic(folder / "README.md", readme(folder.name, trials, content=content))
        write_bytes_atomic(target, zip_folder(folder, f"{folder.name}/"))
    return trials


def readme(name: str, trials: Sequence[Trial], *, content: bool) -> str:
    """What the archive holds, what it ran on, how to repeat it, and what every column means."""
    first = trials[0].manifest
    host, versions = first.get("host") or {}, first.get("versions") or {}
    rows = [f"| `{t.manifest['config_hash']}/{t.manifest['repeat']}` | {t.policy} | {_point(t)} | {t.manifest['repeat']} | "
            f"{verdict([t])} |" for t in trials]
    config = first.get("config") or {}
    packed = ("- `content/`: catalogue, weights, compute profiles, traces and policy files that the trials used\n"
              if content else "")
    return f"""# {name}: data of {len(trials)} trials

{config.get("description") or f"Scenario {first.get('scenario')}"}. Made with testbed {versions.get("testbed", "?")} on
{host.get("system", "?")}, kernel {host.get("kernel", "?")}, {host.get("cpu_count", "?")} x {host.get("cpu_model", "?")},
Python {versions.get("python", "?")}, PyTorch {versions.get("torch", "?")}. Every trial's `manifest.json` has all of it.

## What is here

- `report.html`: figures and tables, one file, readable offline
- `table.csv`: one row per policy and sweep point; `summary.csv`: the same in long form, with confidence intervals
- `HASH/REPEAT/`: one trial: `manifest.json` (configuration, seeds, versions, hashes, calibration, verdict with every check),
  `requests.csv`, `hops.csv`, `links.csv`, `nodes.csv`, `decisions.jsonl`, `fabric.json` and `summary.csv`
{packed}
| trial | policy | sweep point | repeat | verdict |
|---|---|---|---|---|
{chr(10).join(rows)}

## Repeat it

    testbed rerun {first.get("config_hash")}/{first.get("repeat")}    # one trial; says what differs on your machine
    testbed report .                      # draw the report again

A trial is INVALID when the emulation, not the system under test, may have made its numbers; the reasons are in its manifest.

## Tables

Units are part of the names. An empty cell means not applicable. Instants (`_ns`) are CLOCK_MONOTONIC of the one machine that ran
all nodes, so those of different nodes can be subtracted. Latency is `completed_ns - scheduled_ns`.

{tables_markdown()}

## Metrics of `summary.csv` and `table.csv`

{metrics_markdown()}

## Parts of a latency

{components_markdown()}

## Validity checks

{limits_markdown()}
"""


def _point(trial: Trial) -> str:
    point: dict[str, Any] = trial.sweep_point
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "-"
