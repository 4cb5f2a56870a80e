"""The `testbed` command: one module per group of commands, loaded only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# command -> (module, attribute, help); modules are imported on first use, so `testbed --help` stays fast
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("testbed.cli.run", "app", "Run a scenario and judge it."),
    "validate": ("testbed.cli.validate", "app", "Check a scenario or topology file; touch nothing."),
    "schema": ("testbed.cli.schema", "app", "Print the JSON Schema of the files, for editors."),
    "report": ("testbed.cli.report", "app", "Draw the HTML report of a run again."),
    "rerun": ("testbed.cli.rerun", "app", "Repeat a finished trial from its manifest, and say what differs."),
    "export": ("testbed.cli.export", "app", "Pack a run into one archive: tables, manifests, report, content."),
    "init": ("testbed.cli.init", "app", "Write an editable copy of the shipped content."),
    "replay-decisions": ("testbed.cli.replay_decisions", "app", "Make a trial's decisions again from its log alone."),
    "check-policy": ("testbed.cli.check_policy", "app", "Check that a policy conforms, before it is run."),
    "analytic": ("testbed.cli.analytic", "app", "Token-bucket trials beside the analytic policy on the same images."),
    "compare": ("testbed.cli.compare", "app", "Difference between two policies on the same requests."),
    "shell": ("testbed.cli.shell", "app", "Build a network with its nodes running, and take commands."),
    "topo": ("testbed.cli.topo", "app", "Draw a topology in the terminal and as SVG."),
    "doctor": ("testbed.cli.doctor", "app", "Say what this machine can do and what will be used."),
    "models": ("testbed.cli.models", "app", "List and train the models of the catalogue."),
    "profile": ("testbed.cli.profile", "app", "Measure a compute profile on this machine."),
    "data": ("testbed.cli.data", "app", "List, check and get data sets."),
    "traces": ("testbed.cli.traces", "app", "List, inspect, plot, convert, generate and get traces."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `testbed` command; returns the exit code."""
    from testbed.errors import TestbedError

    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        from testbed import __version__

        print(f"testbed {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"testbed: unknown command {args[0]!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, attribute, _ = COMMANDS[args[0]]
    try:
        app = getattr(importlib.import_module(module), attribute)
        app(args=args[1:], prog_name=f"testbed {args[0]}", standalone_mode=True)  # ends with SystemExit
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: testbed COMMAND [ARGS...]   (testbed COMMAND --help)", "", "commands:"]
    lines += [f"  {name:<16} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(lines)
