"""What a direction's specification accepts, and the numbers that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.emulation.direction import DirectionSpec, GilbertElliott, QueueLimit
from testbed.emulation.impairment import TABLE_SCALE, Impairment
from testbed.errors import InputError
from testbed.traces.trace import constant


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_bps": 1_000_000, "trace": constant(1_000_000)},
        {"rate_bps": -1},
        {"rate_bps": 10**12},
        {"delay_s": -0.001},
        {"delay_s": float("nan")},
        {"jitter_s": float("inf")},
        {"loss": 1.5},
        {"duplicate": -0.1},
        {"loss": 0.1, "gilbert_elliott": GilbertElliott(0.1, 0.2)},
        {"jitter_samples_s": (0.01,)},
    ],
)
def test_values_that_no_link_can_have_are_refused(wrong):
    with pytest.raises(InputError):
        DirectionSpec(**wrong)


@pytest.mark.parametrize("wrong", [{}, {"bytes": 1, "packets": 1}, {"packets": 0}, {"seconds": -1.0}])
def test_a_queue_has_exactly_one_limit(wrong):
    with pytest.raises(InputError):
        QueueLimit(**wrong)


def test_the_default_queue_is_30_packets_or_200_ms():
    assert DirectionSpec(rate_bps=500_000).queue_limit() == ("bytes", 30 * 1500)
    assert DirectionSpec(rate_bps=100_000_000).queue_limit() == ("bytes", 2_500_000)
    assert DirectionSpec(trace=constant(40_000_000)).queue_limit() == ("bytes", 1_000_000)
    assert DirectionSpec(rate_bps=1_000_000, queue=QueueLimit(packets=7)).queue_limit() == ("packets", 7)
    assert DirectionSpec(rate_bps=8_000_000, queue=QueueLimit(seconds=0.05)).queue_limit() == ("bytes", 50_000)
    assert DirectionSpec(rate_bps=8000, queue=QueueLimit(seconds=0.05)).queue_limit() == ("bytes", 3000)


@pytest.mark.parametrize(("distribution", "spread"), [("normal", 1.0), ("uniform", 1 / np.sqrt(3)), ("pareto", None)])
def test_tables_are_centred_and_scaled(distribution, spread):
    table = DirectionSpec(jitter_distribution=distribution).jitter_table / TABLE_SCALE
    assert (np.diff(table) >= 0).all()
    assert abs(table).max() <= 4.0
    if spread is not None:
        assert abs(table.mean()) < 1e-3
        assert table.std() == pytest.approx(spread, rel=0.01)
    else:  # cut at four: a little mean and much of the spread of a heavy tail are lost
        assert -0.2 < table.mean() < 0
        assert 0.5 < table.std() < 1


def test_an_rtt_log_gives_half_its_mean_and_its_own_shape():
    log = [0.030, 0.032, 0.034, 0.080] * 50
    spec = DirectionSpec().with_rtt_log(log)
    one_way = np.array(log) / 2
    assert spec.delay_s == pytest.approx(one_way.mean())
    assert spec.jitter_s == pytest.approx(one_way.std())
    drawn = spec.delay_s + spec.jitter_table / TABLE_SCALE * spec.jitter_s
    assert np.quantile(drawn, [0.1, 0.4, 0.6, 0.9]) == pytest.approx([0.015, 0.016, 0.017, 0.040], abs=2e-5)


@pytest.mark.parametrize(("loss", "correlation"), [(0.01, 0.25), (0.1, 0.5), (0.3, 0.9)])
def test_correlated_loss_keeps_its_mean(loss, correlation):
    chain = GilbertElliott.correlated(loss, correlation)
    assert chain.mean_loss == pytest.approx(loss)
    decide = Impairment(DirectionSpec(loss=loss, loss_correlation=correlation).impairment(), "seed")
    lost = np.array([not decide.delays_ns() for _ in range(200_000)], dtype=float)
    assert lost.mean() == pytest.approx(loss, rel=0.1)
    assert np.corrcoef(lost[1:], lost[:-1])[0, 1] == pytest.approx(correlation, abs=0.02)


def test_changes_are_checked_like_the_whole():
    spec = DirectionSpec(delay_s=0.01)
    assert spec.changed(loss=0.5).delay_s == 0.01
    for wrong in ({"loss": 2.0}, {"latency": 1}):
        with pytest.raises(InputError):
            spec.changed(**wrong)


def test_impairment_draws_are_the_seeds_own():
    values = DirectionSpec(delay_s=0.02, jitter_s=0.005, loss=0.2, duplicate=0.1, reorder=0.1).impairment()

    def draws(seed: str) -> list[tuple[int, ...]]:
        decide = Impairment(values, seed)
        return [decide.delays_ns() for _ in range(2000)]

    assert draws("1/a/up") == draws("1/a/up")
    assert draws("1/a/up") != draws("1/a/down")


def test_nothing_asked_is_nothing_done():
    decide = Impairment(DirectionSpec().impairment(), "x")
    assert decide.constant_ns == 0
    decide.change(DirectionSpec(delay_s=0.025).impairment())
    assert decide.delays_ns() == (25_000_000,)
