"""Shapes that the specification expects of INFIDA and its comparators, judged on the runs of a placement study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from testbed.measurement.study import Finding
from testbed.placement.engine import Trace
from testbed.placement.spec import PlacementStudy

Runs = Mapping[tuple[float, str], Sequence[Trace]]


def findings(spec: PlacementStudy, runs: Runs) -> list[Finding]:
    """Every finding that the policies, the shift and the values of alpha of this study allow."""
    return [*_rises(spec, runs), *_beats_olag(spec, runs), *_guarantee(spec, runs), *_after_shift(spec, runs),
            *_refresh(spec, runs), *_alpha(spec, runs)]


def _named(spec: PlacementStudy, policy: str, **options: object) -> str | None:
    """Name of the first policy of this kind with just these options; of any options when there is none."""
    of_kind = [p for p in spec.policies if p.policy == policy]
    return next((p.name for p in of_kind if p.options == options), of_kind[0].name if of_kind else None)


def _rises(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    name = _named(spec, "infida")
    if name is None or spec.shift is not None:
        return
    alpha, part = spec.alphas_ms[0], spec.slots // 4
    gain = np.mean([t.gain_ms for t in runs[alpha, name]], axis=0)
    first, third, last = float(gain[0]), float(gain[2 * part:3 * part].mean()), float(gain[-part:].mean())
    rise, late = last - first, last - third
    seen = f"{first:.1f} in slot 0, {third:.2f} in the third quarter, {last:.2f} ms in the last"
    yield Finding(f"the gain of {name} rises and flattens", seen, "rises; last quarter adds below 10% of the rise",
                  bool(rise > 0 and abs(late) < 0.1 * rise))


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean difference and half width of its 95% interval (NaN for a single pair)."""
    gap = np.asarray(ours) - np.asarray(theirs)
    if len(gap) < 2:
        return float(gap.mean()), float("nan")
    return float(gap.mean()), float(stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap)))


def _beats_olag(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    name, other = _named(spec, "infida"), _named(spec, "olag")
    if name is None or other is None:
        return
    gaps = {a: _paired([t.ntag_ms for t in runs[a, name]], [t.ntag_ms for t in runs[a, other]]) for a in spec.alphas_ms}
    # without an interval (one repeat), or with one that holds 0, it cannot be judged
    open_ = any(np.isnan(half) or abs(mean) <= half for mean, half in gaps.values())
    yield Finding(f"NTAG of {name} is above that of {other}",
                  _per_alpha(spec, {a: f"{mean:+.2f} ± {half:.2f} ms" for a, (mean, half) in gaps.items()}), "above 0",
                  None if open_ else all(mean > 0 for mean, _ in gaps.values()))
    part = spec.slots // 4
    late = {a: [float(np.mean([getattr(t, field)[-part:].mean() for t in runs[a, n]]))
                for field, n in (("fraction_gain_ms", name), ("gain_ms", other))] for a in spec.alphas_ms}
    yield Finding(f"the fractions of {name}, before rounding, gain more than {other} in the last quarter",
                  _per_alpha(spec, {a: f"{y:.2f} against {x:.2f} ms" for a, (y, x) in late.items()}), "more",
                  all(y > x for y, x in late.values()))


def _per_alpha(spec: PlacementStudy, shown: Mapping[float, str]) -> str:
    if len(spec.alphas_ms) == 1:
        return shown[spec.alphas_ms[0]]
    return "; ".join(f"alpha {a:g}: {text}" for a, text in shown.items())


def _guarantee(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    name, static = _named(spec, "infida"), _named(spec, "sg")
    if name is None or static is None:
        return
    part = spec.slots // 4
    ratios = {}
    for alpha in spec.alphas_ms:
        late = [float(np.mean([t.gain_ms[-part:].mean() for t in runs[alpha, n]])) for n in (name, static)]
        ratios[alpha] = late[0] / late[1] if late[1] > 0 else float("nan")
    yield Finding(f"{name} keeps 1 - 1/e of the gain of the static greedy placement in the last quarter",
                  _per_alpha(spec, {a: f"{ratio:.3f}" for a, ratio in ratios.items()}), "at least 0.632",
                  all(ratio >= 1 - 1 / np.e for ratio in ratios.values()))


def _after_shift(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    if spec.shift is None:
        return
    alpha, every = spec.alphas_ms[0], spec.shift.every
    name, other = _named(spec, "infida"), _named(spec, "olag")
    ends = {n: [np.mean([t.gain_ms[at + every - every // 4:at + every].mean() for t in runs[alpha, n]])
                for at in range(0, spec.slots - every + 1, every)] for n in (name, other) if n is not None}
    if name is not None:
        low, high = min(ends[name][1:]), ends[name][0]
        yield Finding(f"{name} is back at the end of every period after a shift", f"{low:.2f} of {high:.2f} ms",
                      "at least 97% of the first period's end", bool(low >= 0.97 * high))
    if other is not None:
        after, before = float(np.mean(ends[other][1:])), float(ends[other][0])
        yield Finding(f"{other} drops after a shift and stays lower", f"{before:.2f} before, {after:.2f} ms at the ends after",
                      "lower after", bool(after < 0.995 * before))


def _refresh(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    periods = {int(p.options.get("refresh", 1)): p.name for p in spec.policies
               if p.policy == "infida" and not set(p.options) - {"refresh"}}
    if 1 not in periods or len(periods) < 2:
        return
    alpha, part = spec.alphas_ms[0], spec.slots // 4
    swaps = {b: float(np.mean([t.updates[1:].sum() for t in runs[alpha, n]])) for b, n in sorted(periods.items())}
    late = {b: float(np.mean([t.gain_ms[-part:].mean() for t in runs[alpha, n]])) for b, n in sorted(periods.items())}
    shown = ", ".join(f"B={b}: {n:.0f}" for b, n in swaps.items())
    # the refreshes of the first slots replace more than later ones: 1/B holds up to those
    holds = all(n <= 1.15 * swaps[1] / b for b, n in swaps.items())
    yield Finding("a longer refresh period B swaps models at most 1/B as often", shown, "at most 1/B (+15%)", holds)
    if spec.shift is not None:
        return  # the last quarter may lie right after a shift
    loss = max(1 - g / late[1] for g in late.values())
    yield Finding("a longer refresh period costs little gain once learned (last quarter)",
                  ", ".join(f"B={b}: {g:.2f} ms" for b, g in late.items()), "within 5%", bool(loss <= 0.05))


def _alpha(spec: PlacementStudy, runs: Runs) -> Iterator[Finding]:
    name, alphas = _named(spec, "infida"), sorted(spec.alphas_ms)
    if name is None or len(alphas) < 2:
        return
    part = spec.slots // 4

    def late(field: str, alpha: float) -> float:
        return float(np.mean([getattr(t, field)[-part:].mean() for t in runs[alpha, name]]))

    inaccuracy = [late("inaccuracy", a) for a in alphas]
    height = [float(np.mean([(t.tier_share[-part:] @ np.arange(t.tier_share.shape[1])).mean() for t in runs[a, name]]))
              for a in alphas]
    yield Finding("a larger alpha serves with more accurate models", " > ".join(f"{v:.1f}" for v in inaccuracy) + " points wrong",
                  "inaccuracy falls (up to 5% of the whole fall)", _monotone([-v for v in inaccuracy]))
    yield Finding("a larger alpha serves higher up", " < ".join(f"{v:.2f}" for v in height) + " mean tier (0 = access)",
                  "mean tier rises (up to 5% of the whole rise)", _monotone(height))


def _monotone(values: Sequence[float]) -> bool:
    """Whether the values rise, with no step down by more than 5% of the whole rise."""
    rise = values[-1] - values[0]
    return bool(rise > 0 and np.all(np.diff(values) >= -0.05 * rise))
