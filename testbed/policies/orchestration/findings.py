"""The shapes that the orchestration paper leads one to expect, judged on what a study computed."""

from __future__ import annotations

import pandas as pd

from testbed.measurement.study import Finding

EXACT, NEAR = 1e-9, 0.05
PUBLISHED = "faster (published, abstract of arXiv 2202.10541: 35%, for less than 0.9 points)"


def findings_of(cells: pd.DataFrame, learned: pd.DataFrame, margins: pd.DataFrame) -> list[Finding]:
    """Constraint, weak links, number of devices, mix of models, learners, margin."""
    return [*_infeasible(cells), *_relaxed(cells), *_weak(cells), *_crowd(cells), *_mix(cells), *_learners(learned),
            *_margin(margins)]


def _infeasible(cells: pd.DataFrame) -> list[Finding]:
    names = sorted(set(cells.loc[~cells["feasible"], "constraint"]))
    return [Finding(f"constraint {name} is infeasible: no model of the ladder is that accurate", "no policy", "reported", True)
            for name in names]


def _relaxed(cells: pd.DataFrame) -> list[Finding]:
    found, rising, seen = [], 0, 0
    for _, part in cells[cells["feasible"]].groupby(["conditions", "devices"]):
        times = part["optimum_ms"].to_numpy("float64")  # from the loosest to the strictest, as listed
        rising += bool((times[1:] >= times[:-1] - 1e-6).all())
        seen += 1
        found.append(times[-1] / times[0])
    if not seen or len(set(cells["constraint"])) < 2:
        return []
    words = f"in {rising} of {seen} cases; the strictest takes {min(found):.1f} to {max(found):.1f} times as long as the loosest"
    return [Finding("response time falls as the accuracy constraint is relaxed", words, "in every case", rising == seen)]


def _weak(cells: pd.DataFrame) -> list[Finding]:
    names = set(cells["conditions"])
    if not {"EXP-A", "EXP-D"} <= names:
        return []
    local = cells[cells["feasible"]].groupby("conditions")["device_share"].mean()
    return [Finding("weak links push work to the device: share of inferences on the device",
                    f"{local['EXP-A']:.0%} with regular links, {local['EXP-D']:.0%} with weak ones", "more",
                    bool(local["EXP-D"] > local["EXP-A"]))]


def _crowd(cells: pd.DataFrame) -> list[Finding]:
    part = cells[cells["conditions"] == "EXP-A"].drop_duplicates("devices").sort_values("devices")
    if len(part) < 2:
        return []
    first, last = part.iloc[0], part.iloc[-1]
    growth = {name: last[f"all_{name}_ms"] - first[f"all_{name}_ms"] for name in ("local", "edge", "cloud")}
    words = ", ".join(f"all-{name} {first[f'all_{name}_ms']:.0f} to {last[f'all_{name}_ms']:.0f} ms" for name in growth)
    found = [Finding(f"from {first['devices']} to {last['devices']} devices all-edge worsens fastest, all-local not at all",
                     words, "edge > cloud > local", bool(growth["edge"] > growth["cloud"] > abs(growth["local"]) + 1e-6))]
    strict = cells[(cells["conditions"] == "EXP-A") & cells["feasible"] & (cells["constraint"] == "max")].set_index("devices")
    if len(strict) > 1:
        share = strict["edge_share"] + strict["cloud_share"]
        words = f"{share.iloc[0]:.0%} with {share.index[0]}, {share.iloc[-1]:.0%} with {share.index[-1]}"
        found.append(Finding("with more devices a smaller share leaves the device (max)", words, "smaller",
                             bool(share.iloc[-1] < share.iloc[0])))
    return found


def _mix(cells: pd.DataFrame) -> list[Finding]:
    part = cells[cells["feasible"] & (cells["devices"] > 1) & ~cells["constraint"].isin(["min", "max"])]
    if not len(part):
        return []
    models = part["decision"].map(lambda text: len({word.partition(":")[2] for word in text.split()}))
    mixed = int((models > 1).sum())
    return [Finding("the constraint is met with a mix of models, not one", f"{mixed} of {len(part)} optima use several", "most",
                    mixed > len(part) / 2)]


def _learners(learned: pd.DataFrame) -> list[Finding]:
    found = []
    for (learner, devices), part in learned[learned["feasible"]].groupby(["learner", "devices"]) if len(learned) else ():
        limit = EXACT if learner == "qlearning" else NEAR
        worst, equal = float(part["gap"].max()), int((part["gap"] <= EXACT).sum())
        found.append(Finding(f"{learner} with {devices} devices reaches the exhaustive optimum",
                             f"in {equal} of {len(part)} cases; at most {worst:.2%} above",
                             "equal" if limit == EXACT else "within 5%",
                             worst <= limit))
    if len(learned):
        found.append(Finding("exploration in the safe set never violates the constraint",
                             f"{int(learned['violations'].sum())} violations", "0", int(learned["violations"].sum()) == 0))
    return found


def _margin(margins: pd.DataFrame) -> list[Finding]:
    shown = margins if len(margins) <= 5 else margins.tail(1)
    return [Finding(f"{row['conditions']}: the learned policy is faster than placement only",
                    f"{row['margin']:.1%} ({row['margin_low']:.1%} to {row['margin_high']:.1%}) for "
                    f"{row['accuracy_lost_points']:.2f} points of accuracy", PUBLISHED, bool(row["margin_low"] > 0))
            for row in shown.to_dict("records")]
