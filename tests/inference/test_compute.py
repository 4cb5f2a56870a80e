"""Compute profiles: table first, then single stages, then the factor; every shipped profile loads and names its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue
from testbed.inference.compute import load_profile

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "nodes" / "profiles"
INFO = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")["digits_branchy"]


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "p.yaml").write_text(f"name: p\ndescription: d\nsource: measured somewhere\n{text}")
    return str(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_shipped_profiles(name: str) -> None:
    profile = load_profile(name, PROFILES)
    assert profile.name == name and len(profile.source) > 20 and not profile.is_real
    times = [profile.service_time_s(INFO, 0, stop) for stop in range(1, 6)]
    assert all(t is not None for t in times) and times == sorted(times)  # type: ignore[type-var]


def test_factor_times_reference_with_exit_heads() -> None:
    profile = load_profile("raspberry-pi-4", PROFILES)
    by_hand = sum(s.reference_time_s for s in INFO.stages[:3]) + INFO.exits[0].reference_time_s
    assert profile.service_time_s(INFO, 0, 3, (2,)) == pytest.approx(profile.slowdown * by_hand)  # type: ignore[operator]


def test_table_before_single_stages_before_factor(tmp_path: Path) -> None:
    table = "table: {digits_branchy: {'0:2': 30ms, '0:1': 10ms, '1:2': 11ms, '2:3': 12ms}}\nslowdown: 1000\n"
    profile = load_profile(write(tmp_path, table), tmp_path)
    assert profile.service_time_s(INFO, 0, 2) == pytest.approx(0.030)
    assert profile.service_time_s(INFO, 0, 3) == pytest.approx(0.033)
    assert profile.service_time_s(INFO, 3, 4) == pytest.approx(1000 * INFO.stages[3].reference_time_s)


def test_a_table_without_the_range_says_so(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, "table: {digits_branchy: {'0:2': 30ms}}\n"), tmp_path)
    with pytest.raises(InputError, match="no time for stages 2:5"):
        profile.service_time_s(INFO, 2, 5)


def test_real_holds_nothing() -> None:
    assert load_profile("real", PROFILES).service_time_s(INFO, 0, 5) is None


@pytest.mark.parametrize("text", ["", "slowdown: 0\n", "slowdown: fast\n", "slow: 3\n", "table: {m: {'2:1': 1ms}}\n",
                                  "table: {m: {'0:1': 5}}\n"])
def test_wrong_profiles(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_profile(write(tmp_path, text), tmp_path)


def test_an_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"use one of real, a100-server, cloud-server, edge-server, .*raspberry-pi-4"):
        load_profile("abacus", PROFILES)


def test_a_floor_counts_per_stage_and_below_it_only(tmp_path: Path) -> None:
    """A GPU's stage takes its launch or its work, whichever is longer: with a floor between the stages' times, some of both."""
    profile = load_profile(write(tmp_path, "slowdown: 2\nfloor: 0.9ms\n"), tmp_path)
    times = [2 * s.reference_time_s for s in INFO.stages]
    assert min(times) < 0.0009 < max(times)
    assert profile.service_time_s(INFO, 0, 5) == pytest.approx(sum(max(t, 0.0009) for t in times))
    assert profile.service_time_s(INFO, 0, 2) + profile.service_time_s(INFO, 2, 5) == pytest.approx(  # type: ignore[operator]
        profile.service_time_s(INFO, 0, 5))


def test_heads_and_spreads(tmp_path: Path) -> None:
    text = ("table: {digits_branchy: {'0:3': {median: 30ms, p5: 29ms, p95: 40ms, cv: 0.1}}}\nslowdown: 10\n"
            "heads: {digits_branchy: {early: 2ms}}\n")
    profile = load_profile(write(tmp_path, text), tmp_path)
    assert profile.service_time_s(INFO, 0, 3, (2,)) == pytest.approx(0.032)
    assert profile.service_time_s(INFO, 3, 5, (4,)) == pytest.approx(10 * INFO.reference_time_s(3, 5))


def test_a_profile_without_a_time_for_some_stage_does_not_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no time for stages 3:4"):
        load_profile(write(tmp_path, "table: {digits_branchy: {'0:1': 1ms, '1:2': 1ms, '2:3': 1ms}}\n"), tmp_path).check(INFO)
    load_profile("t4-server", PROFILES).check(INFO)
