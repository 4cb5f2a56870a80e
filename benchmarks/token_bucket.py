"""Token-bucket offloading: speed of value iteration, 10^7 simulated arrivals against the exact chain, time of DQN training.

    python benchmarks/token_bucket.py [--arrivals 10000000] [--dqn]

Metrics are drawn from a beta distribution; the true reward is the metric, so the chain's mean reward is exact. Results are in
docs/scenarios/token_bucket.md. Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.dqn import Recipe, Transitions, train
from testbed.policies.token_bucket.mdp import Choices, average_reward, solve
from testbed.policies.token_bucket.rules import Mdp
from testbed.policies.token_bucket.sequences import independent, periodic

IMAGES = 20_000
SEQUENCES = 2000


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrivals", type=int, default=10_000_000)
    parser.add_argument("--dqn", action="store_true", help="also time 50 iterations of the documented DQN run")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    metric = rng.beta(1, 3, IMAGES)
    choices = Choices.of(metric, metric)
    for rate, depth in ((0.05, 5), (0.01, 1), (0.1, 10), (0.5, 50)):
        bucket, begin = Bucket.of(rate, depth), time.process_time()
        found = solve(bucket, choices)
        spent = time.process_time() - begin
        print(f"value iteration, r={rate:g}, b={depth:g}, M={bucket.depth}: {spent:.2f} s, {found.sweeps} sweeps")
    for rate, depth in ((0.1, 5), (0.25, 2)):
        bucket = Bucket.of(rate, depth)
        found = solve(bucket, choices)
        length, begin = options.arrivals // SEQUENCES, time.process_time()
        drawn = metric[independent(IMAGES, SEQUENCES, length, rng)]
        warm = length // 10  # the bucket starts full
        saved = (Mdp(found).offloads(bucket, drawn, periodic()) * drawn)[:, warm:].mean(1)
        exact, error = average_reward(found, metric, metric), saved.std(ddof=1) / np.sqrt(SEQUENCES)
        print(f"{SEQUENCES * length} arrivals, r={rate:g}, b={depth:g}: simulated {saved.mean():.6f}, exact {exact:.6f}, "
              f"{(saved.mean() - exact) / error:+.2f} standard errors, {time.process_time() - begin:.1f} s")
    if options.dqn:
        data = metric[independent(IMAGES, 100, 5000, rng)].astype(np.float32)
        short = Recipe(phases=((50, 1e-3),))
        begin = time.process_time()
        train(Bucket.of(0.1, 4), Transitions(data, data, np.ones(data.shape, np.int64)), short, 1)
        spent = time.process_time() - begin
        print(f"DQN, r=0.1, b=4: {spent / 50:.3f} s per iteration, {spent / 50 * Recipe().iterations / 60:.1f} min for "
              f"{Recipe().iterations} iterations")


if __name__ == "__main__":
    main()
