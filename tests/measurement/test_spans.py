"""Single requests as spans, Chrome traces, perf_analyzer's columns, the Pareto front."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.cli import main
from testbed.measurement.pareto import pareto_front
from testbed.measurement.perf_csv import COLUMNS, perf_rows
from testbed.measurement.records import latency_s
from testbed.measurement.spans import REQUEST, choose_requests, chrome_trace, spans_of, waterfall
from testbed.measurement.summary import group_trials
from testbed.measurement.trial import load_run, load_trial

from .fake_run import make_trial


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_trial(make_trial(tmp_path_factory.mktemp("t") / "t" / "0", "early-exit", requests_per_device=40, failing=3))


def test_chosen_requests_are_what_they_say(loaded):
    rows = loaded.requests[loaded.requests["phase"] == "measure"]
    latency = dict(zip(rows["request_id"], latency_s(rows), strict=True))
    ok = set(rows.loc[rows["status"] == "ok", "request_id"])
    chosen = dict(choose_requests(loaded))
    answered = sorted(latency[name] for name in ok)
    assert latency[chosen["slowest"]] == answered[-1] and latency[chosen["fastest"]] == answered[0]
    assert latency[chosen["median"]] == answered[(len(answered) - 1) // 2]
    exits = dict(zip(rows["request_id"], rows["exit_id"], strict=True))
    assert exits[chosen["median of exit exit1"]] == "exit1" and exits[chosen["median of exit final"]] == "final"
    assert chosen["first failed"] not in ok


def test_spans_lie_inside_their_request_and_cover_it(loaded):
    """The made-up requests have no gaps: spans in order leave at most the 60 µs at which the answer is handed over."""
    spans = spans_of(loaded, [dict(choose_requests(loaded))["slowest"]])
    whole, *parts = spans
    assert whole.kind == REQUEST and all(whole.start_ns <= s.start_ns <= s.end_ns <= whole.end_ns for s in parts)
    reached = whole.start_ns
    for span in sorted(parts, key=lambda s: s.start_ns):
        assert span.start_ns - reached < 100_000
        reached = max(reached, span.end_ns)
    assert whole.end_ns - reached == 60_000


def test_chrome_trace_can_be_drawn(loaded):
    trace = json.loads(json.dumps(chrome_trace(loaded)))
    events = trace["traceEvents"]
    lanes = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert {"device1", "edge1", "device1 to edge1"} <= set(lanes.values())
    begun, ended = ([e["id"] for e in events if e["ph"] == kind] for kind in "be")
    assert sorted(begun) == sorted(ended) == sorted(loaded.requests["request_id"])
    threads: dict[tuple[int, int], float] = {}
    for event in (e for e in events if e["ph"] == "X"):  # in the order of their start; a thread holds one at a time
        assert event["ts"] >= threads.get((event["pid"], event["tid"]), 0.0) - 1e-3 and event["dur"] >= 0
        threads[event["pid"], event["tid"]] = event["ts"] + event["dur"]


def test_waterfall_starts_when_the_request_was_due(loaded):
    shown = waterfall(loaded)
    assert [q["why"] for q in shown][:3] == ["slowest", "median", "fastest"]
    assert all(q["spans"][0]["from"] == 0 and q["spans"][-1]["to"] <= q["ms"] for q in shown if q["ok"])


def test_perf_analyzer_columns_add_up(pristine_run):
    """Oracle: perf_analyzer's parts of a latency sum to its average, which its readers rely on."""
    rows = perf_rows(group_trials(load_run(pristine_run), intervals=False))
    assert [row["Inferences/Second"] for row in rows] == sorted(row["Inferences/Second"] for row in rows)
    for row in rows:
        parts = sum(row[name] for name in COLUMNS[2:9])
        assert parts == pytest.approx(row["Avg latency"], abs=8)  # each is rounded to a microsecond
        assert row["p99 latency"] == "" and row["p50 latency"] <= row["p95 latency"]  # 136 requests are too few for p99


def test_command_writes_the_exports(run, capsys):
    assert main(["report", str(run), "--chrome-trace", "--perf-csv"]) == 0
    assert "Chrome traces: 5 files" in capsys.readouterr().out
    assert len(list((run / "chrome-traces").glob("*.trace.json"))) == 5
    with (run / "perf_analyzer.csv").open(newline="") as stream:
        assert next(csv.reader(stream))[1:9] == ["Inferences/Second", "Client Send", "Network+Server Send/Recv", "Server Queue",
                                                  "Server Compute Input", "Server Compute Infer", "Server Compute Output",
                                                  "Client Recv"]


@given(st.lists(st.tuples(*[st.none() | st.integers(0, 4)] * 3), max_size=12))
def test_pareto_front_against_its_definition(points):
    higher = (True, False, False)

    def better(q, p):
        pairs = [(a, b) if up else (-a, -b) for a, b, up in zip(q, p, higher, strict=True)]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    whole = [p for p in points if None not in p]
    expected = [None not in p and not any(better(q, p) for q in whole) for p in points]
    assert pareto_front(points, higher) == expected
