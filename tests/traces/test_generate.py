"""The generator: reproducible to the byte, exact means, statistics like those of real captures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from testbed.cli import main
from testbed.errors import InputError
from testbed.traces import load_trace
from testbed.traces.generate import MOBILITY, generate_pair
from testbed.traces.statistics import describe, window_rates_bps

SHIPPED = Path(__file__).resolve().parents[2] / "traces"


def commands() -> list[str]:
    """The commands that traces/README.md says made the shipped files."""
    return re.findall(r"`testbed (traces generate [^`]*)`", (SHIPPED / "README.md").read_text())


@pytest.mark.parametrize("command", [pytest.param(command, id=command.split()[2]) for command in commands()])
def test_shipped_traces_are_what_the_readme_commands_make(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    for direction in ("up", "down"):
        name = f"{command.split()[2]}.{direction}"
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_every_shipped_trace_has_its_command():
    made = {f"{command.split()[2]}.{direction}" for command in commands() for direction in ("up", "down")}
    assert made == {path.name for path in SHIPPED.iterdir() if path.name != "README.md"}
    assert all(name.startswith("synthetic-") for name in made)


@pytest.mark.parametrize("mobility", MOBILITY)
def test_mean_and_length_are_what_was_asked(mobility):
    up, down = generate_pair(mobility, 11, duration_s=60.02, up_bps=2_500_000, down_bps=20e6)
    assert up.duration_ns == down.duration_ns == 60_020_000_000
    assert up.mean_rate_bps == pytest.approx(2.5e6, rel=1e-4)
    assert down.mean_rate_bps == pytest.approx(20e6, rel=1e-4)


def test_another_seed_is_another_trace_and_outages_are_shared():
    up, down = generate_pair("driving", 5, duration_s=120, up_bps=4e6, down_bps=10e6)
    again, _ = generate_pair("driving", 5, duration_s=120, up_bps=4e6, down_bps=10e6)
    other, _ = generate_pair("driving", 6, duration_s=120, up_bps=4e6, down_bps=10e6)
    assert up == again and up != other
    assert ((up.bits == 0) == (down.bits == 0)).mean() > 0.999


def test_switches():
    calm, _ = generate_pair(
        "static", 1, duration_s=60, up_bps=4e6, down_bps=4e6, variability=0, outages_per_min=0
    )
    assert set(calm.bits.tolist()) == {80_000}  # 4 Mbit/s in every 20 ms
    rough, _ = generate_pair("static", 1, duration_s=60, up_bps=4e6, down_bps=4e6, outages_per_min=10)
    assert describe(rough).zero_share > 0.05


# public captures at 1 s and 100 ms (docs/traces.md), with some room: (lowest, highest)
REAL = {
    "static": {"cov_1s": (0.2, 0.35), "cov_100ms": (0.25, 0.45), "autocorrelation_s": (1, 6)},
    "walking": {"cov_1s": (0.4, 0.65), "cov_100ms": (0.65, 0.95), "autocorrelation_s": (1, 6)},
    "driving": {"cov_1s": (0.5, 0.8), "cov_100ms": (0.58, 0.92), "autocorrelation_s": (2.5, 12)},
}


@pytest.mark.parametrize("mobility", MOBILITY)
def test_statistics_lie_in_the_range_of_real_captures(mobility):
    """Medians over ten seeds of three minutes each, so that no single seed decides."""
    found = [
        describe(trace)
        for seed in range(10)
        for trace in generate_pair(mobility, seed, duration_s=180, up_bps=4e6, down_bps=10e6)
    ]
    for key, (low, high) in REAL[mobility].items():
        assert low <= np.median([getattr(one, key) for one in found]) <= high, key
    assert np.mean([one.zero_share for one in found]) < 0.02  # as in all captures but one


def test_slow_variation_is_shared_between_directions():
    """Half of the slow variance is common: in 1 s windows of long drives, correlation around one half."""
    pairs = [generate_pair("driving", seed, duration_s=600, up_bps=4e6, down_bps=4e6) for seed in range(4)]
    values = [
        np.corrcoef(window_rates_bps(up, 10**9), window_rates_bps(down, 10**9))[0, 1] for up, down in pairs
    ]
    assert 0.3 < np.mean(values) < 0.8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mobility": "flying"}, "static, walking, driving"),
        ({"duration_s": 10.01}, "20 ms"),
        ({"duration_s": 0}, "duration"),
        ({"up_bps": 0}, "mean rate"),
        ({"variability": -1}, "variability"),
        ({"outages_per_min": 500}, "outages"),
    ],
)
def test_bad_parameters(change, word):
    good = {"mobility": "driving", "seed": 1, "duration_s": 10.0, "up_bps": 1e6, "down_bps": 1e6}
    with pytest.raises(InputError, match=word):
        generate_pair(**{**good, **change})


def test_shipped_traces_have_the_means_that_are_promised():
    for path in SHIPPED.glob("synthetic-*"):
        trace = load_trace(path)
        assert trace.mean_rate_bps == pytest.approx(4e6 if path.suffix == ".up" else 10e6, rel=1e-3)
        assert trace.duration_ns == 150 * 10**9
