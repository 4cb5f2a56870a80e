"""The oracle: for every request of a finished run, the best plan in hindsight, from profiles and the replayed capacity.

Each request is taken alone, at its scheduled instant: no plan of any policy can answer it earlier in this model, so the
oracle is a lower bound and regret an upper bound of what deciding better could gain. Fixed plans are simulated with all
requests of their device, first come, first served, on one worker per node and on every link. Other devices' requests,
loading of cold models, encoding and what `policies.truth` neglects are left out of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.errors import InputError
from testbed.experiment.content import codecs_named
from testbed.experiment.oracle_plans import plans_of
from testbed.experiment.truth import truth_of_manifest
from testbed.inference.codecs.learned import PREFIX
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.records import ORACLE, write_table
from testbed.measurement.regret import ORACLE_FILE, PLAN_COLUMNS, PLANS_FILE
from testbed.measurement.trial import Trial, load_trial
from testbed.policies import Context, Plan
from testbed.policies.candidates import Candidate, Queues, alone_s, price
from testbed.policies.knowledge import from_json
from testbed.policies.truth import NS_PER_S, Truth
from testbed.schema.scenario import Oracle, Scenario

MOST_SIMULATED, FEWEST_SIMULATED = 40, 3  # fixed plans that are simulated, those with the lowest latency alone
MOST_WALKS = 400_000  # requests times plans that are simulated of a trial: half a minute

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Hindsight:
    """What the oracle says of a trial: a row per measured request, and a row per fixed plan."""

    requests: pd.DataFrame
    plans: pd.DataFrame


def write_oracles(folders: Sequence[Path], oracle: Oracle | None) -> list[str]:
    """Write `oracle.csv` and `oracle_plans.csv` into each trial of a run; returns why some have none.

    Nothing is done without `oracle` where every trial ran a fixed plan. Raises InputError for settings that no plan meets;
    where none were given, that is a reason to have none.
    """
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    decides = any("policy" in policy for m in manifests for policy in m["config"]["policies"])
    if oracle is None and not decides:
        return []
    settings = _resolved(oracle or Oracle(), manifests)
    reasons: dict[str, None] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        why = unknown_of(manifest)
        if why:
            for name in (ORACLE_FILE, PLANS_FILE):
                (folder / name).unlink(missing_ok=True)
            reasons[why] = None
            continue
        try:
            found = hindsight(load_trial(folder), settings)
        except InputError as error:
            if oracle is not None:
                raise
            reasons[f"no oracle: {error.problem}; {error.remedy}"] = None
            continue
        write_table(folder / ORACLE_FILE, ORACLE, found.requests)
        write_text_atomic(folder / PLANS_FILE, found.plans.to_csv(index=False, lineterminator="\n"))
    return list(reasons)


def unknown_of(manifest: Mapping[str, Any]) -> str:
    """Why a trial can have no oracle; empty when it can."""
    real = [str(node["name"]) for node in manifest.get("nodes") or [] if node.get("compute") in (None, "real")]
    if real:
        return f"no oracle: {', '.join(real)} compute at this machine's own speed, which no profile states"
    return ""


def hindsight(trial: Trial, settings: Oracle) -> Hindsight:
    """The oracle of one trial. Raises InputError."""
    truth = truth_of_manifest(trial.manifest)
    log = _Log.read(trial.path / "decisions.jsonl")
    timeout_s = Scenario.model_validate(trial.manifest["config"]).load.timeout
    most = max(FEWEST_SIMULATED, min(MOST_SIMULATED, MOST_WALKS // max(1, len(trial.requests))))
    frames, tables = [], []
    for device, rows in trial.requests.sort_values("scheduled_ns", kind="stable").groupby("device", sort=True):
        context = log.contexts[str(device)]
        plans = plans_of(context, settings)
        frame, table = _of_device(rows, plans, context, truth, log.plans, timeout_s, most)
        frames.append(frame)
        tables.append(table)
    requests = pd.concat(frames, ignore_index=True).assign(run_id=trial.run_id)
    return Hindsight(requests, _merged(pd.concat(tables, ignore_index=True)))


@dataclass(frozen=True)
class _Log:
    contexts: Mapping[str, Context]
    plans: Mapping[str, Plan]

    @classmethod
    def read(cls, path: Path) -> _Log:
        """Contexts by device and plans by request from a decision log. Raises InputError."""
        contexts, plans = {}, {}
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry["kind"] == "policy":
                    contexts[str(entry["device"])] = from_json(Context, entry["context"])
                elif entry["kind"] == "decide":
                    plans[str(entry["request_id"])] = from_json(Plan, entry["plan"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"is no decision log: {type(error).__name__}: {error}", file=path,
                             remedy="run the trial again") from None
        return cls(contexts, plans)


def _resolved(oracle: Oracle, manifests: Sequence[Mapping[str, Any]]) -> Oracle:
    """With the codecs that the run's policies name where `oracle` names none; learned codecs cost accuracy: not those."""
    if oracle.codecs is not None:
        return oracle
    named = set().union(*(codecs_named(policy) for m in manifests for policy in m["config"]["policies"]))
    return oracle.model_copy(update={"codecs": ["raw", *sorted(c for c in named if c != "raw" and not c.startswith(PREFIX))]})


def _of_device(rows: pd.DataFrame, plans: Sequence[Candidate], context: Context, truth: Truth,
               chosen: Mapping[str, Plan], timeout_s: float, most: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    since = (rows["scheduled_ns"] - truth.start_ns).to_numpy("float64")
    measured = rows["phase"].fillna("measure").eq("measure").to_numpy(dtype=bool)
    deadline = rows["deadline_s"].to_numpy("float64")
    alone = np.stack([alone_s(plan, truth, since) for plan in plans])  # (plans, requests)
    first = alone.argmin(axis=0)
    best = alone.min(axis=0)
    likely = np.argsort([_rank(row[measured]) for row in alone], kind="stable")[:most]
    queued = {int(i): _queued_s(plans[int(i)], truth, since) for i in likely}
    static = min(queued, key=lambda i: _rank(queued[i][measured]))
    works = np.isfinite(best)
    frame = pd.DataFrame({
        "request_id": rows["request_id"].to_numpy(),
        "oracle_plan": [plans[i].name if ok else None for i, ok in zip(first, works, strict=True)],
        "oracle_latency_s": _finite(best), "oracle_hit": best <= deadline,
        "chosen_latency_s": _chosen_s(rows, context, truth, since, chosen, timeout_s),
        "static_latency_s": _finite(queued[static]),
    })
    table = pd.DataFrame([{
        "plan": plans[i].name, "accuracy": plans[i].accuracy, "requests": int(measured.sum()),
        "failed": int((~np.isfinite(values[measured])).sum()), "latencies": values[measured],
        "in_time": float((values[measured] <= deadline[measured]).sum()),
        "oracle_share": float((first[measured] == i).sum())} for i, values in queued.items()])
    return frame[measured], table


def _rank(latency_s: FloatArray) -> float:
    """Mean latency, with an hour for a request that fails: fewer failures first."""
    return float(np.minimum(latency_s, 3600.0).mean()) if len(latency_s) else 0.0


def _queued_s(plan: Candidate, truth: Truth, since: FloatArray) -> FloatArray:
    """Latency of a fixed plan for all requests of a device, each behind those before it."""
    queues = Queues()
    return np.array([(queues.finish_ns(plan, truth, t, commit=True) - t) / NS_PER_S for t in since.tolist()])


def _chosen_s(rows: pd.DataFrame, context: Context, truth: Truth, since: FloatArray, chosen: Mapping[str, Plan],
              timeout_s: float) -> FloatArray:
    """Latency in the model, alone, of what each request's plan came to; NaN for failed requests and plans without a price."""
    priced: dict[Plan, _Chosen | None] = {}
    out = np.full(len(rows), np.nan)
    answered = rows["status"].eq("ok").fillna(False).to_numpy(dtype=bool)
    by_plan = (rows["error_type"].isna() & rows["backup"].ne("won").fillna(True)).to_numpy(dtype=bool)
    for i, (request_id, exit_id) in enumerate(zip(rows["request_id"], rows["exit_id"], strict=True)):
        plan = chosen.get(str(request_id))
        if plan is None or not answered[i]:
            continue
        if plan not in priced:
            priced[plan] = _Chosen.of(plan, context)
        found = priced[plan]
        if found is not None:
            out[i] = found.latency_s(truth, float(since[i]), timeout_s, str(exit_id) if by_plan[i] else None)
    return _finite(out)


@dataclass(frozen=True)
class _Chosen:
    """A plan with its fallback and backup, priced."""

    plan: Candidate
    fallback: Candidate | None
    backup: Candidate | None

    @classmethod
    def of(cls, plan: Plan, context: Context) -> _Chosen | None:
        try:
            spare = [price(Plan(plan.name, steps), context) if steps else None for steps in (plan.fallback, plan.backup)]
            return cls(price(plan, context), *spare)
        except ValueError:
            return None

    def latency_s(self, truth: Truth, since_ns: float, timeout_s: float, exit_id: str | None) -> float:
        """Of the plan, up to the exit at which it left, when that is known. A plan that takes longer than the time-out gives way
        to its fallback then, one whose node is down after a round trip; a backup answers when it is earlier."""
        taken = float(alone_s(self.plan, truth, since_ns, exit_id))
        # the last branch goes all the way: the first may leave at an exit on the device
        first = next((piece for piece in self.plan.branches[-1].pieces if piece.dst is not None), None)
        if self.fallback is not None and taken > timeout_s and first is not None:
            way = truth.way(first.src, first.dst or "")
            refused = not truth.works_at(first.dst or "", since_ns, since_ns)
            waited_s = 2 * sum(truth.sides[pair].delay_s for pair in way) if refused else timeout_s
            taken = min(waited_s, timeout_s) + float(alone_s(self.fallback, truth, since_ns))
        if self.backup is not None and self.plan.plan.backup_after_s is not None:
            taken = min(taken, self.plan.plan.backup_after_s + float(alone_s(self.backup, truth, since_ns)))
        return taken


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, np.nan)


def _merged(tables: pd.DataFrame) -> pd.DataFrame:
    """One row per fixed plan over all devices, the best first: fewest failures, then lowest mean latency."""
    rows = []
    for plan, group in tables.groupby("plan", sort=False):
        latency = np.concatenate(list(group["latencies"]))
        answered = np.sort(latency[np.isfinite(latency)])
        count = int(group["requests"].sum())
        rows.append({
            "plan": plan, "accuracy": float(group["accuracy"].iloc[0]), "requests": count, "failed": int(group["failed"].sum()),
            "latency_mean_s": float(answered.mean()) if len(answered) else np.nan,
            **{f"latency_p{q}_s": float(answered[int(np.ceil(q / 100 * len(answered))) - 1]) if len(answered) else np.nan
               for q in (50, 95)},
            "deadline_hit": float(group["in_time"].sum()) / count, "oracle_share": float(group["oracle_share"].sum()) / count})
    table = pd.DataFrame(rows, columns=list(PLAN_COLUMNS))
    return table.sort_values(["failed", "latency_mean_s"], kind="stable", ignore_index=True)
