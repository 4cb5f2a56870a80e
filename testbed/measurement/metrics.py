"""Metrics as data: each has a name, a unit, a formula, and what it aggregates over the measured requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from testbed.measurement.components import UNACCOUNTED, component_order, components
from testbed.measurement.nominal import nominal_accuracy
from testbed.measurement.records import LIST_SEPARATOR, latency_s
from testbed.measurement.stats import (
    Units,
    quantile_interval,
    ratio_interval,
    samples_needed,
    share_interval,
    too_few_samples,
    units_of,
)
from testbed.measurement.trial import Trial

Aggregate = Literal["count", "mean", "ratio", "quantile", "max"]
ORACLE_COLUMNS = ("oracle_latency_s", "oracle_hit", "chosen_latency_s", "static_latency_s")  # taken over from `oracle`
COMPONENT = "component: "  # prefix of the component columns of the request frame


@dataclass(frozen=True)
class Metric:
    """One metric. `of` gives a value per measured request (NaN: not applicable), `aggregate` says what becomes of it.

    count: how many values are above zero. mean: their mean. ratio: sum of `of` over sum of `per`.
    quantile: the ceil(q n)-th smallest value, blank when n is below `stats.samples_needed`. max: the largest.
    `needs`: a column of the request frame without which there is no such metric.
    """

    name: str
    unit: str
    formula: str
    aggregate: Aggregate
    of: Callable[[pd.DataFrame], pd.Series]
    per: Callable[[pd.DataFrame], pd.Series] | None = None
    quantile: float = 0.0
    needs: str = ""
    signed: bool = False  # a difference: its interval may reach below zero


@dataclass(frozen=True)
class Estimate:
    """A metric's value over one or more pooled trials, with its confidence interval where one exists."""

    metric: str
    unit: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    note: str = ""


def request_frame(trials: Sequence[Trial]) -> pd.DataFrame:
    """Return the measured requests of pooled trials, in time order, with derived columns.

    Added: `trial` (number), `tier_device`, `latency_s`, `ok`, `bytes_up`, `bytes_down`, `offloaded`, `cost`,
    `nominal_accuracy`, ORACLE_COLUMNS where a trial has them, and one column per component of the latency (seconds, NaN for
    requests that were not answered).
    """
    frames = []
    for number, trial in enumerate(trials):
        requests = trial.requests[trial.requests["phase"].fillna("measure") == "measure"]
        frame = requests.sort_values("scheduled_ns", kind="stable").reset_index(drop=True)
        frame = frame.assign(trial=number, latency_s=latency_s(frame), ok=frame["status"].eq("ok").fillna(False))
        parts = components(frame, trial.hops, trial.tier_of)
        frame = frame.join(parts.add_prefix(COMPONENT), on="request_id")
        frame = frame.assign(
            bytes_up=_hop_bytes(frame, trial.hops, "up", "request_bytes"),
            bytes_down=_hop_bytes(frame, trial.hops, "down", "response_bytes"),
            offloaded=_offloaded(frame, trial),
            cost=costs(frame, trial), nominal_accuracy=nominal_accuracy(frame, trial.manifest),
        )
        if len(trial.oracle):
            frame = frame.join(trial.oracle.set_index("request_id")[list(ORACLE_COLUMNS)], on="request_id")
        frames.append(frame)
    joined = pd.concat(frames, ignore_index=True)
    for name in [column for column in joined.columns if column.startswith(COMPONENT)]:
        joined[name] = joined[name].fillna(0.0).where(joined["ok"] & joined["latency_s"].notna())
    return joined


def metrics_for(frame: pd.DataFrame, tiers: Sequence[str] = ()) -> list[Metric]:
    """All metrics that apply to this frame: the fixed ones, then one per exit and per component that occurs."""
    exits = sorted(str(value) for value in frame.loc[frame["ok"], "exit_id"].dropna().unique())
    names = component_order([c.removeprefix(COMPONENT) for c in frame.columns if c.startswith(COMPONENT)], tiers)
    families = [_exit_share(value) for value in exits]
    for name in names:
        families += [_time_mean(name), _time_share(name)]
    return [*(m for m in METRICS if not m.needs or m.needs in frame.columns), *families]


def evaluate(metric: Metric, frame: pd.DataFrame, units: Units | None = None, *, seed: int = 0) -> Estimate:
    """Compute one metric; `units` (see `stats.units_of`) turns the confidence interval on.

    A percentile of too few samples is blank, and `note` says why; so it does where there is a value but no interval.
    """
    values = metric.of(frame).to_numpy("float64", na_value=np.nan)
    used = np.isfinite(values)
    x = values[used]
    if metric.aggregate == "count":
        return Estimate(metric.name, metric.unit, float((x > 0).sum()), None, None, len(frame))
    if not len(x):
        return Estimate(metric.name, metric.unit, None, None, None, 0, "not applicable: no such request")
    if metric.aggregate == "max":
        return Estimate(metric.name, metric.unit, float(x.max()), None, None, len(x))
    if metric.aggregate == "quantile" and len(x) < samples_needed(metric.quantile):
        return Estimate(metric.name, metric.unit, None, None, None, len(x),
                        f"blank: {too_few_samples(len(x), metric.quantile)}")
    below = np.ones_like(x) if metric.per is None else metric.per(frame).to_numpy("float64", na_value=0.0)[used]
    if below.sum() == 0:
        return Estimate(metric.name, metric.unit, None, None, None, 0, "not applicable: nothing to divide by")
    if metric.aggregate == "quantile":
        value = float(np.sort(x)[int(np.ceil(metric.quantile * len(x))) - 1])
    else:
        value = float(x.sum() / below.sum())
    if units is None:
        return Estimate(metric.name, metric.unit, value, None, None, len(x))
    own = units.take(used)
    if metric.aggregate == "quantile":
        found = quantile_interval(x, metric.quantile, own)
    elif metric.aggregate == "mean" and np.isin(x, (0.0, 1.0)).all() and metric.unit == "share":
        found = share_interval(x, own)
    else:
        found = ratio_interval(x, below, own, seed=seed, signed=metric.signed)
    note = f"no interval: {found.reason}" if found.reason else ""
    return Estimate(metric.name, metric.unit, value, found.low, found.high, len(x), note)


def evaluate_all(trials: Sequence[Trial], *, intervals: bool = True, seed: int = 0) -> list[Estimate]:
    """All metrics of trials of one policy and sweep point (repeats are pooled)."""
    frame = request_frame(trials)
    units = units_of(frame["trial"].to_numpy("int64")) if intervals and len(frame) else None
    return [evaluate(metric, frame, units, seed=seed) for metric in metrics_for(frame, trials[0].tiers)]


def _ok(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].astype("Float64").where(frame["ok"])


def _flag(condition: pd.Series) -> pd.Series:
    return condition.fillna(False).astype("float64")


def _ones(frame: pd.DataFrame) -> pd.Series:
    return pd.Series(1.0, index=frame.index)


METRICS: tuple[Metric, ...] = (
    Metric("requests", "", "requests scheduled in the measured phase", "count", _ones),
    Metric("ok", "", "requests that were answered", "count", lambda f: _flag(f["ok"])),
    Metric("failed", "", "requests that failed or were dropped; they stay in every share below", "count",
           lambda f: _flag(~f["ok"])),
    Metric("accuracy", "share", "correct answers / answered requests that have a label", "mean",
           lambda f: _ok(f, "correct")),
    Metric("effective_accuracy", "share", "mean accuracy, in the catalogue, of the models that answered, over answered requests; "
           "blank when an early exit answered one", "mean", lambda f: f["nominal_accuracy"]),
    Metric("correct_in_time", "share", "requests answered correctly within their deadline / all requests", "mean",
           lambda f: _flag(f["ok"] & f["correct"].fillna(False) & f["deadline_met"].fillna(False))),
    Metric("latency_mean", "s", "mean of completed - scheduled over answered requests", "mean",
           lambda f: _ok(f, "latency_s")),
    Metric("latency_p50", "s", "half of the answered requests took at most this long", "quantile",
           lambda f: _ok(f, "latency_s"), quantile=0.50),
    Metric("latency_p95", "s", "95% of the answered requests took at most this long", "quantile",
           lambda f: _ok(f, "latency_s"), quantile=0.95),
    Metric("latency_p99", "s", "99% of the answered requests took at most this long", "quantile",
           lambda f: _ok(f, "latency_s"), quantile=0.99),
    Metric("latency_max", "s", "longest latency of an answered request", "max", lambda f: _ok(f, "latency_s")),
    Metric("deadline_hit", "share", "requests answered within their deadline / requests that have one; "
           "failed ones count as missed", "mean",
           lambda f: _flag(f["ok"] & f["deadline_met"].fillna(False)).where(f["deadline_s"].notna())),
    Metric("bytes_up", "bytes", "message bytes (header and payload) sent towards the cloud, over all hops, / requests",
           "mean", lambda f: f["bytes_up"]),
    Metric("bytes_down", "bytes", "message bytes sent towards the device, over all hops, / requests", "mean",
           lambda f: f["bytes_down"]),
    Metric("offload", "share", "requests that a tier beyond the device took part in / requests", "mean",
           lambda f: f["offloaded"]),
    Metric("fallback", "share", "requests that the device answered by its fallback after a remote step failed / requests",
           "mean", lambda f: _flag(f["ok"] & f["error_type"].str.startswith("fallback").fillna(False))),
    Metric("decision_p50", "s", "half of the decisions took at most this long", "quantile",
           lambda f: f["decision_duration_s"].astype("Float64"), quantile=0.5),
    Metric("backup", "share", "requests whose backup was started on the device / requests", "mean",
           lambda f: _flag(f["backup"].notna())),
    Metric("backup_won", "share", "requests that their backup answered / requests", "mean",
           lambda f: _flag(f["backup"].eq("won"))),
    Metric("duplicates", "share", "requests that both plan and backup answered / requests", "mean",
           lambda f: _flag(f["duplicates"] > 0)),
    Metric("cost_per_1000", "currency", "price of all computations on tiers that are paid for (`prices:` of the scenario: "
           "invocations + time x memory; the currency is in the manifest), duplicates too, / requests x 1000", "mean",
           lambda f: f["cost"] * 1000),
    Metric("cold_start", "share", "requests that waited for a model to be loaded from disk / answered requests", "mean",
           lambda f: _cold(f)),
    Metric("unaccounted_max", "s", "longest part of a request's latency that no hop explains", "max",
           lambda f: f[COMPONENT + UNACCOUNTED]),
    Metric("oracle_latency", "s", "mean latency of the best plan in hindsight, had each request been alone", "mean",
           lambda f: f["oracle_latency_s"], needs="oracle_latency_s"),
    Metric("oracle_hit", "share", "requests that some plan could have answered within the deadline / requests", "mean",
           lambda f: _flag(f["oracle_hit"]).where(f["oracle_hit"].notna()), needs="oracle_hit"),
    Metric("regret_mean", "s", "mean over answered requests of latency - latency of the best plan in hindsight", "mean",
           lambda f: _ok(f, "latency_s") - f["oracle_latency_s"], needs="oracle_latency_s", signed=True),
    Metric("regret_p95", "s", "95% of the answered requests have at most this much of that difference", "quantile",
           lambda f: _ok(f, "latency_s") - f["oracle_latency_s"], quantile=0.95, needs="oracle_latency_s"),
    Metric("regret_decision", "s", "mean of predicted latency of the chosen plan - of the best: the decision's own part of the "
           "regret", "mean", lambda f: f["chosen_latency_s"] - f["oracle_latency_s"], needs="chosen_latency_s", signed=True),
    Metric("regret_static", "s", "mean over answered requests of latency - predicted latency of the best fixed plan", "mean",
           lambda f: _ok(f, "latency_s") - f["static_latency_s"], needs="static_latency_s", signed=True),
)

# families: one metric per exit or component that occurs; named here for the glossary
FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("exit_share[EXIT]", "share", "answered requests that left at this exit / answered requests"),
    ("time[COMPONENT]", "s", "mean time of this component over answered requests"),
    ("time_share[COMPONENT]", "share", "time of this component / latency, both summed over answered requests"),
)

# components of the latency, for the glossary and the report's legend
COMPONENT_MEANINGS: tuple[tuple[str, str], ...] = (
    ("issue", "from the scheduled instant until the load generator handed the request over"),
    ("dispatch queue", "waiting on the device for one of its `load.queue` workers, before the policy is asked"),
    ("decision", "the policy's own computing time"),
    ("backup wait", "of a request that its backup answered: the time that the plan was given before the backup was started"),
    ("TIER queue", "waiting for a worker on a node of this tier"),
    ("TIER load", "loading a cold model from disk on a node of this tier"),
    ("TIER compute", "model running on a node of this tier (a compute profile's hold included)"),
    ("encode", "codec of what is sent, on any node"),
    ("TIER-TIER up", "from the first byte handed to the socket until the receiver read the last: "
     "link queue, transmission, propagation"),
    ("downlink", "the same for everything on its way back to the device"),
    ("failed attempt", "a transfer that got no answer, until the next attempt or the fallback began"),
    ("unaccounted", "what no recorded interval covers; must stay below 1 ms"),
)


def _exit_share(value: str) -> Metric:
    return Metric(f"exit_share[{value}]", "share", "answered requests that left at this exit / answered requests",
                  "mean", lambda f: _flag(f["exit_id"] == value).where(f["ok"]))


def _time_mean(name: str) -> Metric:
    return Metric(f"time[{name}]", "s", "mean time of this component over answered requests", "mean",
                  lambda f: f[COMPONENT + name])


def _time_share(name: str) -> Metric:
    return Metric(f"time_share[{name}]", "share", "time of this component / latency, summed over answered requests",
                  "ratio", lambda f: f[COMPONENT + name], per=lambda f: _ok(f, "latency_s"))


def _hop_bytes(frame: pd.DataFrame, hops: pd.DataFrame, direction: str, fallback: str) -> pd.Series:
    """Message bytes per request in one direction; the request row's own count where there are no hop rows."""
    rows = hops[hops["direction"].eq(direction).fillna(False)]
    if not len(rows):
        return frame[fallback].astype("float64") if not len(hops) else pd.Series(0.0, index=frame.index)
    size = rows["payload_bytes"].fillna(0).astype("float64") + rows["header_bytes"].fillna(0).astype("float64")
    per_request = size.groupby(rows["request_id"]).sum()
    return frame["request_id"].map(per_request).astype("float64").fillna(0.0)


def _cold(frame: pd.DataFrame) -> pd.Series:
    """1.0 where a computation of the request had to load its model first; NaN where no node ever unloads."""
    loads = [name for name in frame.columns if name.startswith(COMPONENT) and name.endswith(" load")]
    if not loads:
        return pd.Series(np.nan, index=frame.index)
    return frame[loads].sum(axis=1).gt(0).astype("float64").where(frame["ok"])


def costs(frame: pd.DataFrame, trial: Trial) -> pd.Series:
    """Cost per request in the scenario's currency, by its prices; NaN where the scenario has none."""
    prices = ((trial.manifest.get("config") or {}).get("prices") or {}).get("tiers")
    if not prices:
        return pd.Series(np.nan, index=frame.index)
    rows = trial.hops[trial.hops["compute_end_ns"].notna()]
    price = rows["dst_node"].map(lambda node: prices.get(trial.tier_of.get(node, node)))
    rows, price = rows[price.notna()], price[price.notna()]
    loading_ns = rows["load_ns"].fillna(0).astype("float64") if "load_ns" in rows else 0.0
    duration_s = ((rows["compute_end_ns"] - rows["compute_start_ns"]).astype("float64") + loading_ns) / 1e9
    rate_per_s = price.map(lambda p: p["per_gb_s"] * float(p["memory"].removesuffix("B")) / 1e9).astype("float64")
    each = price.map(lambda p: p["per_invocation"]).astype("float64") + duration_s * rate_per_s
    return frame["request_id"].map(each.groupby(rows["request_id"]).sum()).astype("float64").fillna(0.0)


def _offloaded(frame: pd.DataFrame, trial: Trial) -> pd.Series:
    """1.0 where a tier other than the device's took part (by tiers_used, else by the final node)."""
    device = trial.device_tier

    def beyond(value: object) -> bool:
        return any(tier != device for tier in str(value).split(LIST_SEPARATOR))

    by_tiers = frame["tiers_used"].map(beyond, na_action="ignore")
    by_node = frame["final_node"].map(lambda node: trial.tier_of.get(node, node) != device, na_action="ignore")
    return by_tiers.fillna(by_node).astype("float64")
