"""The check of memoised outputs: the share of computations that had to be done after all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.measurement.checks import Inputs
from testbed.measurement.trial import load_trial
from testbed.measurement.validity import inputs_of, judge


def with_hits(trial: Path, misses: int) -> Inputs:
    inputs = inputs_of(load_trial(trial))
    hops = inputs.hops.copy()
    computes = hops.index[(hops["kind"] == "compute") & hops["request_id"].isin(inputs.measured["request_id"])]
    hops.loc[computes, "memo_hit"] = True
    hops.loc[computes[:misses], "memo_hit"] = False
    return replace(inputs, hops=hops)


def computations(inputs: Inputs) -> int:
    return int((inputs.hops["memo_hit"].notna()).sum())


def test_without_memoised_nodes_nothing_is_measured(trial: Path) -> None:
    check = judge(inputs_of(load_trial(trial))).get("memo_miss_share")
    assert check.state == "not measured" and check.value is None


def test_up_to_one_per_cent_of_misses_is_valid(trial: Path) -> None:
    count = computations(with_hits(trial, 0))
    assert judge(with_hits(trial, 0)).get("memo_miss_share").value == 0
    few, many = count // 100, count // 100 + 1
    assert judge(with_hits(trial, few)).get("memo_miss_share").passed
    result = judge(with_hits(trial, many))
    assert result.verdict == "INVALID" and result.get("memo_miss_share").value == pytest.approx(many / count)
    assert "run again: the outputs are now stored" in " ".join(result.reasons)


def test_misses_of_the_warm_up_do_not_count(trial: Path) -> None:
    inputs = with_hits(trial, 0)
    first = inputs.hops.loc[inputs.hops["memo_hit"].notna(), "request_id"].iloc[0]
    hops, requests = inputs.hops.copy(), inputs.requests.copy()
    hops.loc[(hops["request_id"] == first) & hops["memo_hit"].notna(), "memo_hit"] = False
    requests.loc[requests["request_id"] == first, "phase"] = "warmup"
    assert judge(replace(inputs, hops=hops)).get("memo_miss_share").value > 0
    assert judge(replace(inputs, hops=hops, requests=requests)).get("memo_miss_share").value == 0
