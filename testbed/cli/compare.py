"""`testbed compare RUN_A RUN_B`: the difference between two policies on the same requests, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.measurement.summary import Group

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run, or trial, that is compared with; a bare name is looked "
                                          "up in runs/.")],
    run_b: Annotated[Path | None, typer.Argument(metavar="[RUN_B]", help="Run, or trial, that is compared. Without it, groups "
                                                 "of RUN_A are compared (--by).")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="KEY", help="policy, or a swept key: what tells the compared groups "
                                           "apart.")] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="With one run: the policy (or value) that the others are "
                                                 "compared with; the first by default.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write a page (.html) or a picture "
                                                "(.png, .svg).")] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Compare although arrivals, samples or trace offsets "
                                                 "differ.")] = False,
) -> None:
    """Print B - A per metric and per tier, with 95% intervals; refuse what did not meet the same conditions."""
    from rich.console import Console

    from testbed.measurement.comparison import compare as compare_groups
    from testbed.measurement.comparison_view import SUFFIXES, comparison_footer, comparison_table, write_comparison

    if output is not None and output.suffix not in SUFFIXES:
        raise InputError("is no kind of file that can be written", key="--output", value=str(output),
                         remedy=f"end the name in {', '.join(SUFFIXES)}")
    console = Console()
    comparisons = [compare_groups(a, b, paired=not unpaired, names=names) for a, b, names in
                   choose(run_a, run_b, by=by, baseline=baseline)]
    for comparison in comparisons:
        console.print(comparison_table(comparison, console.width))
        console.print(comparison_footer(comparison))
    if output is not None:
        console.print(f"written: {write_comparison(output, comparisons)}")


def choose(run_a: Path, run_b: Path | None, *, by: str | None = None,
           baseline: str | None = None) -> list[tuple[Group, Group, tuple[str, str]]]:
    """The pairs of groups to compare, with their names. Raises InputError when nothing matches."""
    from testbed.measurement.summary import group_trials
    from testbed.measurement.trial import load_run, run_folder

    sides = [group_trials(load_run(run_folder(path)), intervals=False) for path in (run_a, run_b) if path is not None]
    if len(sides) == 1:
        return _inside(sides[0], by, baseline)
    if baseline is not None:
        raise InputError("chooses among the groups of one run; two were given", key="--baseline", value=baseline,
                         remedy="leave it out: RUN_A is what RUN_B is compared with")
    return _between(sides[0], sides[1], by, (_name(run_a), _name(run_b or run_a)))


def _inside(groups: Sequence[Group], by: str | None, baseline: str | None) -> list[tuple[Group, Group, tuple[str, str]]]:
    """Groups of one run that differ in `by` alone, each against the baseline."""
    if by is None:
        raise InputError("one run alone needs what tells its groups apart", key="--by",
                         remedy="add --by policy (or a swept key), or name a second run")
    values = [str(_value(group, by)) for group in groups]
    chosen = values[0] if baseline is None else baseline
    if chosen not in values:
        raise InputError("is not in this run", key="--baseline", value=chosen,
                         remedy=f"use one of {', '.join(dict.fromkeys(values))}")
    found = [(a, b, (a.label, b.label)) for a, i in zip(groups, values, strict=True) if i == chosen
             for b, j in zip(groups, values, strict=True) if j != chosen and _rest(a, by) == _rest(b, by)]
    if not found:
        raise InputError("there is only one group to compare", key="--by", value=by, remedy="name a second run, or another key")
    return found


def _between(a: Sequence[Group], b: Sequence[Group], by: str | None,
             names: tuple[str, str]) -> list[tuple[Group, Group, tuple[str, str]]]:
    """The same group in both runs; two runs of a single group each are compared whatever they are."""
    def named(x: Group, y: Group) -> tuple[Group, Group, tuple[str, str]]:
        return x, y, (f"{names[0]}: {x.label}", f"{names[1]}: {y.label}")

    if len(a) == len(b) == 1:
        return [named(a[0], b[0])]
    def key(group: Group) -> object:
        return (group.policy, group.sweep_point) if by is None else _value(group, by)

    found = [named(x, y) for x in a for y in b if key(x) == key(y)]
    if not found:
        raise InputError("the two runs have no group in common", key="RUN_B", value=names[1],
                         remedy=f"A has {', '.join(g.label for g in a)}; B has {', '.join(g.label for g in b)}; "
                                "match them with --by policy, or give the folders of single trials")
    return found


def _value(group: Group, by: str) -> object:
    if by == "policy":
        return group.policy
    found = [value for key, value in group.sweep_point.items() if by in (key, key.rsplit(".", 1)[-1])]
    if not found:
        known = ", ".join(["policy", *group.sweep_point])
        raise InputError("tells no groups of this run apart", key="--by", value=by, remedy=f"use one of {known}")
    return found[0]


def _rest(group: Group, by: str) -> tuple[str | None, dict[str, object]]:
    """What must be equal on both sides."""
    if by == "policy":
        return None, dict(group.sweep_point)
    return group.policy, {k: v for k, v in group.sweep_point.items() if by not in (k, k.rsplit(".", 1)[-1])}


def _name(path: Path) -> str:
    return path.name or str(path)
