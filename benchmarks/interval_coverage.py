"""How often do the 95% intervals of testbed.measurement.stats hold the truth? Simulation on autocorrelated latencies.

    python benchmarks/interval_coverage.py [--replications 1000] [--seed 1]

Latencies are exp(0.5 z), z a Gaussian AR(1) process with coefficient phi, so mean and percentiles are known in closed form.
`in time` is the share below the 80th percentile, of the same correlated series. With several repeats each repeat is such a
series; `spread` is the standard deviation that repeats have in common over all their requests (a factor exp(spread w)).
A cell reads `coverage (offered)`: of the intervals that were given, the share that hold the truth; and how often one was
given. A row `percentile bootstrap` shows resampling of the same blocks without studentising, for comparison. Results of
1,000 replications are in docs/statistics.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from testbed.measurement.stats import Interval, quantile_interval, ratio_interval, share_interval, units_of

SIGMA = 0.5
FloatArray = npt.NDArray[np.float64]
PHIS = (0.0, 0.5, 0.7, 0.8, 0.9)
SINGLE = (120, 200, 400, 1000, 2000)  # requests of a run with one repeat
REPEATS = ((2, 200), (3, 120), (5, 120), (8, 60), (10, 120))  # repeats, requests in each


def latencies(rng: np.random.Generator, repeats: int, count: int, phi: float, spread: float = 0.0) -> FloatArray:
    """Draw (repeats * count,) latencies: lognormal margins over an AR(1) process per repeat."""
    noise = rng.normal(size=(repeats, count + 200)) * math.sqrt(1.0 - phi**2)
    level = lfilter([1.0], [1.0, -phi], noise, axis=1)[:, 200:]  # the first 200 bring it to its stationary state
    return np.asarray(np.exp(SIGMA * level + spread * rng.normal(size=(repeats, 1))).ravel(), dtype=np.float64)


def quantile(q: float, spread: float = 0.0) -> float:
    """True q-quantile of the margin."""
    return math.exp(math.hypot(SIGMA, spread) * float(scipy_stats.norm.ppf(q)))


def statistics(spread: float) -> dict[str, tuple[float, Callable[..., Interval]]]:
    """Name -> (truth, interval of a sample)."""
    limit = quantile(0.8, spread)
    return {
        "mean": (math.exp((SIGMA**2 + spread**2) / 2), lambda x, u, s: ratio_interval(x, np.ones_like(x), u, seed=s)),
        "p50": (1.0, lambda x, u, s: quantile_interval(x, 0.5, u)),
        "p95": (quantile(0.95, spread), lambda x, u, s: quantile_interval(x, 0.95, u)),
        "p99": (quantile(0.99, spread), lambda x, u, s: quantile_interval(x, 0.99, u)),
        "in time": (0.8, lambda x, u, s: share_interval((x <= limit).astype("float64"), u)),
    }


def coverage(repeats: int, count: int, phi: float, *, spread: float = 0.0, replications: int = 1000,
             seed: int = 1, names: tuple[str, ...] = ("mean", "p50", "p95", "p99", "in time")) -> dict[str, tuple[float, float]]:
    """Name -> (share of given intervals that hold the truth, share of replications that gave one)."""
    rng = np.random.default_rng([seed, repeats, count, int(phi * 100), int(spread * 100)])
    units = units_of(np.repeat(np.arange(repeats), count))
    wanted = {name: value for name, value in statistics(spread).items() if name in names}
    held, given = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0)
    for replication in range(replications):
        sample = latencies(rng, repeats, count, phi, spread)
        for name, (truth, interval) in wanted.items():
            low, high, _ = interval(sample, units, replication)
            if low is not None and high is not None:
                given[name] += 1
                held[name] += low <= truth <= high
    return {name: (held[name] / given[name] if given[name] else math.nan, given[name] / replications) for name in wanted}


def plain_bootstrap(count: int, phi: float, replications: int, seed: int) -> float:
    """Coverage of the percentile bootstrap of the mean over ten blocks, which the studentised one replaces."""
    rng, held = np.random.default_rng([seed, count, int(phi * 100)]), 0
    blocks = np.arange(count) * 10 // count
    size = np.bincount(blocks)
    for _ in range(replications):
        sums = np.bincount(blocks, weights=latencies(rng, 1, count, phi))
        drawn = rng.integers(10, size=(1000, 10))
        low, high = np.quantile(sums[drawn].sum(axis=1) / size[drawn].sum(axis=1), [0.025, 0.975])
        held += low <= math.exp(SIGMA**2 / 2) <= high
    return held / replications


def rows(replications: int, seed: int) -> Iterator[str]:
    """Lines of the tables, as Markdown."""
    head = ["mean", "p50", "p95", "p99", "in time"]

    def line(name: str, cells: dict[str, tuple[float, float]]) -> str:
        shown = ["-" if given == 0 else f"{held:.1%} ({given:.0%})" for held, given in cells.values()]
        return "| " + " | ".join([name, *shown]) + " |"

    yield "| requests, phi | " + " | ".join(head) + " |\n|---" + "|---" * len(head) + "|"
    for count in SINGLE:
        for phi in PHIS:
            yield line(f"{count}, {phi}", coverage(1, count, phi, replications=replications, seed=seed))
    yield "\n| repeats x requests, phi, spread | " + " | ".join(head) + " |\n|---" + "|---" * len(head) + "|"
    for repeats, count in REPEATS:
        for phi, spread in ((0.5, 0.0), (0.8, 0.0), (0.8, 0.2)):
            if spread and repeats < 5:
                continue  # blocks of time describe these repeats only
            cells = coverage(repeats, count, phi, spread=spread, replications=replications, seed=seed)
            yield line(f"{repeats} x {count}, {phi}, {spread}", cells)
    yield "\n| percentile bootstrap of the mean, ten blocks | coverage |\n|---|---|"
    for count in (200, 1000):
        for phi in PHIS:
            yield f"| {count}, {phi} | {plain_bootstrap(count, phi, replications, seed):.1%} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for text in rows(options.replications, options.seed):
        print(text, flush=True)
