"""Attainment by deadline: counted by hand on made-up requests; ranges on round numbers; the section and the file of a run."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pandas as pd
import pytest

from testbed.measurement.attainment import COLUMNS, MAX_RANGES, attainment_table, deadline_edges, write_attainment
from testbed.measurement.attainment_section import attainment_section
from testbed.measurement.records import HOPS, REQUESTS, read_table, write_table
from testbed.measurement.trial import Trial

SECOND = 1_000_000_000
NODES = [{"name": "device1", "tier": "device"}, {"name": "cloud1", "tier": "cloud"}]
PRICES = {"tiers": {"cloud": {"per_invocation": 1.0, "per_gb_s": 0.5, "memory": "2000000000B"}}}


def trial(folder: Path, deadlines_s: list[float], limit_s: float, prices: object = None) -> Trial:
    """Requests that are in time when their deadline is at least `limit_s`; every second one is computed in the cloud, for 0.1 s."""
    folder.mkdir(parents=True)
    requests, hops = [], []
    for i, deadline_s in enumerate([9.0, *deadlines_s]):  # the first one is a warm-up
        node = "cloud1" if i % 2 else "device1"
        requests.append({"request_id": f"r{i}", "phase": "measure" if i else "warmup", "status": "ok", "scheduled_ns": i * SECOND,
                         "completed_ns": i * SECOND + round(limit_s * 1e9), "deadline_s": deadline_s, "correct": i % 4 != 0,
                         "deadline_met": deadline_s >= limit_s, "final_node": node, "model": "big" if i % 2 else "small",
                         "exit_id": "final"})
        hops.append({"request_id": f"r{i}", "kind": "compute", "src_node": node, "dst_node": node, "compute_start_ns": 0,
                     "compute_end_ns": SECOND // 10})
    write_table(folder / "requests.csv", REQUESTS, requests)
    write_table(folder / "hops.csv", HOPS, hops)
    accuracy = {"big": {"exit": "final", "accuracy": 0.9}, "small": {"exit": "final", "accuracy": 0.6}}
    return Trial(folder, {"nodes": NODES, "config": {"prices": prices}, "model_accuracy": accuracy}, read_table(folder / "requests.csv", REQUESTS),
                 read_table(folder / "hops.csv", HOPS), pd.DataFrame(), pd.DataFrame())


def test_shares_are_counted_per_range_without_the_warm_up(tmp_path: Path) -> None:
    rng = random.Random(3)
    deadlines_s = [rng.uniform(0.1, 0.5) for _ in range(200)]
    found = trial(tmp_path / "a", deadlines_s, 0.23, PRICES)
    table = attainment_table([("p", {"load.rate_per_s": 2}, [found])])
    assert list(table.columns) == list(COLUMNS) and table["requests"].sum() == 200
    assert set(table["point"]) == {"rate_per_s=2"}
    for row in table.to_dict("records"):
        inside = [(i + 1, d) for i, d in enumerate(deadlines_s) if row["deadline_from_s"] <= d < row["deadline_to_s"]]
        n = len(inside)
        assert row["requests"] == n
        assert row["in_time"] == pytest.approx(sum(d >= 0.23 for _, d in inside) / n)
        assert row["accuracy"] == pytest.approx(sum(i % 4 != 0 for i, _ in inside) / n)
        assert row["effective_accuracy"] == pytest.approx(sum(0.9 if i % 2 else 0.6 for i, _ in inside) / n)
        assert row["on_device"] == pytest.approx(sum(i % 2 == 0 for i, _ in inside) / n)
        # per cloud request: 1 + 0.1 s * 2 GB * 0.5
        assert row["cost_per_1000"] == pytest.approx(1000 * 1.1 * sum(i % 2 for i, _ in inside) / n)
        if math.isfinite(row["in_time_low"]):
            assert row["in_time_low"] - 1e-9 <= row["in_time"] <= row["in_time_high"] + 1e-9
    assert table["in_time_low"].notna().sum() >= 3


def test_a_request_that_failed_is_not_in_time_and_has_no_accuracy(tmp_path: Path) -> None:
    found = trial(tmp_path / "a", [0.1, 0.2, 0.3, 0.4], 0.05)
    found.requests.loc[found.requests["request_id"] == "r1", ["status", "deadline_met"]] = ["failed", False]
    table = attainment_table([("p", {}, [found])])
    assert table["in_time"].tolist() == [0.0, 1.0, 1.0, 1.0] and table["accuracy"].isna().tolist() == [True, False, False, False]
    assert table["cost_per_1000"].isna().all()


def test_all_policies_get_the_same_ranges_and_equal_deadlines_none(tmp_path: Path) -> None:
    a, b = trial(tmp_path / "a", [0.1, 0.2], 0.1), trial(tmp_path / "b", [0.35, 0.4], 0.1)
    table = attainment_table([("a", {}, [a]), ("b", {}, [b])])
    edges = deadline_edges([0.1, 0.4])
    assert set(table["deadline_from_s"]) <= set(edges[:-1]) and set(table["deadline_to_s"]) <= set(edges[1:])
    same = trial(tmp_path / "c", [0.2, 0.2], 0.1)
    assert not len(attainment_table([("c", {}, [same])])) and not len(attainment_table([]))
    assert attainment_section([("c", {}, [same])]) == ""


@pytest.mark.parametrize(("low", "high"), [(0.025, 0.35), (0.25, 3.5), (0.0999, 0.1), (1e-3, 100.0), (0.3, 0.3001), (0.1, 0.4)])
def test_ranges_cover_all_deadlines_on_round_numbers(low: float, high: float) -> None:
    edges = deadline_edges([low, (low + high) / 2, high])
    widths = [b - a for a, b in itertools.pairwise(edges)]
    assert 1 <= len(widths) <= MAX_RANGES and edges[0] <= low + 1e-12 and high < edges[-1]
    assert all(w == pytest.approx(widths[0], rel=1e-3) for w in widths)
    assert len(widths) >= 3  # the next smaller round width would need more than MAX_RANGES


def test_the_file_and_the_section_show_every_policy(tmp_path: Path) -> None:
    groups = [(name, {}, [trial(tmp_path / name, [0.1 + i / 200 for i in range(80)], limit, PRICES)])
              for name, limit in (("<slow>", 0.4), ("fast", 0.01))]
    table = write_attainment(tmp_path, groups)
    again = pd.read_csv(tmp_path / "attainment.csv")
    assert list(again.columns) == list(COLUMNS)
    assert again["policy"].tolist() == table["policy"].tolist() and again["in_time"].tolist() == table["in_time"].tolist()
    html = attainment_section(groups)
    assert "&lt;slow&gt;" in html and "<slow>" not in html and html.count("<polyline") == 6
    assert html.count("<circle") == 3 * len(table)
