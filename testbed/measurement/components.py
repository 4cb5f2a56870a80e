"""Where the time of a request went: its hops laid on one time line, so that the parts add up to the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from testbed.measurement.records import latency_s

ISSUE, DISPATCH, DECISION, BACKUP_WAIT = "issue", "dispatch queue", "decision", "backup wait"
ENCODE, DOWNLINK, UNACCOUNTED = "encode", "downlink", "unaccounted"
ATTEMPT = "failed attempt"
# each part of a hop row: (component suffix, start column, end column)
_PARTS = (
    ("encode", "encode_start_ns", "encode_end_ns"),
    ("transfer", "send_start_ns", "recv_last_ns"),
    ("queue", "queue_start_ns", "turn_ns"),
    ("load", "turn_ns", "loaded_ns"),
    ("compute", "compute_start_ns", "compute_end_ns"),
)

IntArray = npt.NDArray[np.int64]


def component_order(names: Sequence[str], tiers: Sequence[str]) -> list[str]:
    """Sort component names along a request's way: issue, device, uplink, edge, ..., downlink, unaccounted."""

    def key(name: str) -> tuple[float, str]:
        fixed = {ISSUE: -5.0, DISPATCH: -4.0, DECISION: -3.0, BACKUP_WAIT: -2.0, ENCODE: 0.5, DOWNLINK: 1e6, ATTEMPT: 2e6,
                 UNACCOUNTED: 1e7}
        if name in fixed:
            return fixed[name], name
        head, _, tail = name.partition(" ")
        if tail == "up":
            src = head.split("-")[0]
            return (tiers.index(src) if src in tiers else len(tiers)) + 0.6, name
        place = tiers.index(head) if head in tiers else len(tiers)
        return place + {"queue": 0.1, "load": 0.15, "compute": 0.2}.get(tail, 0.3), name

    return sorted(dict.fromkeys(names), key=key)


def components(requests: pd.DataFrame, hops: pd.DataFrame, tier_of: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per answered request (index: request_id) and one column per component, in seconds.

    Components: `issue` (scheduled to issued), `dispatch queue` (issued until the device takes it up), `decision`,
    `backup wait` (for the plan, until the backup that gave the answer was started), `<tier> queue`, `<tier> load`,
    `<tier> compute`, `encode`, `<tier>-<tier> up` (first byte handed over to last byte read), `downlink`, `failed attempt`
    (a transfer that got no answer, until what was done next), and `unaccounted`: what no row explains. Rows of the side of
    a plan with a backup that did not give the answer are left out. Intervals are laid on the request's time line in the
    order of their start; an instant that two intervals cover counts for the earlier one, so the columns add up to the
    latency exactly.
    """
    done = requests[(requests["status"] == "ok") & requests["completed_ns"].notna()].drop_duplicates("request_id")
    index = pd.Index(done["request_id"], name="request_id")
    scheduled = done["scheduled_ns"].to_numpy("int64")
    total_ns = (done["completed_ns"].to_numpy("int64") - scheduled).clip(min=0)
    pieces: list[tuple[IntArray, IntArray, IntArray, npt.NDArray[np.object_]]] = []

    everyone = np.arange(len(done), dtype=np.int64)
    issued = (done["issued_ns"].fillna(done["scheduled_ns"]).to_numpy("int64") - scheduled).clip(min=0)
    decision = np.nan_to_num(done["decision_duration_s"].to_numpy("float64"))
    pieces.append((everyone, np.zeros_like(issued), issued, _names(ISSUE, len(done))))
    taken = issued if "dispatched_ns" not in done else np.maximum(
        issued, done["dispatched_ns"].fillna(done["scheduled_ns"]).to_numpy("int64") - scheduled)
    decided = taken + np.rint(decision * 1e9).astype("int64")
    if (taken > issued).any():
        pieces.append((everyone, issued, taken, _names(DISPATCH, len(done))))
    pieces.append((everyone, taken, decided, _names(DECISION, len(done))))

    if "duplicate" in hops:
        hops = hops[~hops["duplicate"].fillna(False).to_numpy(dtype=bool)]
    by_backup = everyone[done["backup"].eq("won").fillna(False).to_numpy(dtype=bool)] if "backup" in done else everyone[:0]
    if len(by_backup):
        begins = hops.groupby("request_id")["queue_start_ns"].min().reindex(index[by_backup]).fillna(0).to_numpy("int64")
        pieces.append((by_backup, decided[by_backup], begins - scheduled[by_backup], _names(BACKUP_WAIT, len(by_backup))))

    owner = index.get_indexer(hops["request_id"])
    load_ns = hops["load_ns"] if "load_ns" in hops else pd.Series(pd.NA, index=hops.index, dtype="Int64")
    hops = hops.assign(turn_ns=hops["compute_start_ns"] - load_ns.fillna(0),  # the worker was free
                       loaded_ns=hops["compute_start_ns"].where(load_ns.notna()))
    for part, start_column, end_column in _PARTS:
        rows = hops[(owner >= 0) & hops[start_column].notna().to_numpy() & hops[end_column].notna().to_numpy()]
        if not len(rows):
            continue
        who = index.get_indexer(rows["request_id"]).astype("int64")
        start = rows[start_column].to_numpy("int64") - scheduled[who]
        end = rows[end_column].to_numpy("int64") - scheduled[who]
        pieces.append((who, start, end, _part_names(part, rows, tier_of)))

    tried, until = _attempts(hops, done)
    if len(tried):
        who = index.get_indexer(tried["request_id"]).astype("int64")
        pieces.append((who, tried["send_start_ns"].to_numpy("int64") - scheduled[who], until - scheduled[who],
                       _names(ATTEMPT, len(tried))))

    who, start, end = (np.concatenate([piece[i] for piece in pieces]) for i in range(3))
    codes, labels = pd.factorize(np.concatenate([piece[3] for piece in pieces]))
    start, end = start.clip(min=0), np.minimum(end, total_ns[who])
    order = np.lexsort((end, start, who))
    who, start, end, codes = who[order], start[order], end[order], codes[order]
    # running maximum of the ends within each request: shift every request onto its own stretch of the number line
    span = int(total_ns.max(initial=0)) + 1
    reached = np.maximum.accumulate(np.maximum(end, 0) + who * span)
    before = np.concatenate(([0], reached[:-1])) - who * span
    covered = (end - np.maximum(start, before.clip(min=0))).clip(min=0)

    sums = np.bincount(who * len(labels) + codes, weights=covered, minlength=len(done) * len(labels))
    table = pd.DataFrame(sums.reshape(len(done), len(labels)) / 1e9, index=index, columns=[str(x) for x in labels])
    table[UNACCOUNTED] = total_ns / 1e9 - table.sum(axis=1)
    table[UNACCOUNTED] = table[UNACCOUNTED].where(table[UNACCOUNTED].abs() > 1e-12, 0.0)
    assert np.allclose(table.sum(axis=1), latency_s(done).clip(lower=0.0).to_numpy(), atol=1e-9)
    return table


def _attempts(hops: pd.DataFrame, done: pd.DataFrame) -> tuple[pd.DataFrame, IntArray]:
    """Transfers of answered requests that were never seen to arrive, and the instant of what came next."""
    lost = hops["send_start_ns"].notna() & hops["recv_last_ns"].isna() & hops["request_id"].isin(done["request_id"])
    if not lost.any():
        return hops[lost], np.zeros(0, dtype=np.int64)
    rows = hops[hops["request_id"].isin(hops.loc[lost, "request_id"])].sort_values(["request_id", "hop_index"])
    begins = rows["encode_start_ns"].fillna(rows["queue_start_ns"]).fillna(rows["send_start_ns"])
    following = begins.groupby(rows["request_id"]).shift(-1)
    ended = rows["request_id"].map(done.set_index("request_id")["completed_ns"])
    mine = lost.reindex(rows.index)
    return rows[mine], following.fillna(ended)[mine].to_numpy("int64")


def order_violations(hops: pd.DataFrame) -> int:
    """Count rows whose instants run backwards (send after receive, compute end before its start, ...)."""
    wrong = np.zeros(len(hops), dtype=bool)
    chains = [("encode_start_ns", "encode_end_ns"), ("encode_end_ns", "send_start_ns"),
              ("send_start_ns", "recv_first_ns"), ("recv_first_ns", "recv_last_ns"),
              ("queue_start_ns", "compute_start_ns"), ("compute_start_ns", "compute_end_ns")]
    for first, second in chains:
        wrong |= (hops[second] < hops[first]).fillna(False).to_numpy(dtype=bool)
    return int(wrong.sum())


def _part_names(part: str, rows: pd.DataFrame, tier_of: Mapping[str, str]) -> npt.NDArray[np.object_]:
    if part == "encode":
        return _names(ENCODE, len(rows))
    src = rows["src_node"].map(lambda node: tier_of.get(node, node)).astype(object)
    dst = rows["dst_node"].map(lambda node: tier_of.get(node, node)).astype(object)
    if part == "transfer":
        up = src.astype(str) + "-" + dst.astype(str) + " up"
        named = up.where((rows["direction"] != "down").fillna(True).to_numpy(dtype=bool), DOWNLINK)
        return np.asarray(named, dtype=object)
    return np.asarray(dst.fillna(src).astype(str) + f" {part}", dtype=object)


def _names(name: str, count: int) -> npt.NDArray[np.object_]:
    return np.full(count, name, dtype=object)
