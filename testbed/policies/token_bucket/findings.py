"""The shapes that the two papers lead one to expect, judged on what a study measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from testbed.measurement.study import Finding
from testbed.policies.token_bucket.engine import Cell, difference
from testbed.policies.token_bucket.spec import TokenBucketStudy

EQUAL = 0.001  # loss within which DQN and MDP count as equal on independent images
ORDER = ("strong", "bound", "mdp", "naive", "weak")


def findings_of(cells: Sequence[Cell], spec: TokenBucketStudy) -> list[Finding]:
    """Order of the policies, MDP against naive, DQN against MDP, and what depth does."""
    return [*_sandwich(cells, spec), *_mdp_naive(cells), *_dqn_mdp(cells, spec), *_depth(cells, spec)]


def _sandwich(cells: Sequence[Cell], spec: TokenBucketStudy) -> list[Finding]:
    if spec.images.correlated or len(spec.arrivals.intervals) == 2:
        order, why = tuple(n for n in ORDER if n not in ("naive", "mdp")), "strong <= bound <= weak in loss"
    else:
        order, why = ORDER, "strong <= bound <= mdp <= naive <= weak in loss"
    named = [n for n in order if n in spec.policies]
    broken = [f"{a} > {b} at r={c.rate:g}, b={c.depth:g}" for c in cells
              for a, b in pairwise(named) if difference(c, a, b)[1] > 0]
    if len(named) < 2:
        return []
    return [Finding(f"{why}, at every (r, b), up to the intervals", broken[0] if broken else f"in {len(cells)} of {len(cells)}",
                    "at every (r, b)", not broken)]


def _mdp_naive(cells: Sequence[Cell]) -> list[Finding]:
    found = [difference(c, "mdp", "naive") for c in cells if {"mdp", "naive"} <= set(c.loss)]
    if not found:
        return []
    below = sum(high < 0 for _, _, high in found)
    above = sum(low > 0 for _, low, _ in found)
    mean = np.mean([m for m, _, _ in found])
    return [Finding("MDP loses less than the naive threshold", f"below in {below}, above in {above} of {len(found)}; "
                    f"mean difference {mean:+.4f}", "below", below > len(found) / 2 and above == 0)]


def _dqn_mdp(cells: Sequence[Cell], spec: TokenBucketStudy) -> list[Finding]:
    found = {(c.rate, c.depth): difference(c, "dqn", "mdp") for c in cells if {"mdp", "dqn"} <= set(c.loss)}
    if not found:
        return []
    mean = np.mean([m for m, _, _ in found.values()])
    if spec.images.correlated or len(spec.arrivals.intervals) == 2:
        below = sum(high < 0 for _, _, high in found.values())
        above = sum(low > 0 for _, low, _ in found.values())
        return [Finding("DQN loses less than MDP when the past tells something", f"below in {below}, above in {above} of "
                        f"{len(found)}; mean difference {mean:+.4f}", "below", below > len(found) / 2 and above == 0)]
    worst = max(found.values(), key=lambda d: abs(d[0]))
    words = f"largest difference {worst[0]:+.4f} ({worst[1]:+.4f} to {worst[2]:+.4f})"
    return [Finding("DQN equals MDP on independent images", words, f"within {EQUAL}", abs(worst[0]) <= EQUAL)]


def _depth(cells: Sequence[Cell], spec: TokenBucketStudy) -> list[Finding]:
    found = []
    if len(spec.depths) > 1 and {"mdp", "naive"} <= set(spec.policies):
        shallow, deep = min(spec.depths), max(spec.depths)
        for rate in spec.rates:
            gap = {c.depth: (c.loss["mdp"] - c.loss["bound"]).mean for c in cells
                   if c.rate == rate and "bound" in c.loss}
            if gap:
                found.append((gap[shallow], gap[deep]))
    if not found:
        return []
    first, last = np.mean([a for a, _ in found]), np.mean([b for _, b in found])
    words = f"{first:.4f} away at b={shallow:g}, {last:.4f} at b={deep:g}"
    return [Finding("MDP comes closer to the bound as the bucket gets deeper", words, "smaller", all(b < a for a, b in found))]


def spread_findings(cells: Mapping[float, Cell]) -> list[Finding]:
    """The gain of the DQN shrinks as one location shows more of all images."""
    gains = {s: difference(c, "mdp", "dqn") for s, c in cells.items() if {"mdp", "dqn"} <= set(c.loss)}
    if len(gains) < 2:
        return []
    largest = max(gains)
    before = max(gains[s][0] for s in gains if s != largest)
    return [Finding("the gain of DQN over MDP vanishes as the correlation vanishes",
                    ", ".join(f"{g[0]:.4f} at {s:g}" for s, g in sorted(gains.items())), f"near zero at {largest:g}",
                    gains[largest][0] < max(EQUAL, before / 4))]


def camera_findings(table: pd.DataFrame) -> list[Finding]:
    """Sharing pays, more with more cameras, and most with one decision maker."""
    loss = table.pivot(index="cameras", columns="policy", values="loss").sort_index()
    ordered = bool(((loss["smart"] <= loss["hierarchical"]) & (loss["hierarchical"] <= loss["isolated"])).all())
    gain = (loss["isolated"] - loss["hierarchical"]).tolist()
    words = "; ".join(f"{k} cameras: {r.isolated:.4f}, {r.hierarchical:.4f}, {r.smart:.4f}" for k, r in loss.iterrows())
    found = [Finding("a shared bucket loses less: isolated, hierarchical, smart", words, "falling", ordered)]
    if len(gain) > 1:
        found.append(Finding("sharing saves more with more cameras", ", ".join(f"{g:.4f}" for g in gain), "rising",
                             bool(np.all(np.diff(gain) > 0))))
    return found


def period_findings(table: pd.DataFrame) -> list[Finding]:
    """Where the metric is low the DQN spends tokens that MDP keeps; where images also come fast, it chooses better ones."""
    cells = table.set_index(["period", "policy"])
    low = [p for p in table["period"].unique() if "low metric" in p]
    high = [p for p in table["period"].unique() if "high metric" in p]
    if not low or "dqn" not in set(table["policy"]):
        return []
    quiet = next((p for p in low if "slow" in p), low[0])
    busy = next((p for p in high if "fast" in p), high[0])
    sent = {n: int(cells.loc[(quiet, n), "offloaded"]) for n in ("dqn", "mdp")}
    mean = {n: float(cells.loc[(busy, n), "mean_metric"]) for n in ("dqn", "mdp")}
    found = [Finding(f"in periods of {quiet}, DQN offloads more than MDP", f"{sent['dqn']} against {sent['mdp']}",
                     "more (24 against 1 on a slide)", sent["dqn"] > sent["mdp"])]
    if "fast" in busy:
        words = f"{mean['dqn']:.3f} against {mean['mdp']:.3f}"
        found.append(Finding(f"in periods of {busy}, what DQN offloads has a higher metric", words,
                             "higher (.58 against .57 at equal count on a slide)", mean["dqn"] > mean["mdp"]))
    return found
