"""The verdict: a clean trial is VALID, every kind of sabotage is INVALID for its own reason, absence is no pass."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from testbed.errors import InputError
from testbed.measurement.checks import Inputs
from testbed.measurement.limits import LIMITS, NAMES, Limits
from testbed.measurement.records import LINKS, read_table, write_table
from testbed.measurement.trial import load_trial
from testbed.measurement.validity import inputs_of, judge, judge_trial, validity_of

from .fake_run import START_NS, edit_json, fabric, make_trial


@pytest.fixture
def inputs(trial) -> Inputs:
    return inputs_of(load_trial(trial))


def failures(result):
    return [check.name for check in result.checks if check.state == "failed"]


def test_a_clean_trial_is_valid(inputs):
    result = judge(inputs)
    assert result.verdict == "VALID" and not result.reasons
    assert [check.name for check in result.checks] == list(NAMES)
    assert json.loads(json.dumps(result.to_dict()))["checks"][0] == {
        "name": "issue_delay_p99_s", "value": pytest.approx(0.0009, abs=5e-4), "limit": 0.005, "unit": "s",
        "passed": True, "state": "passed", "reason": ""}


def lag(inputs):
    summary = fabric()
    summary["links"]["device2-edge1"]["down"]["apply_lag_p99_ns"] = 6_000_000
    return replace(inputs, fabric=summary)


def missed(inputs):
    summary = fabric()
    summary["links"]["device2-edge1"]["down"]["missed_steps"] = 300
    return replace(inputs, fabric=summary)


def late_delay_line(inputs):
    summary = fabric()
    summary["delay_line"]["late_p99_ns"] = 5_000_000
    return replace(inputs, fabric=summary)


def late_load(inputs):
    rows = inputs.requests.assign(issued_ns=inputs.requests["issued_ns"])
    rows.loc[rows.index[::20], "issued_ns"] += 40_000_000  # 5% are 40 ms late
    return replace(inputs, requests=rows)


def wrong_rate(inputs):
    manifest = json.loads(json.dumps(inputs.manifest))
    manifest["calibration"]["links"][0]["measured_rate_bps"] *= 0.9  # mis-set by 10%
    return replace(inputs, manifest=manifest)


def wrong_rtt(inputs):
    manifest = json.loads(json.dumps(inputs.manifest))
    manifest["calibration"]["links"][0]["measured_rtt_s"] += 0.008
    return replace(inputs, manifest=manifest)


def saturated(inputs):
    nodes = inputs.nodes.copy()
    machine = nodes["node"] == "machine"
    seconds = (nodes.loc[machine, "t_ns"] - START_NS).astype("float64") / 1e9
    nodes.loc[machine, "cpu_usage_s"] = seconds * 2  # both cores, all the time
    return replace(inputs, nodes=nodes)


def stolen(inputs):
    nodes = inputs.nodes.copy()
    machine = nodes["node"] == "machine"
    nodes.loc[machine, "cpu_steal_s"] = (nodes.loc[machine, "t_ns"] - START_NS).astype("float64") / 1e9 * 0.3
    return replace(inputs, nodes=nodes)


def quota(inputs):
    nodes = inputs.nodes.copy()
    edge = nodes["node"] == "edge1"
    nodes.loc[edge, "cpu_throttled_s"] = (nodes.loc[edge, "t_ns"] - START_NS).astype("float64") / 1e9 * 0.2
    return replace(inputs, nodes=nodes)


def overrun(inputs):
    hops = inputs.hops.assign(service_ns=inputs.hops["service_ns"].mask(inputs.hops["kind"] == "compute", 5_000_000))
    return replace(inputs, hops=hops)


def few(inputs):
    return replace(inputs, requests=inputs.requests.head(40))


def lost_hop(inputs):
    return replace(inputs, hops=inputs.hops[inputs.hops["direction"] != "up"])


def backwards(inputs):
    hops = inputs.hops.copy()
    first = hops[hops["kind"] == "transfer"].index[0]
    hops.loc[first, "recv_first_ns"] = hops.loc[first, "send_start_ns"] - 5
    return replace(inputs, hops=hops)


def other_traffic(inputs):
    links = inputs.links.copy()
    up = (links["link"] == "device1-edge1") & (links["direction"] == "up") & links["tx_bytes"].notna()
    links.loc[up, "tx_bytes"] = (links.loc[up, "tx_bytes"] * 1.4).astype("int64")
    return replace(inputs, links=links)


SABOTAGE = {
    lag: ("apply_lag_p99_steps", "device2-edge1 down applied its trace 6 ms late"),
    missed: ("missed_steps_share", "device2-edge1 down skipped"),
    late_delay_line: ("delay_late_p99_s", "5 ms late"),
    late_load: ("issue_delay_p99_s", "load generator issued requests 40"),
    wrong_rate: ("rate_error", "device1-edge1 up was asked for 8 Mbit/s and measured 7.08"),
    wrong_rtt: ("rtt_error_s", "asked for 30 ms and measured 38.6 ms"),
    saturated: ("cpu_busy_share", "all 2 cores were busy in 100% of the windows"),
    stolen: ("cpu_steal_share", "hypervisor took 15"),
    quota: ("throttled_share", "node edge1 was throttled 20"),
    overrun: ("compute_overrun_share", "computations on edge1 took longer"),
    few: ("samples", "90 are needed"),
    lost_hop: ("unaccounted_p99_s", "is in no hop"),
    backwards: ("order_violations", "run backwards"),
    other_traffic: ("link_bytes_error", "the kernel counted"),
}


@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda f: f.__name__)
def test_sabotage_is_named(inputs, sabotage):
    name, words = SABOTAGE[sabotage]
    result = judge(sabotage(inputs))
    assert result.verdict == "INVALID" and name in failures(result)
    extra = set(failures(result)) - {name}
    # a hop that is not in the table is also missing from the bytes that the kernel counted
    assert extra <= ({"link_bytes_error"} if sabotage in (lost_hop, few) else set())
    reason = result.get(name).reason
    assert words in reason and ";" in reason, reason  # cause; remedy


def test_plan_with_a_quota_may_be_throttled(inputs):
    limited = quota(inputs)
    manifest = json.loads(json.dumps(limited.manifest))
    next(n for n in manifest["nodes"] if n["name"] == "edge1")["cpus"] = 0.5
    assert judge(replace(limited, manifest=manifest)).verdict == "VALID"


def busy_link(speed: float) -> pd.DataFrame:
    """Polls of a link that always has 200 kB waiting and delivers `speed` times what its trace allows."""
    t = np.arange(0, 3_000_000_000, 100_000_000)
    allowed = np.cumsum(np.where(t % 1_000_000_000 < 500_000_000, 100_000, 12_000))
    return pd.DataFrame({"t_ns": START_NS + t, "link": "device1-edge1", "direction": "up", "allowed_bytes": allowed,
                         "tx_bytes": (allowed * speed).astype("int64"), "backlog_bytes": 200_000})


@pytest.mark.parametrize(("speed", "passed"), [(1.0, True), (0.97, True), (0.9, False), (1.1, False), (0.5, False)])
def test_delivered_bytes_follow_the_trace_while_the_link_is_busy(inputs, tmp_path, speed, passed):
    table = read_table(write_table(tmp_path / "links.csv", LINKS, busy_link(speed)), LINKS)
    check = judge(replace(inputs, links=table)).get("delivered_error")
    assert check.passed is passed
    assert check.value == pytest.approx(abs(1 - speed), abs=0.01)


def test_an_idle_link_proves_nothing(inputs, tmp_path):
    idle = busy_link(0.1).assign(backlog_bytes=5_000)  # less waiting than the trace allows: it may have run empty
    table = read_table(write_table(tmp_path / "links.csv", LINKS, idle), LINKS)
    check = judge(replace(inputs, links=table)).get("delivered_error")
    assert check.passed is None and check.reason.startswith("not measured: ")


def test_absent_evidence_is_said_not_passed(inputs):
    bare = Inputs(manifest={}, requests=inputs.requests)
    result = judge(bare)
    measured = {c.name for c in result.checks if c.passed is not None}
    assert measured == {"issue_delay_p99_s", "samples", "order_violations"}
    assert all(c.reason.startswith("not measured: ") for c in result.checks if c.passed is None)


def test_no_requests_at_all_is_invalid():
    assert judge(Inputs(manifest={})).verdict == "INVALID"


def test_failed_requests_do_not_break_the_checks(tmp_path):
    assert judge_trial(make_trial(tmp_path / "t" / "0", "split", failing=7)).verdict == "VALID"


def test_limits_can_be_overridden_and_turned_into_warnings(inputs):
    assert judge(lag(inputs), Limits.of({"apply_lag_p99_steps": 0.8})).verdict == "VALID"
    warned = judge(lag(inputs), Limits.of({"apply_lag_p99_steps": {"on_fail": "warn"}}))
    assert warned.verdict == "VALID" and warned.get("apply_lag_p99_steps").state == "warned"
    off = judge(lag(inputs), Limits.of({"apply_lag_p99_steps": {"on_fail": "off"}}))
    assert off.get("apply_lag_p99_steps").state == "off" and off.get("apply_lag_p99_steps").passed is None
    config = {"validity": {"samples": 500}, "calibration": {"rate_tolerance": 0.2}}
    result = judge(replace(wrong_rate(inputs), manifest={**wrong_rate(inputs).manifest, "config": config}))
    assert failures(result) == ["samples"]


@pytest.mark.parametrize(("wrong", "words"), [
    ({"cpu": 1}, r"validity\.cpu: is not a validity check .* use one of issue_delay_p99_s"),
    ({"samples": -1}, "at least zero"), ({"samples": "many"}, "at least zero"), ({"samples": True}, "at least zero"),
    ({"samples": {"max": 3}}, r"validity\.samples\.max: unknown key"),
    ({"samples": {"on_fail": "ignore"}}, "use fail, warn or off"),
])
def test_wrong_limits_are_input_errors(wrong, words):
    with pytest.raises(InputError, match=words):
        Limits.of(wrong)


def test_every_limit_says_why():
    assert all(limit.what and limit.why for limit in LIMITS) and len(set(NAMES)) == len(NAMES)


def test_a_stored_verdict_is_read_back(trial):
    result = judge_trial(trial)
    edit_json(trial / "manifest.json", lambda m: m.update(validity=result.to_dict()))
    again = validity_of(load_trial(trial))
    assert again.verdict == result.verdict and again.to_dict() == result.to_dict()


def test_acknowledgements_of_the_other_direction_are_headers(inputs):
    """A link that carries answers of 430 bytes carries the acknowledgements of the uploads too."""
    links = inputs.links.copy()
    down = (links["link"] == "device1-edge1") & (links["direction"] == "down") & links["tx_bytes"].notna()
    count = int((inputs.hops["link"] == "device1-edge1").sum() / 2)
    extra = np.linspace(0, count * 3 * 52, int(down.sum()))  # three acknowledgements per upload of 4610 bytes
    links.loc[down, "tx_bytes"] += extra.astype("int64")
    assert judge(replace(inputs, links=links)).get("link_bytes_error").passed
