"""`testbed traces`: list, inspect, plot, convert, generate and get bandwidth traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from testbed.errors import InputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="List, inspect, plot, convert, generate and get bandwidth traces.")

FORMAT = typer.Option(None, "--format", help="format of the input, instead of finding it out")
COLUMN = typer.Option(None, "--column", help="which series, where a file holds several")
CLIP = typer.Option(None, "--clip", help="cut all rates to 0..RATE instead of refusing negative and absurd ones, e.g. 100mbit")


@app.command("list")
def list_traces(
    folder: Path = typer.Argument(Path("traces"), help="a folder of traces, searched with its sub-folders"),
    formats: bool = typer.Option(False, "--formats", help="list the formats that can be read instead"),
) -> None:
    """One line per trace of a folder: format, duration, mean rate; files that are no trace say why."""
    from testbed.traces import FORMATS
    from testbed.traces.registry import detect, read_source
    from testbed.traces.source import open_source

    if formats:
        for known in FORMATS:
            typer.echo(f"{known.name:<10} {'read+write' if known.write else 'read':<10}  {known.about}")
        return
    if not folder.is_dir():
        raise InputError("no such folder of traces", file=folder, remedy="name one, or get some: testbed traces get --list")
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        try:
            source = open_source(path)
            known = detect(source)
            choices = known.columns(source) if known.columns else []
            for column in choices or [None]:
                trace = read_source(source, format=known.name, column=column)
                label = f"{path.relative_to(folder)}{f'  --column {column}' if len(choices) > 1 else ''}"
                typer.echo(f"{label:<48} {known.name:<10} {trace.duration_ns / 1e9:8.1f} s {trace.mean_rate_bps / 1e6:9.2f} Mbit/s")
        except InputError as error:
            typer.echo(f"{str(path.relative_to(folder)):<48} -          {error.problem}")


@app.command()
def generate(
    prefix: Path = typer.Argument(..., help="writes PREFIX.up and PREFIX.down"),
    mobility: str = typer.Option("driving", help="static, walking or driving"),
    seed: int = typer.Option(1, help="same seed, same bytes"),
    duration: str = typer.Option("150s", help="period, a multiple of 20ms"),
    up: str = typer.Option("4mbit", help="mean rate of the uplink"),
    down: str = typer.Option("10mbit", help="mean rate of the downlink"),
    variability: float = typer.Option(1.0, help="factor on the standard deviations of the class"),
    outages_per_min: float | None = typer.Option(None, help="instead of the class's own rate"),
    to: str = typer.Option("csv", help="csv (exact) or mahimahi (1500-byte packets, rounded to 1 ms)"),
) -> None:
    """Make a synthetic LTE pair; docs/traces.md says how."""
    from testbed.schema.units import parse_duration_s
    from testbed.traces import save_trace
    from testbed.traces.generate import generate_pair

    duration_s = _quantity(parse_duration_s, duration, "--duration")
    up_bps, down_bps = _rate(up, "--up"), _rate(down, "--down")
    pair = generate_pair(mobility, seed, duration_s=duration_s, up_bps=up_bps, down_bps=down_bps,
                         variability=variability, outages_per_min=outages_per_min)
    command = f"testbed traces generate {prefix.name} --mobility {mobility} --seed {seed} --duration {duration} --up {up} --down {down}"
    if variability != 1.0:
        command += f" --variability {variability:g}"
    if outages_per_min is not None:
        command += f" --outages-per-min {outages_per_min:g}"
    for direction, trace in zip(("up", "down"), pair, strict=True):
        path = prefix.with_name(f"{prefix.name}.{direction}")
        save_trace(trace, path, format=to, comments=[f"synthetic, {direction}link, not a measurement; made by:", command])
        typer.echo(f"{path}: {trace.duration_ns / 1e9:g} s, mean {trace.mean_rate_bps / 1e6:.2f} Mbit/s")


def _quantity(parse: Callable[[object], float], text: str, key: str) -> float:
    """A quantity with unit from the command line; the parsers' `problem|remedy` becomes an `InputError`."""
    try:
        return parse(text)
    except ValueError as error:
        problem, _, remedy = str(error).partition("|")
        raise InputError(problem, key=key, value=text, remedy=remedy or None) from None


def _rate(text: str, key: str) -> float:
    from testbed.schema.units import parse_rate_bps

    return _quantity(parse_rate_bps, text, key)
