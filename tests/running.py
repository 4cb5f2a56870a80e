"""How tests run the `testbed` command, and a shortened quickstart, as a user would."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "scenarios" / "quickstart.yaml"
SHORT = ["--set", "load.requests_per_device=25", "--set", "load.warmup_requests=3", "--set", "load.rate_per_s=5"]


def command(*words: str | Path, cwd: Path | None = None, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the `testbed` command; output is captured."""
    return subprocess.run([sys.executable, "-m", "testbed", *map(str, words)], capture_output=True, text=True,
                          timeout=timeout_s, cwd=cwd or ROOT, stdin=subprocess.DEVNULL, check=False,
                          env={**os.environ, "COLUMNS": "120"})


def run_short(runs: Path, *more: str, scenario: Path = QUICKSTART) -> subprocess.CompletedProcess[str]:
    """`testbed run` of a scenario made short."""
    done = command("run", scenario, "--runs", runs, *SHORT, *more)
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    return done


def logs(runs: Path) -> str:
    """The trials' own logs, for the message of a test that fails."""
    return "\n".join(f"--- {p}\n{p.read_text()[-2000:]}" for p in sorted(runs.rglob("*.log")) if p.stat().st_size)


def trial_folders(runs: Path) -> Sequence[Path]:
    """Folders of all complete trials."""
    return sorted(p.parent for p in runs.rglob("status.json") if json.loads(p.read_text())["state"] == "complete")
