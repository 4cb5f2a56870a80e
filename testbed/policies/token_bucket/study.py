"""The token_bucket study: tables of loss with intervals, figures, and whether the published shapes were seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from testbed.inference.catalogue import load_catalogue
from testbed.measurement.study import Finding, StudyOutcome
from testbed.policies.token_bucket import cameras as cam
from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.dqn import Dqn
from testbed.policies.token_bucket.engine import Cell, Comparison, difference, make_stream
from testbed.policies.token_bucket.findings import camera_findings, findings_of, period_findings, spread_findings
from testbed.policies.token_bucket.mdp import solve
from testbed.policies.token_bucket.metric import Threshold
from testbed.policies.token_bucket.pair import Pair, load_pair
from testbed.policies.token_bucket.periods import periods
from testbed.policies.token_bucket.rules import Mdp, Naive
from testbed.policies.token_bucket.spec import Images as ImageSource
from testbed.policies.token_bucket.spec import TokenBucketStudy

Progress = Callable[[float, str], None]


def run(spec: TokenBucketStudy, progress: Progress) -> StudyOutcome:
    """Run the study. Raises InputError, MissingToolError."""
    pair = load_pair(spec, lambda share, text: progress(0.1 * share, text))
    comparison = Comparison(spec, pair, spec.images, lambda share, text: progress(0.1 + 0.6 * share, text))
    pairs = [(r, b) for r in spec.rates for b in spec.depths]
    cells = list(comparison.cells(pairs))
    tables = {"loss": loss_table(cells, spec), "losses_long": long_table(cells), "differences": difference_table(cells)}
    figures: dict[str, Callable[[Any], None]] = {"loss": lambda figure: draw_losses(figure, cells, spec)}
    findings = findings_of(cells, spec)
    captions = {
        "loss": "Mean loss per image over the test sequences, by policy; r: tokens per unit of time, b: tokens that fit.",
        "losses_long": "One row per policy, with 95% intervals (sequences and images) and the share of images offloaded.",
        "differences": "Differences in loss on the same sequences, with 95% intervals.",
    }
    if spec.images.correlated or len(spec.arrivals.intervals) == 2:
        table = periods(comparison, _representative(cells))
        tables["periods"] = table
        captions["periods"] = ("What is offloaded at one (r, b) in the halves of the arrivals with high and low metric around "
                               "them and, where arrivals vary, at the two rates.")
        findings += period_findings(table)
    if spec.spreads is not None:
        tables["spreads"], more = _spreads(spec, pair, lambda share, text: progress(0.7 + 0.2 * share, text))
        captions["spreads"] = (f"Mean loss at r={spec.spreads.rate:g}, b={spec.spreads.depth:g} as a location shows more of all "
                               "images.")
        findings += more
    if spec.cameras is not None:
        tables["cameras"] = _cameras(spec, pair, comparison, lambda share, text: progress(0.9 + 0.1 * share, text))
        captions["cameras"] = "Several cameras on one bucket; own: what each camera decides by; dropped: of what was sent."
        findings += camera_findings(tables["cameras"])
    curves = _curves(cells)
    if len(curves):
        tables["training"] = curves
        captions["training"] = "Loss on held-back sequences of training images during the training of each network."
        figures["training"] = lambda figure: draw_training(figure, curves)
    captions["metric"] = "Expected loss saved by offloading, given the entropy of the weak model's calibrated probabilities."
    figures["metric"] = lambda figure: draw_metric(figure, pair)
    tables["pair"] = _pair_table(pair)
    return StudyOutcome(tables, figures, findings, captions, {**_policies(cells), **_live_policies(cells, spec, pair)})


def loss_table(cells: Sequence[Cell], spec: TokenBucketStudy) -> pd.DataFrame:
    """One row per (rate, depth), one column per policy."""
    return pd.DataFrame([{"r": c.rate, "b": c.depth, **{name: c.loss[name].mean if name in c.loss else np.nan
                                                        for name in spec.policies}} for c in cells])


def long_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per (rate, depth, policy) with interval and share offloaded."""
    rows = []
    for cell in cells:
        for name, loss in cell.loss.items():
            mean, low, high = loss.interval()
            rows.append({"r": cell.rate, "b": cell.depth, "policy": name, "loss": mean, "loss_low": low, "loss_high": high,
                         "offloaded_share": float(cell.offload[name].mean())})
    return pd.DataFrame(rows)


def difference_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """Paired differences between neighbouring policies."""
    rows = []
    for cell in cells:
        for a, b in (("mdp", "naive"), ("dqn", "mdp"), ("dqn", "bound"), ("mdp", "bound")):
            if a in cell.loss and b in cell.loss:
                mean, low, high = difference(cell, a, b)
                rows.append((cell.rate, cell.depth, f"{a} - {b}", mean, low, high))
    return pd.DataFrame(rows, columns=["r", "b", "policies", "difference", "low", "high"])


def _representative(cells: Sequence[Cell]) -> Cell:
    """The cell that the slides show, r=0.1 and b=4, or the nearest to it that has a DQN (or any)."""
    usable = [c for c in cells if "dqn" in c.loss] or list(cells)
    return min(usable, key=lambda c: (abs(np.log(c.rate / 0.1)), abs(np.log(c.depth / 4))))


def _spreads(spec: TokenBucketStudy, pair: Pair, progress: Progress) -> tuple[pd.DataFrame, list[Finding]]:
    assert spec.spreads is not None
    asked, cells = spec.spreads, {}
    only = spec.model_copy(update={"dqn": spec.dqn.model_copy(update={"only": []})})
    for i, spread in enumerate(asked.values):
        comparison = Comparison(only, pair, ImageSource(spread=spread, reset=asked.reset), progress)
        cells[spread] = comparison.cell(asked.rate, asked.depth,
                                        lambda share, text, i=i: progress((i + share) / len(asked.values), text))  # type: ignore[misc]
    table = pd.DataFrame([{"spread": spread, **{name: loss.mean for name, loss in cell.loss.items()}}
                          for spread, cell in cells.items()])
    return table, spread_findings(cells)


def _cameras(spec: TokenBucketStudy, pair: Pair, comparison: Comparison, progress: Progress) -> pd.DataFrame:
    assert spec.cameras is not None
    asked, rows = spec.cameras, []
    bucket = Bucket.of(asked.rate, asked.depth)
    for i, count in enumerate(asked.counts):
        rows_train, length = max(2, spec.train.sequences // 10), spec.train.length // 2  # for each of many grid points
        rows_test, length_test = max(2, spec.test.sequences // 2), spec.test.length // 2
        train = make_stream(pair.train, spec.images, spec.arrivals, rows_train * count, length, (spec.seed, 4))
        test = make_stream(pair.test, spec.images, spec.arrivals, rows_test * count, length_test, (spec.seed, 5))
        shape = -1, count
        metric = test.metric.reshape(*shape, length_test)
        rate, depth, own = cam.over_subscribe(
            bucket, count, comparison.choices, train.metric.reshape(*shape, length),
            comparison.gain[train.index].reshape(*shape, length), asked.rates, asked.depths,
            lambda share, i=i, count=count: progress((i + share) / len(asked.counts), f"{count} cameras"))  # type: ignore[misc]
        shared = cam.shared_bucket(bucket, count)
        for name, found, (r, b) in (
                ("isolated", cam.isolated(solve(bucket, comparison.choices), metric), (asked.rate, asked.depth)),
                ("hierarchical", cam.hierarchical(bucket, own, metric), (rate, depth)),
                ("smart", cam.smart_switch(solve(shared, comparison.choices), metric), (np.nan, np.nan))):
            delivered = found.delivered.reshape(test.index.shape)
            mean, low, high = test.loss(delivered).interval()
            rows.append({"cameras": count, "policy": name, "own_r": r, "own_b": b, "loss": mean, "loss_low": low,
                         "loss_high": high, "dropped_share": 1 - float(found.delivered.sum() / max(1, found.sent.sum()))})
    return pd.DataFrame(rows)


def _curves(cells: Sequence[Cell]) -> pd.DataFrame:
    rows = [{"r": c.rate, "b": c.depth, "iteration": int(p["iteration"]), "loss": p["value"]}
            for c in cells if isinstance(rule := c.rules.get("dqn"), Dqn) for p in rule.curve]
    return pd.DataFrame(rows)


def _policies(cells: Sequence[Cell]) -> dict[str, bytes]:
    """Trained policies as files: thresholds of all cells as one JSON file, a network each."""
    tables: list[Mapping[str, Any]] = []
    files = {}
    for cell in cells:
        mdp, dqn = cell.rules.get("mdp"), cell.rules.get("dqn")
        if isinstance(mdp, Mdp):
            values = [v if np.isfinite(v) else None for v in mdp.thresholds.values.tolist()]
            tables.append({"rate": cell.rate, "depth": cell.depth, "refill": cell.bucket.refill, "token": cell.bucket.token,
                           "depth_parts": cell.bucket.depth, "thresholds": values})
        if isinstance(dqn, Dqn):
            files[f"dqn_r{cell.rate:g}_b{cell.depth:g}.safetensors"] = dqn.to_bytes()
    if tables:
        files["mdp.json"] = (json.dumps(tables, indent=1) + "\n").encode()
    return files


def _live_policies(cells: Sequence[Cell], spec: TokenBucketStudy, pair: Pair) -> dict[str, bytes]:
    """MDP and naive thresholds as entries for a scenario's `policies:`; none where the strong answer is an early exit's.

    `unit_s` is to be added where requests are not one second apart.
    """
    exits = list(load_catalogue(Path(spec.catalogue))[spec.strong.model].exits)
    if spec.strong.exit not in (None, exits[-1].name):
        return {}
    models = {"model": spec.weak.model, **({} if spec.weak.exit is None else {"exit": spec.weak.exit}),
              **({} if spec.strong.model == spec.weak.model else {"strong": spec.strong.model})}
    files = {}
    for cell in cells:
        mdp, naive, entries = cell.rules.get("mdp"), cell.rules.get("naive"), []
        if isinstance(mdp, Mdp):
            entries.append(_entry("token-bucket", cell, models, pair.metric.entropy_at(mdp.thresholds.values)))
        if isinstance(naive, Naive):
            levels = np.full(cell.bucket.levels, naive.threshold)
            entries.append(_entry("naive", cell, models, pair.metric.entropy_at(levels)))
        if entries:
            files[f"policy_r{cell.rate:g}_b{cell.depth:g}.yaml"] = yaml.safe_dump(entries, sort_keys=False).encode()
    return files


def _entry(name: str, cell: Cell, models: Mapping[str, str], ends: Sequence[Threshold]) -> dict[str, Any]:
    table = [[round(h, 4) for h in e] if isinstance(e, tuple) else e if e is None else round(e, 4) for e in ends]
    options = {"rate": cell.rate, "depth": cell.depth, **models, "entropy": table}
    return {"name": name, "policy": "token-bucket", "options": options}


def _pair_table(pair: Pair) -> pd.DataFrame:
    return pd.DataFrame([
        {"split": name, "images": len(images), "weak_loss": float(images.weak.mean()), "strong_loss": float(images.strong.mean()),
         "gain_share": float((images.reward > 0).mean()), "harm_share": float((images.reward < 0).mean()),
         "mean_metric": float(images.metric.mean()), "mean_reward": float(images.reward.mean())}
        for name, images in (("train", pair.train), ("test", pair.test))])


def draw_losses(figure: Any, cells: Sequence[Cell], spec: TokenBucketStudy) -> None:
    """One panel per rate: loss over depth, one line per policy, with intervals."""
    panels = np.atleast_1d(figure.subplots(1, len(spec.rates), sharey=False))
    for axes, rate in zip(panels, spec.rates, strict=True):
        row = [c for c in cells if c.rate == rate]
        for i, name in enumerate(spec.policies):
            shown = [c for c in row if name in c.loss]
            if name in ("weak", "strong") or not shown:
                continue
            values = [c.loss[name].interval() for c in shown]
            axes.errorbar([c.depth for c in shown], [v[0] for v in values], [v[0] - v[1] for v in values], color=f"C{i % 8}",
                          marker="o", ms=3, lw=1.2, label=name)
        axes.set_title(f"r = {rate:g}", fontsize=9)
        axes.set_xscale("log")
        axes.set_xticks(spec.depths, [f"{b:g}" for b in spec.depths])
        axes.minorticks_off()
        axes.set_xlabel("b (tokens)")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize=7)


def draw_training(figure: Any, curves: pd.DataFrame) -> None:
    """Loss on held-back sequences over the iterations."""
    axes = figure.subplots()
    for (r, b), part in curves.groupby(["r", "b"]):
        axes.plot(part["iteration"], part["loss"], lw=1.2, label=f"r={r:g}, b={b:g}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss on training images")
    axes.legend(fontsize=7, ncols=2)


def draw_metric(figure: Any, pair: Pair) -> None:
    """The look-up table, and the loss saved on test images in 20 bins of equally many."""
    axes = figure.subplots()
    axes.plot(pair.metric.entropies, pair.metric.values, color="C0", label="metric, from training images")
    order = np.argsort(pair.test.metric)
    bins = np.array_split(order, 20)
    axes2 = axes.inset_axes((0.12, 0.62, 0.3, 0.34))
    axes2.plot([pair.test.metric[b].mean() for b in bins], [pair.test.reward[b].mean() for b in bins], "o", color="C1", ms=3)
    low, high = float(pair.test.metric.min()), float(pair.test.metric.max())
    axes2.plot([low, high], [low, high], color="C7", lw=0.8)
    axes2.set_title("test: saved over metric", fontsize=7)
    axes2.tick_params(labelsize=6)
    axes.set_xlabel("entropy of the weak model (nats)")
    axes.set_ylabel("expected loss saved")
