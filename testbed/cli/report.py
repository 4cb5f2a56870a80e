"""`testbed report RUN`: draw the report and the tables of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/quickstart; a bare "
                                        "name is looked up in runs/.")],
    figures: Annotated[bool, typer.Option("--figures", help="Also save every figure as SVG and PNG in "
                                          "RUN/figures.")] = False,
    chrome_trace: Annotated[bool, typer.Option("--chrome-trace", help="Also write every request of each trial as a Chrome trace "
                                               "to RUN/chrome-traces.")] = False,
    perf_csv: Annotated[bool, typer.Option("--perf-csv", help="Also write RUN/perf_analyzer.csv, in the columns of Triton's "
                                           "perf_analyzer.")] = False,
    judge: Annotated[bool, typer.Option("--judge", help="Judge again with this version's checks; stored verdicts "
                                        "stay as they are.")] = False,
) -> None:
    """Evaluate the trials of RUN again, write table.csv, summary.csv and report.html, and print the table."""
    from rich.console import Console

    from testbed.measurement.figures import save_figures
    from testbed.measurement.perf_csv import write_perf_csv
    from testbed.measurement.report import render_report
    from testbed.measurement.spans import write_chrome_traces
    from testbed.measurement.summary import group_trials, write_run_tables
    from testbed.measurement.terminal import footer, plan_table
    from testbed.measurement.trial import load_run, rejudged, run_folder

    folder = run_folder(run)
    trials = load_run(folder)
    if judge:
        trials = [rejudged(trial) for trial in trials]
    groups = group_trials(trials)
    write_run_tables(folder, groups)
    path = render_report(folder, groups=groups)
    console = Console()
    console.print(plan_table(groups, console.width))
    console.print(footer(groups, path))
    if figures:
        saved = save_figures(folder, groups=groups)
        console.print(f"figures: {len(saved)} files in {saved[0].parent}")
    if chrome_trace:
        written = write_chrome_traces(folder / "chrome-traces", trials)
        console.print(f"Chrome traces: {len(written)} files in {written[0].parent}")
    if perf_csv:
        console.print(f"perf_analyzer columns: {write_perf_csv(folder, groups)}")
