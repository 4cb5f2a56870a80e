"""How long does a slot of INFIDA take? Topology I, and trees of about 1,000 nodes.

    OMP_NUM_THREADS=1 python benchmarks/placement.py [--slots 30]

Times are CPU times of one core (other work on the machine does not count). A slot is: potential capacities, subgradient, mirror
step and projection, rounding (every slot), and the engine's account of cost and gain. The first two slots are not counted.
Results are in docs/scenarios/idn.md.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from testbed.placement.base import Slot
from testbed.placement.engine import run
from testbed.placement.gain import served
from testbed.placement.infida import Infida
from testbed.placement.popularity import draw
from testbed.placement.problem import Problem
from testbed.placement.topologies import TOPOLOGIES, Tier, tree

LARGE = (Tier("base-station", 800, 6.0, 4e9, "lower"), Tier("central-office", 160, 6.0, 8e9, "lower"),
         Tier("regional-office", 32, 15.0, 16e9, "upper"), Tier("isp", 7, 40.0, 24e9, "upper"),
         Tier("cloud", 1, 0.0, np.inf, "upper"))


def slot_times_ms(problem: Problem, slots: int) -> tuple[list[float], list[float]]:
    """Times of INFIDA's update alone, and of whole slots of the engine, in ms."""
    entries = problem.num_types // problem.num_tasks
    demand = draw(entries, problem.num_tasks, slots + 2, rate_per_s=312.5 * entries, slot_s=60, exponent=1.2, seed=1).requests
    policy, update = Infida(problem, 1), []
    placed = policy.first()
    for t in range(slots + 2):
        potential = problem.potential(demand[t])
        slot = Slot(t, demand[t], potential, placed, served(problem, demand[t], potential, placed))
        began = time.process_time()
        problem.potential(demand[t])
        placed = policy.update(slot)
        update.append((time.process_time() - began) * 1e3)
    ends: list[float] = []
    run(problem, Infida(problem, 1), demand, lambda t, slot: ends.append(time.process_time()))
    return update[2:], list(np.diff(ends)[1:] * 1e3)


def main() -> None:
    """Print medians and the slowest tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=30)
    slots = parser.parse_args().slots
    print("network                 nodes  models  request types   update ms (p90)    slot ms (p90)   1,000 slots min")
    for name, tiers, copies in (("topology I, 3 copies", TOPOLOGIES["I"], 3), ("topology I, 5 copies", TOPOLOGIES["I"], 5),
                                ("large, 1 copy", LARGE, 1), ("large, 3 copies", LARGE, 3)):
        problem = tree(tiers, copies=copies)
        update, slot = slot_times_ms(problem, slots)
        print(f"{name:22s} {len(problem.nodes):6d} {len(problem.models):7d} {problem.num_types:14d}   "
              f"{np.median(update):9.1f} ({np.quantile(update, 0.9):.1f}) {np.median(slot):10.1f} ({np.quantile(slot, 0.9):.1f}) "
              f"{np.median(slot) / 60:12.2f}", flush=True)


if __name__ == "__main__":
    main()
