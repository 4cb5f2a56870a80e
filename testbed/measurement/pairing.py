"""Pairs the requests of two policies: the same arrival, sample and trace offset on both sides, or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.errors import InputError
from testbed.measurement.metrics import COMPONENT, request_frame
from testbed.measurement.trial import Trial

ARRIVAL_TOLERANCE_NS = 1_000
_SHOWN = 6  # reasons in a message
_NOT_CONDITIONS = ("name", "description", "repeats", "sweep", "policies", "validity", "oracle")


@dataclass(frozen=True)
class Pairs:
    """Measured requests of both sides, row by row the same request (or, unpaired, just those of each side)."""

    a: pd.DataFrame
    b: pd.DataFrame
    paired: bool
    differs: tuple[str, ...]  # configuration keys that are not the same: the treatment


def pair(a: Sequence[Trial], b: Sequence[Trial], *, paired: bool = True) -> Pairs:
    """Line up the requests of two groups of trials, repeat by repeat.

    Raises InputError when repeats, requests, arrivals, samples or the offsets of traces are not the same, unless `paired`
    is off; then nothing is lined up.
    """
    differs = tuple(config_differences(a[0], b[0]))
    if not paired:
        return Pairs(request_frame(a), request_frame(b), False, differs)
    first, second = ({_repeat(trial): trial for trial in side} for side in (a, b))
    reasons = [] if first.keys() == second.keys() else [
        f"repeats {sorted(first)} of {a[0].policy} and {sorted(second)} of {b[0].policy}"]
    for repeat in sorted(first.keys() & second.keys()):
        reasons += [f"repeat {repeat}: {reason}" for reason in condition_differences(first[repeat], second[repeat])]
    if reasons:
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise InputError(f"the two did not meet the same conditions ({'; '.join(reasons[:_SHOWN])}{more})",
                         key=f"{a[0].label} / {b[0].label}",
                         remedy="run both from one scenario with one seed, or compare them with --unpaired")
    order = sorted(first)
    left, right = request_frame([first[r] for r in order]), request_frame([second[r] for r in order])
    right = right.set_index(["trial", "request_id"]).reindex(pd.MultiIndex.from_frame(left[["trial", "request_id"]]))
    right = right.reset_index()
    for frame, other in ((left, right), (right, left)):  # a component that one side never has took no time there
        for name in other.columns:
            if name.startswith(COMPONENT) and name not in frame.columns:
                frame[name] = pd.Series(0.0, index=frame.index).where(frame["ok"] & frame["latency_s"].notna())
    return Pairs(left, right, True, differs)


def condition_differences(a: Trial, b: Trial) -> list[str]:
    """What forbids a paired comparison of two trials, in words; empty when they met the same conditions."""
    found = []
    one, two = (_measured(trial) for trial in (a, b))
    if set(one.index) != set(two.index):
        only = len(set(one.index) ^ set(two.index))
        return [f"{only} of the measured requests exist on one side only"]
    two = two.loc[one.index]
    samples = int((one["sample_index"] != two["sample_index"]).fillna(False).sum())
    if samples:
        found.append(f"{samples} of {len(one)} requests sent another sample")
    if not _closed(a) or not _closed(b):
        due_a, due_b = one["scheduled_ns"] - _start(a, one), two["scheduled_ns"] - _start(b, two)
        moved = int(((due_a - due_b).abs() > ARRIVAL_TOLERANCE_NS).sum())
        if moved:
            found.append(f"{moved} of {len(one)} requests arrived at another time")
    return found + _trace_differences(a, b)


def config_differences(a: Trial, b: Trial) -> list[str]:
    """Keys of the configuration that differ, each with both values: what is compared."""
    flat_a, flat_b = (_flat(trial.manifest.get("config") or {}) for trial in (a, b))
    keys = [key for key in dict.fromkeys([*flat_a, *flat_b]) if flat_a.get(key) != flat_b.get(key)]
    words = [f"{key}: {_short(flat_a.get(key))} / {_short(flat_b.get(key))}" for key in keys
             if key.split(".")[0] not in _NOT_CONDITIONS]
    return ([f"policy: {a.policy} / {b.policy}"] if a.policy != b.policy else []) + words


def _trace_differences(a: Trial, b: Trial) -> list[str]:
    found = []
    sides_a, sides_b = _traces(a), _traces(b)
    for name in dict.fromkeys([*sides_a, *sides_b]):
        one, two = sides_a.get(name), sides_b.get(name)
        if one is None or two is None:
            found.append(f"link {name} replays a trace on one side only")
        elif one.get("sha256") != two.get("sha256"):
            found.append(f"link {name} replays another trace")
        elif (one.get("offset_ns") or 0) != (two.get("offset_ns") or 0):
            found.append(f"link {name} began its trace {(one.get('offset_ns') or 0) / 1e9:.3f} s in and "
                         f"{(two.get('offset_ns') or 0) / 1e9:.3f} s in")
    return found


def _traces(trial: Trial) -> dict[str, Mapping[str, Any]]:
    return {f"{link.get('name')} {side}": link[side]["trace"] for link in trial.manifest.get("links") or []
            for side in ("up", "down") if isinstance((link.get(side) or {}).get("trace"), Mapping)}


def _measured(trial: Trial) -> pd.DataFrame:
    rows = trial.requests[trial.requests["phase"].fillna("measure").eq("measure")]
    return rows.drop_duplicates("request_id").set_index("request_id")


def _start(trial: Trial, rows: pd.DataFrame) -> int:
    named = (trial.manifest.get("clock") or {}).get("start_ns")
    return int(named if named is not None else rows["scheduled_ns"].min())


def _closed(trial: Trial) -> bool:
    """With closed arrivals a request is due when the answer before it is there: no schedule to compare."""
    return ((trial.manifest.get("config") or {}).get("load") or {}).get("arrivals") == "closed"


def _repeat(trial: Trial) -> int:
    return int(trial.manifest.get("repeat") or 0)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: item for name, inner in value.items() for key, item in _flat(inner, f"{prefix}{name}.").items()}
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {key: item for i, inner in enumerate(value) for key, item in
                _flat(inner, f"{prefix}{_item_name(inner, i)}.").items()}
    return {prefix[:-1]: value}


def _item_name(item: Any, index: int) -> str:
    return str(item["name"]) if isinstance(item, Mapping) and "name" in item else str(index)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
