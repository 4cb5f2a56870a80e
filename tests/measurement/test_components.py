"""The parts of a latency add up to it: against a brute-force timeline, for any set of intervals."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.measurement.components import UNACCOUNTED, component_order, components, order_violations
from testbed.measurement.records import HOPS, REQUESTS, read_table, write_table
from testbed.measurement.trial import load_trial

TIER = {"d": "device", "e": "edge", "c": "cloud"}


def tables(tmp_path, requests, hops):
    return (read_table(write_table(tmp_path / "r.csv", REQUESTS, requests), REQUESTS),
            read_table(write_table(tmp_path / "h.csv", HOPS, hops), HOPS))


def test_split_request_by_hand(tmp_path):
    ms = 1_000_000
    request = {"request_id": "q", "status": "ok", "scheduled_ns": 0, "issued_ns": 1 * ms, "completed_ns": 100 * ms,
               "decision_duration_s": 0.002}
    hops = [
        {"request_id": "q", "src_node": "d", "dst_node": "d", "queue_start_ns": 3 * ms, "compute_start_ns": 5 * ms,
         "compute_end_ns": 25 * ms},
        {"request_id": "q", "src_node": "d", "dst_node": "c", "direction": "up", "encode_start_ns": 25 * ms,
         "encode_end_ns": 26 * ms, "send_start_ns": 26 * ms, "recv_first_ns": 50 * ms, "recv_last_ns": 60 * ms},
        {"request_id": "q", "src_node": "c", "dst_node": "c", "queue_start_ns": 60 * ms, "compute_start_ns": 61 * ms,
         "compute_end_ns": 70 * ms},
        {"request_id": "q", "src_node": "c", "dst_node": "d", "direction": "down", "send_start_ns": 70 * ms,
         "recv_last_ns": 99 * ms},
    ]
    parts = components(*tables(tmp_path, [request], hops), TIER).iloc[0]
    assert {name: round(value * 1e3, 9) for name, value in parts.items()} == {
        "issue": 1, "decision": 2, "device queue": 2, "device compute": 20, "encode": 1, "device-cloud up": 34,
        "cloud queue": 1, "cloud compute": 9, "downlink": 29, UNACCOUNTED: 1}
    assert component_order(list(parts.index), ["device", "edge", "cloud"]) == [
        "issue", "decision", "device queue", "device compute", "encode", "device-cloud up", "cloud queue",
        "cloud compute", "downlink", UNACCOUNTED]


def test_loading_a_cold_model_is_not_waiting(tmp_path):
    ms = 1_000_000
    request = {"request_id": "q", "status": "ok", "scheduled_ns": 0, "issued_ns": 0, "completed_ns": 100 * ms,
               "decision_duration_s": 0.0}
    hops = [{"request_id": "q", "src_node": "d", "dst_node": "d", "queue_start_ns": 0, "load_ns": 30 * ms,
             "compute_start_ns": 40 * ms, "compute_end_ns": 60 * ms},
            {"request_id": "q", "src_node": "d", "dst_node": "d", "queue_start_ns": 60 * ms,
             "compute_start_ns": 65 * ms, "compute_end_ns": 100 * ms}]
    parts = components(*tables(tmp_path, [request], hops), TIER).iloc[0]
    assert {n: round(v * 1e3, 9) for n, v in parts.items() if v} == {
        "device queue": 10 + 5, "device load": 30, "device compute": 20 + 35}


interval = st.tuples(st.integers(-20, 120), st.integers(0, 60), st.sampled_from("dec"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.lists(interval, max_size=6)), min_size=1, max_size=4))
def test_any_intervals_add_up(tmp_path_factory, plan):
    requests = [{"request_id": f"q{i}", "status": "ok", "scheduled_ns": 1000, "issued_ns": 1000,
                 "completed_ns": 1000 + length} for i, (length, _) in enumerate(plan)]
    hops = [{"request_id": f"q{i}", "src_node": node, "dst_node": node, "compute_start_ns": 1000 + start,
             "compute_end_ns": 1000 + start + width} for i, (_, rows) in enumerate(plan) for start, width, node in rows]
    parts = components(*tables(tmp_path_factory.mktemp("t"), requests, hops), TIER)
    for i, (length, rows) in enumerate(plan):
        # oracle: walk the nanoseconds; one that any interval covers is accounted for
        covered = sum(any(start <= t < start + width for start, width, _ in rows) for t in range(length))
        row = parts.loc[f"q{i}"]
        assert row.sum() * 1e9 == pytest.approx(length, abs=1e-3)
        assert row[UNACCOUNTED] * 1e9 == pytest.approx(length - covered, abs=1e-3)
        assert (row >= -1e-12).all()


def test_failed_requests_have_no_parts_and_no_hops_is_no_crash(tmp_path):
    requests, hops = tables(tmp_path, [
        {"request_id": "a", "status": "failed", "scheduled_ns": 0, "completed_ns": 9},
        {"request_id": "b", "status": "ok", "scheduled_ns": 0, "completed_ns": 10}], [])
    parts = components(requests, hops, TIER)
    assert parts.index.tolist() == ["b"] and parts.loc["b", UNACCOUNTED] == pytest.approx(1e-8)
    assert len(components(requests.iloc[:1], hops, TIER)) == 0


def test_backward_clocks_are_counted(trial):
    hops = load_trial(trial).hops
    assert order_violations(hops) == 0
    moved = hops[hops["kind"] == "transfer"].index[:3]
    hops.loc[moved, "recv_last_ns"] = hops.loc[moved, "send_start_ns"] - 1
    assert order_violations(hops) == 3
    assert order_violations(pd.DataFrame(hops.iloc[:0])) == 0
