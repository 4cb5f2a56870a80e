"""What a software-defined network did about links that failed: in words, for the terminal and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from testbed.measurement.trial import Trial

PREFIX = "port_down "  # how the controller names the cause, before the link


def reroute_gaps(trial: Trial) -> dict[str, list[float]]:
    """Link that failed -> seconds from the failure until the last switch had its new rules, once per failure.

    Where the failure is not in the manifest's events: from the switch's message instead.
    """
    gaps: dict[str, list[float]] = defaultdict(list)
    events = [e for e in trial.manifest.get("events") or [] if e.get("t_ns") is not None]
    for change in (trial.manifest.get("sdn") or {}).get("reroutes") or []:
        if not str(change["cause"]).startswith(PREFIX):
            continue
        link = str(change["cause"]).removeprefix(PREFIX)
        cuts = [int(e["t_ns"]) for e in events if e.get("link") == link and int(e["t_ns"]) <= int(change["began_ns"])]
        gaps[link].append((int(change["t_ns"]) - max(cuts, default=int(change["began_ns"]))) / 1e9)
    return dict(gaps)


def reroute_words(trials: Sequence[Trial]) -> list[str]:
    """For example ``edge1-cloud1 failed: re-routed after 9.8 to 14.1 ms (3 times)``; empty without such a failure."""
    together: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        for link, gaps in reroute_gaps(trial).items():
            together[link] += gaps
    words = []
    for link, gaps in sorted(together.items()):
        low, high = min(gaps) * 1e3, max(gaps) * 1e3
        span = f"{low:.1f} to {high:.1f} ms ({len(gaps)} times)" if len(gaps) > 1 else f"{high:.1f} ms"
        words.append(f"{link} failed: re-routed after {span}")
    return words
