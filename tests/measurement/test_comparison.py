"""Paired comparisons: identical conditions or a refusal, closed forms, parts that add up, the sign of a longer run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from testbed.cli import main
from testbed.errors import InputError
from testbed.measurement.comparison import compare
from testbed.measurement.comparison_view import comparison_html, judgement, write_comparison
from testbed.measurement.pairing import condition_differences
from testbed.measurement.records import REQUESTS, latency_s, read_table, write_table
from testbed.measurement.stats import Interval, difference_interval, quantile_interval, unit_correlation, units_of
from testbed.measurement.summary import group_trials
from testbed.measurement.trial import load_run, load_trial

from .fake_run import edit_json, make_run, make_trial
from .test_report import Page


def groups(run: Path):
    return {group.policy: group for group in group_trials(load_run(run), intervals=False)}


@pytest.fixture(scope="module")
def found(pristine_run):
    both = groups(pristine_run)
    return compare(both["edge-only"], both["cloud-only"])


def by_name(effects):
    return {effect.metric: effect for effect in effects}


def test_difference_is_that_of_the_pairs(found, pristine_run):
    """Oracle: pairs made by hand from the two tables."""
    tables = []
    for config in ("cfg10", "cfg20"):
        rows = read_table(pristine_run / config / "0" / "requests.csv", REQUESTS)
        rows = rows[(rows["phase"] == "measure") & (rows["status"] == "ok")].set_index("request_id")
        tables.append(latency_s(rows))
    pairs = (tables[1] - tables[0]).dropna()
    mean = by_name(found.effects)["latency_mean"]
    assert mean.n == len(pairs) == found.requests and mean.difference == pytest.approx(pairs.mean())
    middle = by_name(found.effects)["latency_pair_median"]
    assert middle.difference == pytest.approx(sorted(pairs)[(len(pairs) - 1) // 2]) and middle.low > 0
    assert mean.low < mean.difference < mean.high and mean.sign == 1  # the cloud is 40 ms further away
    assert mean.relative[0] == pytest.approx(pairs.mean() / tables[0].mean())


def test_pairing_is_what_makes_it_sharp(pristine_run, found):
    both = groups(pristine_run)
    loose = compare(both["edge-only"], both["cloud-only"], paired=False)
    sharp, wide = (by_name(c.effects)["latency_mean"] for c in (found, loose))
    assert sharp.difference == pytest.approx(wide.difference)
    assert sharp.high - sharp.low < 0.8 * (wide.high - wide.low)


def test_parts_of_the_difference_add_up(found):
    mean = by_name(found.effects)["latency_mean"]
    assert sum(part.difference for part in found.tiers) == pytest.approx(mean.difference)
    tiers = by_name(found.tiers)
    assert tiers["edge"].difference < 0 < tiers["cloud"].difference
    assert tiers["device-edge up"].b == 0 and tiers["device-cloud up"].a == 0
    assert judgement(tiers["edge"]) == "better" and judgement(tiers["cloud"]) == "worse"


def test_shares_have_mcnemar_counts(found, pristine_run):
    accuracy = by_name(found.effects)["accuracy"]
    right = []
    for config in ("cfg10", "cfg20"):
        rows = read_table(pristine_run / config / "0" / "requests.csv", REQUESTS)
        right.append(rows[rows["phase"] == "measure"].set_index("request_id")["correct"])
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    assert (accuracy.only_a, accuracy.only_b) == (only_a, only_b)
    assert accuracy.p_value == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b).pvalue)
    assert accuracy.difference == pytest.approx((only_b - only_a) / accuracy.n)


def test_difference_of_shares_against_newcombe():
    """Newcombe 1998, Statistics in Medicine 17:2635, table II, 56/70 against 48/80 (method 10, unpaired): 0.0524 to 0.3339."""
    z = 1.959964

    def wilson(x, n):
        p, scale = x / n, 1 + z * z / n
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
        return Interval((p + z * z / (2 * n)) / scale - reach, (p + z * z / (2 * n)) / scale + reach)

    low, high, _ = difference_interval(48 / 80, wilson(48, 80), 56 / 70, wilson(56, 70))
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_a_policy_does_not_differ_from_itself(pristine_run):
    same = groups(pristine_run)["split"]
    found = compare(same, same)
    for effect in (*found.effects, *found.tiers):
        assert not effect.difference and effect.sign == 0
    assert found.differs == ()


def test_the_sign_is_the_one_of_a_longer_run(tmp_path):
    short, long = (groups(make_run(tmp_path / str(n), requests_per_device=n, policies=("edge-only", "cloud-only")))
                   for n in (60, 400))
    first, second = (by_name(compare(g["edge-only"], g["cloud-only"]).effects) for g in (short, long))
    for name in ("latency_mean", "latency_p50"):
        assert first[name].sign == second[name].sign == 1
    low, high = first["latency_mean"].low, first["latency_mean"].high
    assert low < second["latency_mean"].difference < high


def test_paired_percentile_differences_cover():
    """Two series whose slow part (an autoregression, as of a link) is the same and whose medians differ by a known amount."""
    rng, units, held = np.random.default_rng(6), units_of(np.zeros(400, dtype=int)), 0
    for _ in range(400):
        shared = lfilter([1.0], [1.0, -0.8], 0.6 * rng.normal(size=600))[200:]
        x, y = (np.exp(0.5 * (0.8 * shared + 0.6 * rng.normal(size=400)) + shift) for shift in (0.0, 0.2))
        a, b = (float(np.sort(v)[199]) for v in (x, y))
        alike = unit_correlation((x <= a).astype(float), (y <= b).astype(float), units)
        low, high, _ = difference_interval(a, quantile_interval(x, 0.5, units), b, quantile_interval(y, 0.5, units), alike)
        held += low <= math.exp(0.2) - 1 <= high
    assert 0.93 <= held / 400 <= 0.985


def moved(trial):
    path = trial / "requests.csv"
    rows = read_table(path, REQUESTS)
    rows.loc[rows.index[10:], "scheduled_ns"] += 5_000_000
    write_table(path, REQUESTS, rows)


def other_samples(trial):
    path = trial / "requests.csv"
    rows = read_table(path, REQUESTS)
    rows.loc[rows.index[:20], "sample_index"] += 1
    write_table(path, REQUESTS, rows)


def other_offset(trial):
    edit_json(trial / "manifest.json", lambda m: m["links"][0]["up"]["trace"].update(offset_ns=3_500_000_000))


def other_trace(trial):
    edit_json(trial / "manifest.json", lambda m: m["links"][1]["down"]["trace"].update(sha256="cd" * 32))


def lost(trial):
    path = trial / "requests.csv"
    write_table(path, REQUESTS, read_table(path, REQUESTS).iloc[:-3])


@pytest.mark.parametrize(("change", "words"), [
    (moved, "requests arrived at another time"), (other_samples, "requests sent another sample"),
    (other_offset, r"link device1-edge1 up began its trace 0.000 s in and 3.500 s in"),
    (other_trace, "link device2-edge1 down replays another trace"), (lost, "3 of the measured requests exist on one side"),
])
def test_other_conditions_are_refused_and_named(run, change, words, capsys):
    change(run / "cfg20" / "0")
    both = groups(run)
    with pytest.raises(InputError, match=words):
        compare(both["edge-only"], both["cloud-only"])
    assert compare(both["edge-only"], both["cloud-only"], paired=False).effects
    assert main(["compare", str(run / "cfg10" / "0"), str(run / "cfg20" / "0")]) == 2
    assert "--unpaired" in capsys.readouterr().err


def test_repeats_must_be_the_same(tmp_path):
    run = make_run(tmp_path, requests_per_device=20, policies=("edge-only", "split"), repeats=2)
    both = groups(run)
    one = group_trials([load_trial(run / "cfg10" / "0")], intervals=False)[0]
    with pytest.raises(InputError, match=r"repeats \[0, 1\] of edge-only and \[0\] of split"):
        compare(both["edge-only"], one)


def test_closed_arrivals_have_no_schedule_to_compare(run):
    for config in ("cfg10", "cfg20"):
        edit_json(run / config / "0" / "manifest.json", lambda m: m["config"].update(load={"arrivals": "closed"}))
    moved(run / "cfg20" / "0")
    assert condition_differences(load_trial(run / "cfg10" / "0"), load_trial(run / "cfg20" / "0")) == []


def test_failed_requests_count_in_shares_not_in_latency(tmp_path):
    whole = group_trials([load_trial(make_trial(tmp_path / "a" / "0", "edge-only", requests_per_device=60))])[0]
    broken = group_trials([load_trial(make_trial(tmp_path / "b" / "0", "edge-only", requests_per_device=60, failing=9))])[0]
    effects = by_name(compare(whole, broken).effects)
    assert effects["latency_mean"].n < effects["failed_share"].n and effects["failed_share"].difference > 0
    assert effects["failed_share"].only_a == 0 and effects["failed_share"].p_value < 0.001


def test_command_prints_and_plots(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    page, picture = tmp_path / "c.html", tmp_path / "c.svg"
    assert main(["compare", str(run), "--by", "policy", "--baseline", "split", "-o", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.count("against   A: split") == 4 and "effect per tier" in out and "●" in out
    parsed = Page(page.read_text())
    assert parsed.fetches == ["data:,"] and "edge-only" in " ".join(parsed.words) and len(parsed.scripts) == 1  # the style
    assert main(["compare", str(run / "cfg10" / "0"), str(run / "cfg30" / "0"), "-o", str(picture)]) == 0
    assert "<svg" in picture.read_text()


def test_swept_values_are_compared_per_policy(tmp_path, capsys):
    sweep = ({"trace_scale": 0.5}, {"trace_scale": 1.0})
    run = make_run(tmp_path, requests_per_device=20, policies=("edge-only", "split"), sweep=sweep)
    assert main(["compare", str(run), "--by", "trace_scale", "--unpaired"]) == 0
    out = capsys.readouterr().out
    assert "split (trace_scale=1.0)   against   A: split (trace_scale=0.5)" in out and "edge-only (trace_scale=1.0)" in out


@pytest.mark.parametrize(("words", "said"), [
    ([], "--by"), (["--by", "rate"], "policy"), (["--by", "policy", "--baseline", "none"], "edge-only"),
    (["--by", "policy", "-o", "x.pdf"], ".html"),
])
def test_wrong_calls_say_what_is_right(run, words, said, capsys):
    assert main(["compare", str(run), *words]) == 2
    assert said in capsys.readouterr().err


def test_hostile_names_stay_text(found, tmp_path):
    from dataclasses import replace

    evil = "</style><script>alert(1)</script>"
    assert "<script>" not in comparison_html([replace(found, name_a=evil)])
    with pytest.raises(InputError, match="no kind of file"):
        write_comparison(tmp_path / "x.txt", [found])
