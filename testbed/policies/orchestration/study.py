"""The orchestration study: optimum, baselines and learners over constraints, numbers of devices and conditions of the links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from testbed.measurement.study import StudyOutcome
from testbed.policies.orchestration import dqn
from testbed.policies.orchestration.baselines import FIXED, fixed, placement_only
from testbed.policies.orchestration.conditions import CONFIRMED, Condition
from testbed.policies.orchestration.findings import findings_of
from testbed.policies.orchestration.oracle import Problem, optimum
from testbed.policies.orchestration.qlearning import Learned, QSettings, learn
from testbed.policies.orchestration.response import TIERS
from testbed.policies.orchestration.saved import Entry, Saved, entry_of
from testbed.policies.orchestration.spec import OrchestrationStudy
from testbed.schema.data import cache_folder

Progress = Callable[[float, str], None]
LEVEL = 0.95
EPOCHS_JUDGED = 200  # noisy epochs that a learned policy and placement only are compared on
MAIN = ["conditions", "devices", "constraint", "optimum_ms", "placement_only_ms", "accuracy", "device_share", "edge_share",
        "cloud_share"]


def run(spec: OrchestrationStudy, progress: Progress) -> StudyOutcome:
    """Run the study. Raises InputError, MissingToolError (dqn without the extra rl)."""
    cells = cell_table(spec, lambda share, text: progress(0.3 * share, text))
    learned, curves, entries = learned_table(spec, lambda share, text: progress(0.3 + 0.3 * share, text))
    margins = margin_table(spec, lambda share, text: progress(0.6 + 0.1 * share, text))
    deep, deep_curves = dqn_table(spec, lambda share, text: progress(0.7 + 0.3 * share, text))
    tables = {"optimum": cells[MAIN], "decisions": cells[[c for c in cells if c not in MAIN[3:]]]}
    captions = {
        "optimum": "Least mean response time of all joint actions that meet the constraint, the decisions behind it, and the "
                   "best placement of the most accurate model alone. The mixed conditions are not confirmed by the paper.",
        "decisions": "The decisions behind the optimum, and the fixed strategies with the most accurate model.",
        "learned": "Greedy policy after learning against the optimum, and what learning cost: epochs, those that violated the "
                   "constraint, worst mean response time of an epoch, and all that was above the optimum.",
        "margin": f"Learned from noisy response times, against the best placement of the most accurate model, both over "
                  f"{EPOCHS_JUDGED} noisy epochs; 95% intervals over repeated trainings.",
        "curves": "Gap of the greedy policy to the optimum during learning, mean over the conditions.",
        "response": "Optimum by constraint; lines: conditions; most devices of the study.",
    }
    both = pd.concat([t for t in (learned, deep) if len(t)], ignore_index=True) if len(learned) or len(deep) else learned
    if len(both):
        tables["learned"] = both
    if len(margins):
        tables["margin"] = margins
    if len(curves) or len(deep_curves):
        tables["curves"] = pd.concat([t for t in (curves, deep_curves) if len(t)], ignore_index=True)
    files = {}
    if spec.save is not None:
        names = tuple(v.name for v in spec.variants())
        source = "fitted" if spec.probes else "analytic"
        files["policies.json"] = Saved(spec.name, spec.save, names, source, tuple(entries)).to_bytes()
    figures: dict[str, Callable[[Any], None]] = {"response": lambda figure: _draw_response(figure, cells, spec)}
    if "curves" in tables:
        figures["curves"] = lambda figure: _draw_curves(figure, tables["curves"])
    return StudyOutcome(tables, figures, findings_of(cells, both, margins), captions, files)


def cell_table(spec: OrchestrationStudy, progress: Progress) -> pd.DataFrame:
    """One row per (condition, devices, constraint): optimum, shares of the tiers, models, fixed strategies, times in ms."""
    rows = []
    for i, devices in enumerate(spec.devices):
        for name, condition in spec.states(devices).items():
            progress(i / len(spec.devices), f"optimum of {devices} devices")
            for constraint in spec.constraints:
                rows.append({"conditions": name, "confirmed": name in CONFIRMED, "devices": devices, "constraint": constraint,
                             **_cell(spec.problem(devices, constraint), condition)})
    return pd.DataFrame(rows)


def _cell(problem: Problem, condition: Condition) -> dict[str, Any]:
    best = optimum(problem, condition)
    row: dict[str, Any] = {"feasible": best.action is not None, "optimum_ms": 1e3 * best.mean_s, "accuracy": best.accuracy}
    tiers = [problem.actions.tier[k] for k in best.action or ()]
    row |= {f"{tier}_share": tiers.count(t) / len(tiers) if tiers else np.nan for t, tier in enumerate(TIERS)}
    row["decision"] = " ".join(problem.actions.names(problem.ladder)[k] for k in best.action or ())
    row["placement_only_ms"] = 1e3 * placement_only(problem, condition).mean_s
    return row | {f"{name.replace('-', '_')}_ms": 1e3 * fixed(problem, condition, name).mean_s for name in FIXED}


def _settings(spec: OrchestrationStudy, problem: Problem, states: list[Condition], visits: int) -> QSettings:
    """As many epochs as `visits` per entry that may be tried; exploration falls to its least over half of them."""
    asked = spec.qlearning
    factor = asked.safe_factor if asked else 1.0
    entries = len(states) * len(problem.joint) if factor is None else sum(int(problem.safe_set(c, factor).sum()) for c in states)
    epochs = max(2000, visits * entries)
    settings = QSettings(epochs=epochs, decay=1 - 0.01 ** (2 / epochs), safe_factor=factor)
    if asked:
        settings = replace(settings, learning_rate=asked.learning_rate, discount=asked.discount)
    return settings


def learned_table(spec: OrchestrationStudy, progress: Progress) -> tuple[pd.DataFrame, pd.DataFrame, list[Entry]]:
    """Q-learning on noise-free response times, one table over all conditions; its curves; entries of what is to be saved."""
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    entries: list[Entry] = []
    asked = spec.qlearning
    jobs = [(n, c) for n in (asked.devices if asked else []) for c in spec.constraints]
    for i, (devices, constraint) in enumerate(jobs):
        assert asked is not None
        progress(i / len(jobs), f"Q-learning, {devices} devices, {constraint}")
        problem, states = spec.problem(devices, constraint), spec.states(devices)
        unique = list(dict.fromkeys(states.values()))
        settings = _settings(spec, problem, unique, asked.visits)
        found = learn(problem, unique, settings, spec.seed)
        rows += _learned_rows("qlearning", problem, states, constraint, found)
        curves.append(found.curve.assign(learner=f"qlearning, {devices}, {constraint}"))
        if devices == spec.save:
            entries.append(entry_of(constraint, "qlearning", found, problem.actions.names(problem.ladder), settings, spec.seed))
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(), entries


def _learned_rows(learner: str, problem: Problem, states: dict[str, Condition], constraint: str,
                  found: Learned) -> list[dict[str, Any]]:
    rows = []
    for name, condition in states.items():
        action, best = found.actions[condition.key], optimum(problem, condition)
        row: dict[str, Any] = {"learner": learner, "conditions": name, "devices": problem.devices, "constraint": constraint,
                               "feasible": action is not None}
        if action is not None:
            own = problem.solution(condition, problem.index(action))
            row |= {"learned_ms": 1e3 * own.mean_s, "gap": own.mean_s / best.mean_s - 1, "accuracy": own.accuracy}
        cost = found.cost
        rows.append(row | {"epochs": cost.epochs, "violations": cost.violations, "worst_ms": 1e3 * cost.worst_s,
                           "excess_s": cost.excess_s})
    return rows


def margin_table(spec: OrchestrationStudy, progress: Progress) -> pd.DataFrame:
    """Per condition, and over all: how much faster the learned policy is than placement only, with intervals over trainings."""
    asked = spec.margin
    if asked is None:
        return pd.DataFrame()
    noisy, exact = (spec.problem(asked.devices, asked.constraint, noise) for noise in (asked.noise, 0.0))
    rows, margins = [], []
    for i, (name, condition) in enumerate(spec.states(asked.devices).items()):
        if optimum(exact, condition).action is None:
            continue
        placed, times, placed_times, accuracy = placement_only(exact, condition), [], [], []
        # where response times are noisy: the mean of what was seen
        settings = replace(_settings(spec, noisy, [condition], asked.visits), learning_rate=1.0, power=1.0)
        for repeat in range(spec.repeats):
            progress((i + repeat / spec.repeats) / len(spec.states(asked.devices)), f"margin in {name}")
            action = learn(noisy, [condition], settings, spec.seed + repeat).actions[condition.key]
            assert action is not None
            rng = np.random.default_rng((spec.seed + repeat, i))
            seen = [noisy.source.measure_s(condition, np.repeat([which], EPOCHS_JUDGED, axis=0), rng).mean()
                    for which in (action, placed.action)]
            times.append(float(seen[0]))
            placed_times.append(float(seen[1]))
            accuracy.append(float(exact.mean_accuracy[exact.index(action)]))
        share = 1 - np.array(times) / np.array(placed_times)
        margins.append(share)
        rows.append({"conditions": name, **_interval(share), "learned_ms": 1e3 * float(np.mean(times)),
                     "placement_only_ms": 1e3 * float(np.mean(placed_times)),
                     "accuracy_lost_points": 100 * (max(exact.accuracy) - float(np.mean(accuracy)))})
    if len(margins) > 1:
        means = {k: float(np.mean([r[k] for r in rows])) for k in ("learned_ms", "placement_only_ms", "accuracy_lost_points")}
        rows.append({"conditions": "all", **_interval(np.mean(margins, axis=0)), **means})
    return pd.DataFrame(rows)


def _interval(values: Any) -> dict[str, float]:
    """Mean and 95% t interval over trainings; without an interval when there is one."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return {"margin": mean, "margin_low": mean - half, "margin_high": mean + half}


def dqn_table(spec: OrchestrationStudy, progress: Progress) -> tuple[pd.DataFrame, pd.DataFrame]:
    """DQN on noise-free response times; kept in the cache until it has finished, so that an interrupted training goes on."""
    rows: list[dict[str, Any]] = []
    curves = []
    asked = spec.dqn
    jobs = [(n, c) for n in (asked.devices if asked else []) for c in (asked.constraints if asked else [])]
    for i, (devices, constraint) in enumerate(jobs):
        assert asked is not None
        problem, states = spec.problem(devices, constraint), spec.states(devices)
        settings = dqn.DqnSettings(steps=asked.steps, chunks=asked.chunks, width=asked.width)
        about = dqn.fingerprint(problem, list(states.values()), settings, spec.seed)
        folder = cache_folder("policies") / f"orchestration-{about}"
        found = dqn.learn(problem, list(dict.fromkeys(states.values())), settings, spec.seed, checkpoint=folder,
                          on_progress=lambda share, text, i=i: progress((i + share) / len(jobs), text))  # type: ignore[misc]
        rows += _learned_rows("dqn", problem, states, constraint, found)
        curves.append(found.curve.assign(learner=f"dqn, {devices}, {constraint}"))
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _draw_response(figure: Any, cells: pd.DataFrame, spec: OrchestrationStudy) -> None:
    axes = figure.subplots()
    most = cells[cells["devices"] == max(spec.devices)]
    for i, name in enumerate(list(dict.fromkeys(most["conditions"]))[:8]):
        part = most[most["conditions"] == name]
        axes.plot(part["constraint"], part["optimum_ms"], marker="o", color=f"C{i}", label=name)
        axes.plot(part["constraint"], part["placement_only_ms"], ls=":", color=f"C{i}")
    axes.set_xlabel("accuracy constraint (dotted: placement only)")
    axes.set_ylabel(f"mean response time, {max(spec.devices)} devices (ms)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)


def _draw_curves(figure: Any, curves: pd.DataFrame) -> None:
    axes = figure.subplots()
    last = list(dict.fromkeys(curves["learner"]))[-8:]
    for i, name in enumerate(last):
        part = curves[curves["learner"] == name]
        axes.plot(part["epoch"] / part["epoch"].max(), 100 * part["gap"], color=f"C{i}", label=name)
    axes.set_xlabel("share of the training")
    axes.set_ylabel("above the optimum (%)")
    axes.set_yscale("symlog", linthresh=1)
    axes.legend(fontsize=7)
