"""The study of kind `placement`: every policy against the same demand, over several seeds and values of alpha."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from testbed.measurement.study import StudyOutcome
from testbed.placement.engine import Trace, run
from testbed.placement.findings import findings
from testbed.placement.popularity import Demand, draw
from testbed.placement.problem import FloatArray, Problem
from testbed.placement.registry import make_placement
from testbed.placement.spec import PlacementStudy
from testbed.placement.study_figures import figures
from testbed.placement.topologies import TOPOLOGIES, Tier, tree

Runs = dict[tuple[float, str], list[Trace]]  # (alpha, policy) -> one trace per repeat


@dataclass(frozen=True)
class Interval:
    """Mean of n independent values and its 95% confidence interval (Student's t); NaN limits for n = 1."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float] | FloatArray) -> Interval:
    """Mean and 95% interval of independent values."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Interval(mean, mean - half, mean + half)


def run_placement(spec: PlacementStudy, progress: Callable[[float, str], None]) -> StudyOutcome:
    """Run a placement study. Raises InputError for options or placements that are not acceptable."""
    problem = network(spec)
    demands = [demand(spec, problem, k) for k in range(spec.repeats)]
    todo = [(alpha, k, p) for alpha in spec.alphas_ms for p in spec.policies for k in range(spec.repeats)]
    runs: Runs = {(alpha, p.name): [] for alpha in spec.alphas_ms for p in spec.policies}
    priced = {alpha: replace(problem, alpha_ms=alpha) for alpha in spec.alphas_ms}
    for done, (alpha, k, p) in enumerate(todo):
        progress(done / len(todo), f"{p.name}, alpha {alpha:g}")
        seed = int(np.random.SeedSequence([spec.seed, k, 1]).generate_state(1)[0])
        policy = make_placement(p.policy, p.options, priced[alpha], seed, demands[k], f"policies.{p.name}")
        runs[alpha, p.name].append(run(priced[alpha], policy, demands[k].requests))
    tables = {"summary": _summary(spec, runs), "differences": _differences(spec, runs), "tiers": _tiers(spec, problem, runs),
              "details": _details(spec, runs), "slots": _slots(spec, runs)}
    if spec.shift is not None:
        tables["recovery"] = _recovery(spec, runs)
    order = ("summary", "differences", "recovery", "tiers", "details", "slots")
    tables = {name: tables[name] for name in order if name in tables}
    return StudyOutcome(tables, figures(spec, tables), findings(spec, runs), _captions(spec))


def network(spec: PlacementStudy) -> Problem:
    """The network that a study names, at its first alpha."""
    tiers = TOPOLOGIES[spec.network] if isinstance(spec.network, str) else tuple(
        Tier(t.name, t.nodes, t.rtt * 1e3, np.inf if t.memory == "unlimited" else float(t.memory), t.accelerator)
        for t in spec.network)
    return tree(tiers, tasks=spec.tasks, copies=spec.copies, alpha_ms=spec.alphas_ms[0], slot_s=spec.slot,
                runtime_bytes=float(spec.runtime_memory), sharing=spec.sharing)


def demand(spec: PlacementStudy, problem: Problem, repeat: int) -> Demand:
    """The requests of one repeat; the same for every policy and alpha."""
    seed = int(np.random.SeedSequence([spec.seed, repeat, 0]).generate_state(1)[0])
    shift = (spec.shift.every, spec.shift.by) if spec.shift is not None else (0, 0)
    return draw(problem.num_types // spec.tasks, spec.tasks, spec.slots, rate_per_s=spec.rate_per_s, slot_s=spec.slot,
                exponent=spec.zipf, shift_every=shift[0], shift_by=shift[1], seed=seed)


def _summary(spec: PlacementStudy, runs: Runs) -> pd.DataFrame:
    rows = []
    for (alpha, name), traces in runs.items():
        ntag = interval([t.ntag_ms for t in traces])
        rows.append({
            "alpha_ms": alpha, "policy": name, "ntag_ms": ntag.mean, "plus_minus_ms": ntag.high - ntag.mean,
            "late_ntag_ms": float(np.mean([t.gain_ms[-(spec.slots // 4):].mean() for t in traces])),
            "latency_ms": float(np.mean([t.latency_ms.mean() for t in traces])),
            "inaccuracy_points": float(np.mean([t.inaccuracy.mean() for t in traces])),
            "fetches_per_slot": float(np.mean([t.updates[1:].mean() for t in traces]))})
    return pd.DataFrame(rows)


def _details(spec: PlacementStudy, runs: Runs) -> pd.DataFrame:
    late = slice(-(spec.slots // 4), None)
    return pd.DataFrame([{
        "alpha_ms": alpha, "policy": name,
        "late_fraction_gain_ms": float(np.mean([t.fraction_gain_ms[late].mean() for t in traces])),
        "fetches_per_slot": float(np.mean([t.updates[1:].mean() for t in traces])),
        "fetched_mb_per_slot": float(np.mean([t.update_bytes[1:].mean() / 1e6 for t in traces])),
        "messages_per_slot": float(np.mean([t.messages.mean() for t in traces])),
        "memory_share": float(np.mean([t.used_share.mean() for t in traces]))} for (alpha, name), traces in runs.items()])


def _differences(spec: PlacementStudy, runs: Runs) -> pd.DataFrame:
    """NTAG of the first policy minus that of every other, paired by repeat."""
    first, rows = spec.policies[0].name, []
    for alpha in spec.alphas_ms:
        for p in spec.policies[1:]:
            ours, theirs = (np.array([t.ntag_ms for t in runs[alpha, n]]) for n in (first, p.name))
            gap = interval(ours - theirs)
            rows.append({"alpha_ms": alpha, "policy": first, "against": p.name, "ntag_difference_ms": gap.mean,
                         "low_ms": gap.low, "high_ms": gap.high, "repeats": len(ours)})
    return pd.DataFrame(rows, columns=["alpha_ms", "policy", "against", "ntag_difference_ms", "low_ms", "high_ms",
                                       "repeats"])


def _tiers(spec: PlacementStudy, problem: Problem, runs: Runs) -> pd.DataFrame:
    return pd.DataFrame([
        {"alpha_ms": alpha, "policy": name, "tier": tier,
         "served_share": float(np.mean([t.tier_share[:, i].mean() for t in traces]))}
        for (alpha, name), traces in runs.items() for i, tier in enumerate(problem.tiers)])


def _slots(spec: PlacementStudy, runs: Runs) -> pd.DataFrame:
    """Means over repeats per slot; limits of the gain where there is more than one repeat."""
    parts = []
    for (alpha, name), traces in runs.items():
        gain = np.stack([t.gain_ms for t in traces])  # (repeats, T)
        half = stats.t.ppf(0.975, max(len(traces) - 1, 1)) * gain.std(axis=0, ddof=1) / np.sqrt(len(traces)) \
            if len(traces) > 1 else np.full(spec.slots, np.nan)
        mean = gain.mean(axis=0)
        parts.append(pd.DataFrame({
            "alpha_ms": alpha, "policy": name, "slot": np.arange(spec.slots), "gain_ms": mean,
            "gain_low_ms": mean - half, "gain_high_ms": mean + half,
            "latency_ms": np.mean([t.latency_ms for t in traces], axis=0),
            "inaccuracy_points": np.mean([t.inaccuracy for t in traces], axis=0),
            "updates": np.mean([t.updates for t in traces], axis=0),
            "update_mb": np.mean([t.update_bytes for t in traces], axis=0) / 1e6}))
    return pd.concat(parts, ignore_index=True)


def _recovery(spec: PlacementStudy, runs: Runs) -> pd.DataFrame:
    """Per policy, over all shifts and repeats: gain before, lost at the shift, and slots until it is back."""
    assert spec.shift is not None
    every, rows = spec.shift.every, []
    for (alpha, name), traces in runs.items():
        before, lost, back, never = [], [], [], 0
        for t in traces:
            for at in range(every, spec.slots, every):
                gain = t.gain_ms[at:at + every]
                if len(gain) < every:
                    continue
                level = float(t.gain_ms[max(0, at - 5):at].mean())
                before.append(level)
                lost.append(level - float(gain[0]))
                again = np.flatnonzero(gain >= 0.95 * level)
                never += not len(again)
                back += [int(again[0])] if len(again) else []
        rows.append({"alpha_ms": alpha, "policy": name, "shifts": len(before), "gain_before_ms": np.mean(before),
                     "lost_in_first_slot_ms": np.mean(lost), "slots_to_95_percent": np.mean(back) if back else np.nan,
                     "not_back": never})
    return pd.DataFrame(rows)


def _captions(spec: PlacementStudy) -> dict[str, str]:
    return {
        "summary": "ntag_ms: gain over the permanent models alone, per request, averaged over slots; plus_minus_ms: half the 95% "
                   f"interval over {spec.repeats} repeats (Student's t). late_ntag_ms: the same over the last quarter of the "
                   "slots. fetches: models placed that were not there in the slot before; slot 0 not counted.",
        "details": "late_fraction_gain_ms: gain per request over the last quarter, were the fractions placed as they are: what "
                   "rounding starts from. messages: control messages, counted once per link they cross. memory_share: of the "
                   "memory that the nodes have beside permanent models, without those nodes where everything fits.",
        "differences": "Paired by repeat: both saw the same demand. 95% intervals.",
        "recovery": "gain_before_ms: mean of the five slots before a shift; slots_to_95_percent: 0 = in the first slot after it; "
                    "not_back: shifts after which the gain was not back before the next one.",
        "tiers": "Share of the requests that each tier served.",
        "slots": "Means over repeats.",
        "gain": "Gain per request and slot, mean over repeats; shaded: 95% interval. The axis leaves out slot 0.",
        "fetches": "Models fetched per slot against the gain: up and left is better.",
        "served_where": "Where requests were served.",
        "frontier": "Mean latency against mean inaccuracy; each point is a value of alpha. Down and left is better.",
    }
