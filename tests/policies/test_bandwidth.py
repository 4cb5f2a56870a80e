"""Estimators of rate and round trip: convergence, steps, hostile samples, closed forms."""

import math
import random

import pytest

from testbed.policies import Context, Outcome, Plan, Probe, Step, Transfer
from testbed.policies.bandwidth import (
    ESTIMATORS,
    MAX_BPS,
    MESSAGE_BYTES,
    MIN_BPS,
    Ewma,
    Kalman,
    Path,
    RoundTrip,
    make_estimator,
    paths_from,
)

S = 1_000_000_000
PLAN = Plan("p", (Step("edge1", "net", 0, 1),))


def outcome(t_ns: int, *transfers: Transfer) -> Outcome:
    return Outcome("r", PLAN, "ok", 0.1, None, None, "edge1", t_ns=t_ns, transfers=transfers)


def probe(t_ns: int, rtt_s: float | None, size_bytes: int, duration_s: float | None, node: str = "edge1") -> Probe:
    return Probe(node, t_ns, rtt_s, size_bytes, duration_s)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_constant_rate_is_found_with_the_first_sample_and_kept(kind: str) -> None:
    estimator = make_estimator(kind, initial_bps=1e6)
    assert estimator.bps == 1e6 and estimator.age_s(5 * S) == math.inf
    for i in range(20):
        assert estimator.update(50_000, 0.02 + 50_000 * 8 / 4e6, 0.02, i * S)
        assert estimator.bps == pytest.approx(4e6)
    assert estimator.age_s(21 * S) == pytest.approx(2.0) and estimator.samples == 20


def test_the_error_of_the_moving_average_halves_with_each_sample() -> None:
    estimator = Ewma()
    estimator.update(10_000, 0.08, 0, 0)  # 1 Mbit/s
    errors = []
    for i in range(12):
        estimator.update(10_000, 0.01, 0, i * S)  # a step to 8 Mbit/s
        errors.append(8e6 - estimator.bps)
    assert errors == pytest.approx([7e6 * 0.5 ** (n + 1) for n in range(12)])


@pytest.mark.parametrize("eps", [0.1, 0.01, 0.001])
def test_a_step_is_recovered_within_the_samples_that_theory_says(eps: float) -> None:
    estimator = Ewma()
    estimator.update(10_000, 0.08, 0, 0)
    needed = math.ceil(math.log(eps) / math.log(0.5))
    for i in range(needed):
        estimator.update(10_000, 0.01, 0, i)
    assert abs(8e6 - estimator.bps) <= eps * 7e6
    assert needed == 1 or abs(8e6 - 7e6 * 0.5 ** (needed - 1) - 8e6) > eps * 7e6  # one sample less is not enough


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_whatever_arrives_the_estimate_stays_positive_and_finite(kind: str) -> None:
    draw = random.Random(3)
    estimator = make_estimator(kind)
    odd = [0.0, -1.0, 1e-300, 1e-12, 1e300, math.inf, -math.inf, math.nan]
    for _ in range(3000):
        size = draw.choice([0, -5, 1, 600, 1e5, 1e12, math.nan])
        estimator.update(size, draw.choice([*odd, draw.random()]), draw.choice([*odd, draw.random()]), draw.randrange(10**12))
        assert MIN_BPS <= estimator.bps <= MAX_BPS


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_echo_faster_than_the_round_trip_is_ignored(kind: str) -> None:
    estimator = make_estimator(kind)
    assert not estimator.update(100_000, 0.03, 0.05, S)
    assert estimator.bps == estimator.initial_bps and estimator.age_s(S) == math.inf


def test_kalman_reaches_the_closed_form_of_the_steady_gain() -> None:
    # random walk with q = Q * dt and noise r: P = (q + sqrt(q^2 + 4 q r)) / 2 before the update, K = P / (P + r)
    noise, drift = 0.2, 0.1
    estimator = Kalman(drift=drift, noise=noise, timing_s=0)
    for i in range(200):
        estimator.update(1e6 / 8, 1.0, 0, i * S)
    q, r = drift**2, noise**2
    p = (q + math.sqrt(q * q + 4 * q * r)) / 2
    assert estimator.gain == pytest.approx(p / (p + r))
    assert estimator.variance == pytest.approx(p - q)


def test_kalman_without_drift_is_the_mean_of_equal_samples() -> None:
    estimator = Kalman(drift=0, noise=0.2, timing_s=0)
    for i in range(1, 50):
        estimator.update(1e6 / 8, 1.0, 0, i * S)
        assert estimator.gain == pytest.approx(1 / i)  # the running mean's weight
        assert estimator.variance == pytest.approx(0.2**2 / i)


def test_kalman_beats_the_last_sample_on_a_noisy_constant_and_follows_a_step() -> None:
    draw = random.Random(1)
    filtered, last = Kalman(drift=0.05), make_estimator("last")
    wrong = {"filtered": 0.0, "last": 0.0}
    for i in range(300):
        sending_s = 100_000 * 8 / 5e6 * max(0.2, draw.gauss(1, 0.3))
        for name, estimator in (("filtered", filtered), ("last", last)):
            estimator.update(100_000, sending_s, 0, i * S)
            wrong[name] += (estimator.bps - 5e6) ** 2 if i > 20 else 0
    assert wrong["filtered"] < 0.3 * wrong["last"]
    for i in range(300, 400):
        filtered.update(100_000, 100_000 * 8 / 1e6, 0, i * S)
    assert filtered.bps == pytest.approx(1e6, rel=0.05)


def test_kalman_leaves_an_outage_as_fast_as_it_entered_it() -> None:
    def distances(before: float, after: float) -> list[float]:
        estimator, found = Kalman(), []
        estimator.update(before / 8, 1.0, 0, 0)
        for i in range(1, 8):
            estimator.update(after / 8, 1.0, 0, i * S)
            found.append(abs(math.log(estimator.bps / after)))
        return found

    assert distances(10e6, 0.1e6) == pytest.approx(distances(0.1e6, 10e6))


def test_a_short_transfer_moves_the_kalman_filter_less_than_a_long_one() -> None:
    def moved(size_bytes: float) -> float:
        estimator = Kalman()
        estimator.update(100_000, 0.8, 0, 0)  # 1 Mbit/s
        estimator.update(size_bytes, size_bytes * 8 / 2e6, 0, S)
        return estimator.bps - 1e6

    gains = [moved(size) for size in (200, 2000, 20_000, 200_000)]
    assert gains == sorted(gains) and gains[0] < 0.1 * gains[-1]


def test_a_smoothed_round_trip_halves_its_error_with_each_echo_and_goes_before_answers() -> None:
    rtt = RoundTrip(0.05, alpha=0.5)
    assert rtt.s == 0.05 and rtt.age_s(S) == math.inf
    rtt.update_one_way(0.03, S)
    rtt.update_one_way(0.012, S)
    assert rtt.s == pytest.approx(0.024)
    rtt.update(0.1, S)
    for n in range(1, 10):
        rtt.update(0.02, n * S)
        assert rtt.s - 0.02 == pytest.approx(0.08 * 0.5**n)
    assert not rtt.update(-1, S) and not rtt.update(math.nan, S) and not rtt.update_one_way(0, S)


def test_the_shortest_of_the_last_samples_is_the_round_trip_whatever_waited() -> None:
    draw, rtt, seen = random.Random(2), RoundTrip(0.05, window=16), []
    assert rtt.s == 0.05
    for i in range(100):
        if draw.random() < 0.5:
            seen.append(0.04 + draw.expovariate(10))
            rtt.update(seen[-1], i * S)
        else:
            one_way = 0.02 + draw.expovariate(20)
            seen.append(2 * one_way)
            rtt.update_one_way(one_way, i * S)
        assert rtt.s == pytest.approx(min(seen[-16:]))
    assert rtt.age_s(101 * S) == pytest.approx(2)


def test_echoes_that_wait_behind_a_request_do_not_make_the_rate_look_higher() -> None:
    path = Path("device1", "edge1", Ewma())
    for i in range(20):  # 0.4 Mbit/s, 40 ms; every echo waits for an upload of its own device
        path.observe(outcome(i * S, Transfer("device1", "edge1", 12_600, 0.02 + 0.252), Transfer("edge1", "device1", 900, 0.02)))
        path.observe_probe(probe(i * S, 0.29, 10_000, 0.04 + 0.2))
        assert path.rate.bps == pytest.approx(0.4e6, rel=1e-6) and path.rtt.s == pytest.approx(0.04)


def test_a_path_finds_rate_and_delay_from_transfers_of_its_own_way_only() -> None:
    path = Path("device1", "edge1", Ewma())
    for i in range(30):
        path.observe(outcome(i * S,
                             Transfer("device1", "edge1", 66_000, 0.02 + 66_000 * 8 / 3e6), Transfer("edge1", "device1", 900, 0.02),
                             Transfer("device1", "edge1", 300, 5.0),  # too small for a rate
                             Transfer("edge1", "device1", 90_000, 9.0),  # too large for a delay
                             Transfer("edge1", "cloud1", 66_000, 0.001), Transfer("device1", "cloud1", 66_000, 0.001)))
    assert path.rate.bps == pytest.approx(3e6)
    assert path.rtt.s == pytest.approx(0.04)
    assert path.transfer_s(10_000) == pytest.approx((10_000 + MESSAGE_BYTES) * 8 / 3e6 + 0.02)
    assert path.answer_s == pytest.approx(0.02)


def test_a_path_learns_from_probes_as_layercake_does() -> None:
    path = Path("device1", "edge1", Ewma())
    path.observe_probe(probe(S, 0.06, 100_000, 0.06 + 100_000 * 8 / 2e6))
    assert (path.rate.bps, path.rtt.s) == (pytest.approx(2e6), pytest.approx(0.06))
    path.observe_probe(probe(2 * S, 0.06, 100_000, 0.05))  # faster than the round trip
    path.observe_probe(probe(2 * S, None, 100_000, None))  # failed
    path.observe_probe(probe(2 * S, 0.001, 100_000, 0.01, node="cloud1"))
    assert (path.rate.bps, path.rtt.s) == (pytest.approx(2e6), pytest.approx(0.06))
    assert path.scores(4 * S) == {"bandwidth_bps": pytest.approx(2e6), "bandwidth_age_s": pytest.approx(3), "rtt_s": pytest.approx(0.06)}


def test_paths_lead_to_every_remote_node_and_bad_options_are_refused() -> None:
    context = Context("device1", {"device": "device1", "edge": "edge1", "cloud": "cloud1"}, ("device", "edge", "cloud"), {}, "net", 0.1, 1)
    assert set(paths_from(context)) == {"edge1", "cloud1"}
    for options in ({"estimator": "best"}, {"initial_bps": 0}, {"initial_bps": math.inf}, {"initial_rtt_s": -1}):
        with pytest.raises(ValueError):
            paths_from(context, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha"):
        Ewma(alpha=0)
    with pytest.raises(ValueError, match="Kalman"):
        Kalman(noise=0)
