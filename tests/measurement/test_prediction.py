"""Predicted and measured: hand-made trials whose latency is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measurement.prediction import predict, prediction_table, transfer_s, wire_bytes, write_prediction
from testbed.measurement.prediction_section import prediction_section, ticks_ms
from testbed.measurement.records import HOPS, REQUESTS, read_table, write_table
from testbed.measurement.trial import Trial

MS = 1_000_000
UP = {"rate_bps": 8_000_000, "delay_s": 0.020}  # 1 byte per microsecond
DOWN = {"rate_bps": 80_000_000, "delay_s": 0.010}
WAN = {"rate_bps": 800_000_000, "delay_s": 0.005}


def _trial(folder: Path, *, late_ns: int = 0, links: list[dict[str, Any]] | None = None, service_ns: float | None = 5 * MS) -> Trial:
    """Two requests to cloud1 over two links: 14,480 bytes up (ten full segments), 100 bytes down, 5 ms of compute."""
    links = links or [{"name": "device1-edge1", "src": "device1", "dst": "edge1", "up": UP, "down": DOWN},
                      {"name": "edge1-cloud1", "src": "edge1", "dst": "cloud1", "up": WAN, "down": WAN}]
    path = "device1-edge1+edge1-cloud1"
    # up 15,000 wire bytes: 15 ms + 25 ms; compute 5 ms; down 152 wire bytes: 0.0152 ms + 15 ms
    expected_ns = 15 * MS + 25 * MS + 5 * MS + 15_200 + 15 * MS
    requests, hops = [], []
    for i in range(3):
        start = 1000 * MS * (i + 1)
        requests.append({"request_id": f"r{i}", "phase": "warmup" if i == 0 else "measure", "status": "ok", "scheduled_ns": start,
                         "issued_ns": start, "completed_ns": start + expected_ns + late_ns})
        hops += [{"request_id": f"r{i}", "kind": "transfer", "src_node": "device1", "dst_node": "cloud1", "link": path,
                  "direction": "up", "payload_bytes": 14_400, "header_bytes": 80},
                 {"request_id": f"r{i}", "kind": "compute", "src_node": "cloud1", "dst_node": "cloud1", "service_ns": service_ns},
                 {"request_id": f"r{i}", "kind": "transfer", "src_node": "cloud1", "dst_node": "device1",
                  "link": "edge1-cloud1+device1-edge1", "direction": "down", "payload_bytes": 60, "header_bytes": 40}]
    write_table(folder / "requests.csv", REQUESTS, requests)
    write_table(folder / "hops.csv", HOPS, hops)
    return Trial(folder, {"links": links}, read_table(folder / "requests.csv", REQUESTS), read_table(folder / "hops.csv", HOPS),
                 pd.DataFrame(), pd.DataFrame())


@pytest.mark.parametrize("message", [1, 1448, 1449, 14_480, 65_536])
def test_every_segment_begun_costs_its_headers(message: int) -> None:
    assert wire_bytes(message) == sum(min(1448, message - at) + 52 for at in range(0, message, 1448))


def test_the_slowest_link_transmits_and_all_delays_count() -> None:
    assert transfer_s(14_480, [UP, WAN]) == (pytest.approx(0.015), pytest.approx(0.025))
    assert transfer_s(14_480, [{**UP, "bucket_bytes": 3_000}]) == (pytest.approx(0.012), 0.020)
    assert transfer_s(100, [{**UP, "bucket_bytes": 3_000}])[0] == 0.0
    assert transfer_s(14_480, [{"rate_bps": None, "delay_s": 0.001}]) == (0.0, 0.001)


def test_a_trial_that_obeys_the_model_has_no_residual(tmp_path: Path) -> None:
    frame, why = predict(_trial(tmp_path))
    assert why == "" and frame["request_id"].tolist() == ["r1", "r2"], "warm-up is not measured"
    assert (frame["measured_s"] - frame["predicted_s"]).abs().max() < 1e-9
    assert frame["delay_s"].tolist() == pytest.approx([0.040, 0.040]) and frame["compute_s"].tolist() == [0.005, 0.005]


@pytest.mark.parametrize(("late_ns", "agrees"), [(4 * MS, True), (6 * MS, True), (6.2 * MS, False), (-7 * MS, False)])
def test_the_limit_is_ten_percent_or_five_milliseconds(tmp_path: Path, late_ns: float, agrees: bool) -> None:
    """60.0152 ms are predicted, so 10% is the larger of the two."""
    row = prediction_table([("cloud-only", {"a.rate": "8mbit"}, [_trial(tmp_path, late_ns=int(late_ns))])]).iloc[0]
    assert bool(row["agrees"]) is agrees and row["residual_s"] == pytest.approx(late_ns / 1e9) and row["point"] == "rate=8mbit"
    assert row["residual_share"] == pytest.approx(late_ns / 1e9 / row["predicted_s"])


@pytest.mark.parametrize(("side", "why"), [({"trace": {"path": "x"}, "delay_s": 0.0}, "replays a trace"),
                                           ({**UP, "jitter_s": 0.001}, "jitter or loss"), ({**UP, "loss": {"rate": 0.1}}, "jitter or loss")])
def test_what_has_no_fixed_rate_is_not_predicted(tmp_path: Path, side: dict[str, Any], why: str) -> None:
    links = [{"name": "device1-edge1", "src": "device1", "dst": "edge1", "up": side, "down": DOWN},
             {"name": "edge1-cloud1", "src": "edge1", "dst": "cloud1", "up": WAN, "down": WAN}]
    table = prediction_table([("cloud-only", {}, [_trial(tmp_path, links=links)])])
    assert why in table["why_not"][0] and table["predicted_s"].isna().all()
    assert prediction_section([("cloud-only", {}, [_trial(tmp_path, links=links)])]) == ""
    write_prediction(tmp_path, [("cloud-only", {}, [_trial(tmp_path, links=links)])])
    assert not (tmp_path / "prediction.csv").exists()


def test_real_compute_and_fallbacks_are_not_predicted(tmp_path: Path) -> None:
    assert "compute is real" in predict(_trial(tmp_path, service_ns=None))[1]
    trial = _trial(tmp_path)
    fell_back = trial.requests.assign(error_type=pd.array(["", "fallback:timeout", None], dtype="string"))
    frame, _ = predict(replace(trial, requests=fell_back))
    assert frame["request_id"].tolist() == ["r2"]


def test_section_and_file_show_every_plan(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    groups = [("good", {"up.rate": "8mbit"}, [_trial(tmp_path)]), ("real <b>", {}, [_trial(tmp_path / "real", service_ns=None)])]
    html = prediction_section(groups)
    assert html.count("<circle") == 1 and "not predicted: compute is real" in html and "real &lt;b&gt;" in html
    assert "<script" not in html and "nan" not in html.lower()
    table = write_prediction(tmp_path, groups)
    again = pd.read_csv(tmp_path / "prediction.csv")
    assert list(again["policy"]) == ["good", "real <b>"] and math.isclose(again["predicted_s"][0], table["predicted_s"][0])


@given(low=st.floats(0.01, 1e4), factor=st.floats(1.38, 1e5))  # 1.38: the narrowest axis, of one dot (0.85 to 1.18 of it)
def test_every_axis_has_a_few_round_ticks(low: float, factor: float) -> None:
    ticks = ticks_ms(low, low * factor)
    assert 2 <= len(ticks) <= 3 * (math.log10(factor) + 1) + 4 and ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-9) <= t <= low * factor * (1 + 1e-9) for t in ticks)
    assert all(len(f"{t:.12g}".replace(".", "").strip("0")) <= 3 for t in ticks), ticks
