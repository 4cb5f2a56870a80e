"""`testbed shell TOPOLOGY`: build a network with its nodes running, and take commands."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import sys
import tempfile
import termios
import tty
from pathlib import Path
from typing import Any

import typer

from testbed.cli.options import parse_settings

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def shell(
    topology: Path = typer.Argument(..., help="topology file"),
    model: str = typer.Option("digits_branchy", help="model that the nodes load"),
    settings: list[str] = typer.Option([], "--set", help="key=value, as in testbed run (topology.tiers.edge.runtime=process)"),
    engine: str = typer.Option("auto", help="container engine: auto, podman or docker"),
) -> None:
    """Build TOPOLOGY with its nodes running and open Mininet's command line with ours: link, links, fail, heal, infer."""
    import yaml

    from testbed.emulation.container import choose_engine
    from testbed.emulation.reaper import Reaper
    from testbed.emulation.sandbox import Sandbox
    from testbed.errors import InputError
    from testbed.experiment.bundle import CATALOGUE
    from testbed.experiment.content import find_upwards
    from testbed.experiment.lab import lab_spec
    from testbed.experiment.shipped import shipped_content
    from testbed.experiment.trials import plan_experiment
    from testbed.inference.catalogue import load_catalogue
    from testbed.measurement.atomic import write_json_atomic
    from testbed.schema.files import load_topology

    if engine not in ("auto", "podman", "docker"):
        raise InputError("is no container engine", key="--engine", value=engine, remedy="use auto, podman or docker")
    overrides, sweep = parse_settings(settings)
    if sweep:
        raise InputError("a lab has no sweep", key="--set", value=next(iter(sweep)), remedy="give one value")
    first = load_topology(topology).tiers[-1].name
    catalogue = find_upwards(topology, CATALOGUE) or shipped_content() / CATALOGUE
    for number in (signal.SIGTERM, signal.SIGHUP):  # end orderly: the terminal is set back, the sandbox goes with us
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    scratch = Path(tempfile.mkdtemp(prefix="testbed-shell-"))
    try:
        scenario = scratch / "shell.yaml"
        scenario.write_text(yaml.safe_dump({
            "name": "shell", "topology": str(topology.resolve()), "model": model, "catalogue": str(catalogue),
            "dataset": load_catalogue(catalogue)[model].dataset, "calibration": {"mode": "off"},
            "policies": [{"name": "infer", "plan": "steps", "steps": [{"tier": first}]}],
            "load": {"requests_per_device": 1, "warmup_requests": 0, "arrivals": "periodic", "rate_per_s": 10}}))
        trial = plan_experiment(scenario, overrides).trials[0]
        if any(tier.runtime == "container" for tier in trial.scenario.topology.tiers):
            engine = choose_engine(engine).name
        spec = lab_spec(trial, engine)
        (scratch / "logs").mkdir()
        write_json_atomic(scratch / "trial.json", spec)
        with Reaper(spec["container_run_id"], engine):
            command = [sys.executable, "-m", "testbed.experiment.lab", str(scratch)]
            code = _in_terminal(command) if sys.stdin.isatty() else Sandbox.spawn(command).wait()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    raise typer.Exit(code)


def _in_terminal(command: list[str]) -> int:
    """Run a command in a sandbox with a terminal of its own, joined to ours: Ctrl-C is for what runs inside."""
    from testbed.emulation.sandbox import Sandbox

    master, slave = pty.openpty()
    size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    before: list[Any] = termios.tcgetattr(0)
    try:
        process = Sandbox.spawn(command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        tty.setraw(0)
        _relay(master)
        return process.wait(30)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(master)


def _relay(master: int) -> None:
    """Copy both ways until the other side is closed."""
    while True:
        for fd in select.select([0, master], [], [])[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:  # EIO: nobody holds the other side any more
                return
            if fd == master and not data:
                return
            os.write(1 if fd == master else master, data or b"\x04")
