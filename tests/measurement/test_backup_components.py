"""Waiting on the device, and for a plan before its backup is started, are parts of a latency; the other side is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.measurement.components import UNACCOUNTED, component_order, components
from testbed.measurement.records import HOPS, REQUESTS, read_table, write_table

MS = 1_000_000
TIER = {"d": "device", "e": "edge"}


def parts(tmp_path: Path, request: dict[str, Any], hops: list[dict[str, Any]]) -> dict[str, float]:
    request = {"request_id": "q", "status": "ok", "scheduled_ns": 0, "issued_ns": 1 * MS, "decision_duration_s": 0.002, **request}
    rows = [{"request_id": "q", "hop_index": i, **hop} for i, hop in enumerate(hops)]
    tables = (read_table(write_table(tmp_path / "r.csv", REQUESTS, [request]), REQUESTS),
              read_table(write_table(tmp_path / "h.csv", HOPS, rows), HOPS))
    found = components(*tables, TIER).iloc[0]
    return {str(name): round(value * 1e3, 9) for name, value in found.items() if value or name == UNACCOUNTED}


UP = {"kind": "transfer", "src_node": "d", "dst_node": "e", "direction": "up", "encode_start_ns": 7 * MS, "encode_end_ns": 8 * MS,
      "send_start_ns": 8 * MS, "recv_last_ns": 28 * MS}
REMOTE = {"kind": "compute", "src_node": "e", "dst_node": "e", "queue_start_ns": 28 * MS, "compute_start_ns": 28 * MS,
          "compute_end_ns": 60 * MS}
DOWN = {"kind": "transfer", "src_node": "e", "dst_node": "d", "direction": "down", "send_start_ns": 60 * MS, "recv_last_ns": 70 * MS}
LOCAL = {"kind": "compute", "src_node": "d", "dst_node": "d", "queue_start_ns": 20 * MS, "compute_start_ns": 21 * MS,
         "compute_end_ns": 50 * MS}


def marked(hops: list[dict[str, Any]], duplicate: bool) -> list[dict[str, Any]]:
    return [{**hop, "duplicate": duplicate} for hop in hops]


def test_a_backup_that_won(tmp_path: Path) -> None:
    hops = marked([LOCAL], False) + marked([UP, REMOTE, DOWN], True)
    assert parts(tmp_path, {"dispatched_ns": 5 * MS, "completed_ns": 50 * MS, "backup": "won"}, hops) == {
        "issue": 1, "dispatch queue": 4, "decision": 2, "backup wait": 13, "device queue": 1, "device compute": 29, UNACCOUNTED: 0}


def test_a_backup_that_lost(tmp_path: Path) -> None:
    hops = marked([UP, REMOTE, DOWN], False) + marked([LOCAL], True)
    assert parts(tmp_path, {"dispatched_ns": 5 * MS, "completed_ns": 70 * MS, "backup": "lost"}, hops) == {
        "issue": 1, "dispatch queue": 4, "decision": 2, "encode": 1, "device-edge up": 20, "edge compute": 32, "downlink": 10,
        UNACCOUNTED: 0}


def test_a_plan_that_failed_before_its_backup_won(tmp_path: Path) -> None:
    lost = {key: value for key, value in UP.items() if key != "recv_last_ns"}
    hops = marked([LOCAL], False) + marked([lost], True)
    assert parts(tmp_path, {"dispatched_ns": 1 * MS, "completed_ns": 50 * MS, "backup": "won"}, hops) == {
        "issue": 1, "decision": 2, "backup wait": 17, "device queue": 1, "device compute": 29, UNACCOUNTED: 0}


def test_they_stand_where_they_happen() -> None:
    names = ["device queue", "backup wait", "decision", "dispatch queue", "issue"]
    assert component_order(names, ["device", "edge"]) == names[::-1]
