"""`testbed init DIR`: an editable copy of the shipped topologies, scenarios, nodes and traces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def init(folder: Path = typer.Argument(..., metavar="DIR", help="folder to write to; it is made when it is absent")) -> None:
    """Write an editable copy of the shipped content to DIR; nothing that is there is overwritten."""
    from testbed.experiment.shipped import write_copy

    files = write_copy(folder)
    for name, count in Counter(f.relative_to(folder).parts[0] for f in files).items():
        print(f"{folder / name}/: {count} files")
    print(f"now: testbed run {folder / 'scenarios' / 'quickstart.yaml'}")
