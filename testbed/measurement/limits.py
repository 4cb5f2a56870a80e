"""Limits of the validity checks: the one place where they are listed, with default, unit and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from testbed.errors import InputError

OnFail = Literal["fail", "warn", "off"]


@dataclass(frozen=True)
class Limit:
    """One limit. `at_least` turns it round: the value must not be below it."""

    name: str
    default: float
    unit: str
    what: str
    why: str
    at_least: bool = False


LIMITS: tuple[Limit, ...] = (
    Limit("issue_delay_p99_s", 0.005, "s", "p99 of issued minus scheduled, over measured requests",
          "a late load generator lengthens every latency by its own lateness"),
    Limit("apply_lag_p99_steps", 0.5, "step", "p99 lateness of shaper updates, in replay steps, worst link",
          "above half a step, neighbouring values of the trace blur into each other"),
    Limit("missed_steps_share", 0.01, "share", "shaper updates that were skipped, worst link",
          "a missed step withholds that step's capacity"),
    Limit("delivered_error", 0.05, "share", "bytes delivered against bytes the trace allowed, over busy windows",
          "the link did not have the bandwidth of its trace"),
    Limit("delay_late_p99_s", 0.002, "s", "p99 lateness of frames in the delay line",
          "frames that leave late lengthen every round trip"),
    Limit("rate_error", 0.05, "share", "calibrated rate against the asked rate (and 50 kbit/s), worst link",
          "the link is not the one that the file describes"),
    Limit("rtt_error_s", 0.003, "s", "calibrated round trip against the asked one (and 5%), worst link",
          "the link is not the one that the file describes"),
    Limit("cpu_busy_share", 0.2, "share", "share of 100 ms windows in which all cores together were above 95% busy",
          "the processes under test waited for this machine, not for their own tier"),
    Limit("cpu_steal_share", 0.05, "share", "CPU time that the hypervisor gave to others",
          "the machine stood still without knowing it"),
    Limit("throttled_share", 0.01, "share", "share of time in which a CPU quota that the file does not name held a "
          "node back", "a quota delays short jobs unevenly; it is no model of a slower host"),
    Limit("compute_overrun_share", 0.05, "share", "computations that took longer than their profile's service time "
          "(by 5% and 1 ms)", "the emulated host was slower than its profile says"),
    Limit("memo_miss_share", 0.01, "share", "computations on memoised nodes whose output was not stored and had to be computed",
          "computing takes this machine's time, and the first miss of a node loads torch"),
    Limit("samples", 90, "requests", "answered requests needed for the percentiles that the table shows "
          "(90 for p95, 459 for p99)", "of fewer samples it is too likely that none lies beyond the percentile", at_least=True),
    Limit("unaccounted_p99_s", 0.001, "s", "p99 of the part of a latency that no hop explains",
          "the breakdown per hop leaves something out"),
    Limit("order_violations", 0, "rows", "rows whose instants run backwards",
          "clocks or tables are wrong"),
    Limit("link_bytes_error", 0.03, "share", "bytes counted by the kernel against messages plus headers, worst link",
          "traffic by-passed a link, or something else used it"),
)
NAMES = tuple(limit.name for limit in LIMITS)


@dataclass(frozen=True)
class Limits:
    """Limits in force for a trial: a value and what exceeding it does, per name."""

    values: Mapping[str, float]
    on_fail: Mapping[str, OnFail]

    @classmethod
    def of(cls, overrides: Mapping[str, Any] | None = None, *, calibration: Mapping[str, Any] | None = None,
           file: str | Path | None = None) -> Limits:
        """Defaults, then the scenario's `calibration:` tolerances, then its `validity:` mapping.

        An entry of `validity:` is a number, or `{limit: 0.3, on_fail: warn}` with on_fail fail, warn or off.
        Raises InputError for an unknown name or a value that is not a number of at least zero.
        """
        values = {limit.name: float(limit.default) for limit in LIMITS}
        actions: dict[str, OnFail] = dict.fromkeys(NAMES, "fail")
        for key, name in (("rate_tolerance", "rate_error"), ("rtt_tolerance", "rtt_error_s")):
            tolerance = (calibration or {}).get(key)
            if isinstance(tolerance, str):  # a resolved configuration writes durations in seconds, as "0.003s"
                tolerance = float(tolerance.removesuffix("s"))
            if isinstance(tolerance, int | float):
                values[name] = float(tolerance)
        for name, entry in (overrides or {}).items():
            where = f"validity.{name}"
            if name not in values:
                raise InputError("is not a validity check", file=file, key=where, value=name,
                                 remedy=f"use one of {', '.join(NAMES)}")
            if isinstance(entry, Mapping):
                unknown = sorted(set(entry) - {"limit", "on_fail"})
                if unknown:
                    raise InputError("unknown key", file=file, key=f"{where}.{unknown[0]}",
                                     remedy="use limit and on_fail")
                action = entry.get("on_fail", "fail")
                if action not in ("fail", "warn", "off"):
                    raise InputError("is not an action", file=file, key=f"{where}.on_fail", value=action,
                                     remedy="use fail, warn or off")
                actions[name] = action
                entry = entry.get("limit", values[name])
            if isinstance(entry, bool) or not isinstance(entry, int | float) or not entry >= 0:
                raise InputError("must be a number of at least zero", file=file, key=where, value=entry,
                                 remedy=f"write for example {name}: {values[name]:g}")
            values[name] = float(entry)
        return cls(values, actions)
