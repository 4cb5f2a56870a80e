"""The mdinference study: MDInference's published simulation, vectorised: one cloud, normal network times, deadlines swept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from testbed.measurement.study import Finding, StudyOutcome
from testbed.policies.selection import Variant, fast_enough, most_accurate
from testbed.schema.study import Study
from testbed.schema.topology import Strict
from testbed.schema.units import Duration, Fraction

Progress = Callable[[float, str], None]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
RULES = ("mdinference", "naive", "random", "weighted")


class Normal(Strict):
    """A time that is normally distributed and cut off at zero (drawn again until it is above)."""

    mean: Duration
    deviation: Duration = 0.0

    def draw(self, count: int, rng: np.random.Generator) -> FloatArray:
        """`count` draws in seconds, all above 0."""
        values = rng.normal(self.mean, self.deviation, count)
        while (bad := values <= 0).any():
            values[bad] = rng.normal(self.mean, self.deviation, int(bad.sum()))
        return values


class CloudModel(Strict):
    """A model in the cloud: nominal accuracy, and how long an inference takes there."""

    name: str
    accuracy: Fraction
    time: Normal


class SlaRange(Strict):
    """Deadlines from `first` to `last` by `step`, both ends included."""

    first: Duration
    last: Duration
    step: Duration = Field(gt=0)

    @property
    def values_s(self) -> FloatArray:
        """All deadlines in seconds."""
        steps = np.arange(round((self.last - self.first) / self.step) + 1).astype("float64")
        return self.first + self.step * steps

    @model_validator(mode="after")
    def _ordered(self) -> SlaRange:
        if self.last < self.first:
            raise ValueError("last: is before first|write the shorter deadline first")
        return self


class MDInferenceStudy(Study):
    """Keys of an mdinference study. `device_accuracy`: of the duplicate on the device, which always is in time."""

    version: ClassVar[int] = 1

    networks: dict[str, Normal] = Field(min_length=1)
    models: list[CloudModel] = Field(min_length=1)
    device_accuracy: Fraction
    sla: SlaRange
    requests: int = Field(10_000, ge=100, le=1_000_000)
    gamma: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _named(self) -> MDInferenceStudy:
        names = [m.name for m in self.models]
        if len(set(names)) != len(names) or set(names) & set(RULES):
            raise ValueError(f"models: need names of their own, and not one of {', '.join(RULES)}|rename one")
        for where, time in [*self.networks.items(), *((m.name, m.time) for m in self.models)]:
            if time.mean <= 0:
                raise ValueError(f"{where}: needs a mean above 0|write for example mean: 50ms")
        return self


def run(spec: MDInferenceStudy, progress: Progress) -> StudyOutcome:
    """Run the study."""
    frames = []
    for i, (name, network) in enumerate(spec.networks.items()):
        progress(i / len(spec.networks), name)
        frames.append(simulate(spec, network, np.random.default_rng((spec.seed, i))).assign(network=name))
    table = pd.concat(frames, ignore_index=True)
    table = table[["network", *(c for c in table.columns if c != "network")]]
    figures = {kind: _drawing(table, kind, label) for kind, label in (
        ("accuracy", "accuracy of what is answered in time"), ("late", "share of late cloud answers"))}
    captions = {
        "deadlines": "Accuracy where the device's duplicate replaces late answers, and share of late answers of the cloud; "
                     "single: the model that is best for all requests at this deadline.",
        "sla": "Per network, policy and deadline: late_share of the cloud's answers; cloud_accuracy, of the models chosen; "
               "accuracy, where the device's duplicate replaces a late answer.",
        "accuracy": "Late answers of the cloud are replaced by the device's duplicate. Grey: one model for all requests.",
        "late": "Without a duplicate. Grey: one model for all requests.",
    }
    return StudyOutcome({"deadlines": overview(table, spec), "sla": table}, figures, findings_of(table, spec), captions)


def simulate(spec: MDInferenceStudy, network: Normal, rng: np.random.Generator) -> pd.DataFrame:
    """One row per policy and deadline: sla_ms, policy, late_share, cloud_accuracy, accuracy.

    A request takes twice its upload time and its model's time. All policies and deadlines meet the same draws. The models'
    means and deviations are taken as known; the published simulator estimates them from all requests before.
    """
    upload_s = network.draw(spec.requests, rng)  # (N,)
    time_s = np.stack([m.time.draw(spec.requests, rng) for m in spec.models])  # (M, N)
    luck = rng.random(spec.requests)  # (N,), for the rules that draw
    accuracy = np.array([m.accuracy for m in spec.models])
    rows = []
    for sla_s in spec.sla.values_s:
        chosen = choices(spec, upload_s, float(sla_s), luck)
        chosen |= {m.name: np.full(spec.requests, k) for k, m in enumerate(spec.models)}
        for policy, index in chosen.items():
            late = 2 * upload_s + np.take_along_axis(time_s, index[None], 0)[0] > sla_s
            used = accuracy[index]
            rows.append({"sla_ms": sla_s * 1e3, "policy": policy, "late_share": late.mean(), "cloud_accuracy": used.mean(),
                         "accuracy": np.where(late, spec.device_accuracy, used).mean()})
    return pd.DataFrame(rows)


def choices(spec: MDInferenceStudy, upload_s: FloatArray, sla_s: float, luck: FloatArray) -> dict[str, IntArray]:
    """The model's index per request, by rule; `luck` in [0, 1) decides where a rule draws. See `selection.fast_enough`."""
    variants = [Variant("cloud", m.name, False, m.accuracy, m.time.mean, m.time.deviation) for m in spec.models]
    accuracy = np.array([m.accuracy for m in spec.models])
    needed = np.array([m.time.mean + spec.gamma * m.time.deviation for m in spec.models])
    fits = needed[:, None] < (sla_s - 2 * upload_s)[None]  # (M, N)
    quickest = min(range(len(spec.models)), key=lambda k: (variants[k].latency_s, -accuracy[k]))
    fits[quickest, ~fits.any(axis=0)] = True
    blind = [Variant(v.node, v.model, False, v.accuracy, v.latency_s) for v in variants]
    naive = blind.index(most_accurate(fast_enough(blind, sla_s)))
    order = sorted(range(len(spec.models)), key=lambda k: (-accuracy[k], variants[k].latency_s))
    best = np.array(order)[fits[order].argmax(axis=0)]
    return {"mdinference": best, "naive": np.full(len(upload_s), naive), "random": _draw(fits.astype(float), luck),
            "weighted": _draw(fits * np.maximum(accuracy, 1e-12)[:, None], luck)}


def _draw(weights: FloatArray, luck: FloatArray) -> IntArray:
    """A row per column, with probability proportional to the weights (M, N)."""
    ends = np.cumsum(weights, axis=0) / weights.sum(axis=0)
    drawn: IntArray = (luck[None] >= ends).sum(axis=0).clip(max=len(weights) - 1)
    return drawn


def overview(table: pd.DataFrame, spec: MDInferenceStudy) -> pd.DataFrame:
    """One row per network and tenth of the range of deadlines: MDInference, the naive choice, the best single model."""
    deadlines = table["sla_ms"].unique()
    kept = deadlines[:: max(1, len(deadlines) // 10)]
    names = [m.name for m in spec.models]
    rows = []
    for (network, sla_ms), part in table[table["sla_ms"].isin(kept)].groupby(["network", "sla_ms"], sort=False):
        own = part.set_index("policy")
        rows.append({"network": network, "sla_ms": sla_ms, "mdinference_accuracy": own["accuracy"]["mdinference"],
                     "naive_accuracy": own["accuracy"]["naive"], "single_accuracy": own["accuracy"][names].max(),
                     "single": str(own["accuracy"][names].idxmax()), "mdinference_late": own["late_share"]["mdinference"],
                     "naive_late": own["late_share"]["naive"]})
    return pd.DataFrame(rows)


def findings_of(table: pd.DataFrame, spec: MDInferenceStudy) -> list[Finding]:
    """What is expected of the published comparison, and whether it was seen."""
    found = []
    for name in spec.networks:
        part = table[table["network"] == name].pivot(index="sla_ms", columns="policy")
        fall = float((-part["cloud_accuracy"]["mdinference"].diff().dropna()).max()) if len(part) > 1 else 0.0
        found.append(Finding(f"{name}: the models that MDInference chooses are no less accurate at longer deadlines",
                             f"largest fall {max(0.0, fall):.4f}", "0", fall <= 1e-12))
        more = float((part["late_share"]["mdinference"] - part["late_share"]["naive"]).max())
        found.append(Finding(f"{name}: MDInference is late no more often than the choice that ignores the network",
                             f"at most {more:+.3f}", "at most 0", more <= 0.005))
        single = part["accuracy"][[m.name for m in spec.models]].to_numpy("float64")
        gap = float((single.max(axis=1) - part["accuracy"]["mdinference"].to_numpy("float64")).max())
        found.append(Finding(f"{name}: with the duplicate it is as accurate as the best single model for each deadline",
                             f"behind it by at most {max(0.0, gap):.3f}", "at most 0.01", gap <= 0.01))
    return found


def _drawing(table: pd.DataFrame, kind: str, label: str) -> Callable[[Any], None]:
    def draw(figure: Any) -> None:
        networks = list(dict.fromkeys(table["network"]))
        column = {"accuracy": "accuracy", "late": "late_share"}[kind]
        for axes, network in zip(figure.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True):
            part = table[table["network"] == network]
            for policy in dict.fromkeys(part["policy"]):
                own = part[part["policy"] == policy]
                style: Mapping[str, Any] = ({"color": f"C{RULES.index(policy)}", "label": policy} if policy in RULES
                                            else {"color": "#b8c0c8", "lw": 0.8})
                axes.plot(own["sla_ms"], own[column], **style)
            axes.set_title(network, fontsize=9)
            axes.set_xlabel("deadline (ms)")
        figure.axes[0].set_ylabel(label)
        figure.axes[0].legend(fontsize=7)

    return draw

