"""Response times of joint actions, from three sources behind one interface: a contention model, a fitted table, a measurement."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from testbed.errors import InputError
from testbed.policies.orchestration.conditions import LEVELS, Condition
from testbed.policies.orchestration.models import Variant

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TIERS = ("device", "edge", "cloud")
SEGMENT_BYTES, INITIAL_WINDOW = 1448, 10  # of TCP over Ethernet with timestamps; RFC 6928


@dataclass(frozen=True)
class Actions:
    """What one device may do, in a fixed order: `tier[k]` (0 device, 1 edge, 2 cloud) and `model[k]`, an index of the ladder.

    `faithful` is the published form: every model locally, or the first of the ladder at the edge or in the cloud.
    """

    tier: tuple[int, ...]
    model: tuple[int, ...]

    @classmethod
    def faithful(cls, models: int) -> Actions:
        """models + 2 actions."""
        return cls((0,) * models + (1, 2), (*range(models), 0, 0))

    @classmethod
    def product(cls, models: int) -> Actions:
        """Every model on every tier: 3 * models actions."""
        return cls(tuple(t for t in range(3) for _ in range(models)), tuple(range(models)) * 3)

    def __len__(self) -> int:
        return len(self.tier)

    def names(self, ladder: Sequence[Variant]) -> tuple[str, ...]:
        """`device:d0`, `edge:d0`, ..."""
        return tuple(f"{TIERS[t]}:{ladder[m].name}" for t, m in zip(self.tier, self.model, strict=True))


class ResponseSource(ABC):
    """Response time per device of joint actions."""

    noise: float = 0.0  # coefficient of variation of a measurement around `times_s`

    @abstractmethod
    def times_s(self, condition: Condition, joint: IntArray) -> FloatArray:
        """(A, N) expected response times in seconds of joint actions (A, N), each entry an index of an action."""

    def measure_s(self, condition: Condition, joint: IntArray, rng: np.random.Generator) -> FloatArray:
        """(A, N) response times as one epoch shows them: log-normal around the expected ones where there is noise."""
        return self.noisy(self.times_s(condition, joint), rng)

    def noisy(self, times: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Expected times as one epoch shows them."""
        if not self.noise:
            return times
        sigma = math.sqrt(math.log1p(self.noise**2))
        return times * np.exp(rng.normal(-(sigma**2) / 2, sigma, times.shape))


@dataclass(frozen=True)
class Platform:
    """Speeds and links of the contention model. All of these are assumptions; a study file sets them.

    Parameters
    ----------
    mmacs_per_s: of one core, in float32. int8_speedup: how much faster int8 is.
    cores: of device, edge, cloud, in units of one core (or of the reference core of a catalogue's times); one inference uses
    all of its node's cores, several share them.
    overhead_s: of every inference, without contention.
    request_bytes: sent by an offloading device; access_bps, uplink_bps: of its own link and of the edge's, which all share.
    access_delay_s, uplink_delay_s: one way. weak_delay_s: added each way on a weak link.
    busy_share: of a node's cores that other work takes at the highest level; short_factor: slowdown when memory is short.
    """

    mmacs_per_s: float = 1300.0
    int8_speedup: float = 1.5
    cores: tuple[float, float, float] = (1.0, 2.0, 4.0)
    overhead_s: float = 0.02
    request_bytes: int = 60_000
    access_bps: float = 50e6
    uplink_bps: float = 100e6
    access_delay_s: float = 0.002
    uplink_delay_s: float = 0.01
    weak_delay_s: float = 0.02
    busy_share: float = 0.5
    short_factor: float = 1.5

    @cached_property
    def exchanges(self) -> int:
        """Round trips of one request on a kept connection that was idle: TCP slow start from ten segments, doubling each time."""
        return max(1, math.ceil(math.log2(self.request_bytes / (SEGMENT_BYTES * INITIAL_WINDOW) + 1)))


@dataclass(frozen=True)
class Contention(ResponseSource):
    """All devices ask at once; cores and the edge's uplink are shared equally among the jobs under way (processor sharing).

    response = overhead + round trips * RTT + access transfer + shared uplink transfer (cloud) + shared computation. The j-th job
    of sorted works w_1 <= .. <= w_n on a node of speed c ends at the sum over k <= j of (w_k - w_(k-1)) (n - k + 1) / c.
    """

    platform: Platform
    ladder: tuple[Variant, ...]
    actions: Actions
    noise: float = 0.0

    @cached_property
    def _work_s(self) -> FloatArray:
        """(actions,) seconds on one core: as measured where the ladder says it, else from the multiply-accumulates."""
        p, speed = self.platform, {"fp32": 1.0, "int8": self.platform.int8_speedup}
        work = [v.reference_s or v.mmacs / (p.mmacs_per_s * speed[v.precision]) for v in self.ladder]
        return np.array(work)[list(self.actions.model)]

    def times_s(self, condition: Condition, joint: IntArray) -> FloatArray:
        """See the class."""
        p, tier = self.platform, np.array(self.actions.tier)[joint]  # (A, N)
        work = self._work_s[joint]
        own = np.array([self._speed(n.busy, n.short, 0) for n in condition.devices])
        times = p.overhead_s + np.where(tier == 0, work / own, 0.0)
        for number, node in ((1, condition.edge), (2, condition.cloud)):
            there = tier == number
            times += shared(np.where(there, work, 0.0)) / self._speed(node.busy, node.short, number)
        access_rtt = 2 * (p.access_delay_s + p.weak_delay_s * np.array([n.weak for n in condition.devices]))
        uplink_rtt = 2 * (p.uplink_delay_s + p.weak_delay_s * condition.edge.weak)
        times += np.where(tier > 0, p.exchanges * access_rtt + 8 * p.request_bytes / p.access_bps, 0.0)
        upload_s = np.where(tier == 2, 8 * p.request_bytes / p.uplink_bps, 0.0)
        return times + np.where(tier == 2, p.exchanges * uplink_rtt + shared(upload_s), 0.0)

    def _speed(self, busy: int, short: bool, tier: int) -> float:
        """Cores that are left."""
        p = self.platform
        return p.cores[tier] * (1 - p.busy_share * busy / (LEVELS - 1)) / (p.short_factor if short else 1.0)


def shared(work: FloatArray) -> FloatArray:
    """(A, N) times at which jobs end that start together on a server of speed 1 and share it equally; 0 without work."""
    order = np.argsort(work, axis=1, kind="stable")
    ranked = np.take_along_axis(work, order, 1)
    steps = np.diff(ranked, axis=1, prepend=0.0) * np.arange(work.shape[1], 0, -1)
    ends = np.empty_like(work)
    np.put_along_axis(ends, order, np.cumsum(steps, axis=1), 1)
    return ends


SAMPLE_COLUMNS = ("tier", "model", "jobs", "weak", "edge_weak", "latency_s")


@dataclass(frozen=True)
class Fitted(ResponseSource):
    """A table fitted from probes: per (tier, model) a base time, per remote tier what one more job and a weak link add."""

    table: Mapping[str, float]
    ladder: tuple[Variant, ...]
    actions: Actions
    residual_s: float = 0.0
    noise: float = 0.0

    @classmethod
    def fit(cls, samples: pd.DataFrame, ladder: tuple[Variant, ...], actions: Actions) -> Fitted:
        """Least squares over samples with the columns of SAMPLE_COLUMNS, one row per measured request.

        `tier` device, edge or cloud; `jobs`: devices that use this tier at the same time; `weak`: the device's link,
        `edge_weak`: the edge's uplink. Raises InputError when an action has no sample.
        """
        wanted = actions.names(ladder)
        base = samples["tier"] + ":" + samples["model"]
        missing = [name for name in wanted if name not in set(base)]
        if missing:
            raise InputError("has no sample of this action", key="probes", value=missing[0],
                             remedy="run a plan that uses it, and fit again")
        remote = samples["tier"] != "device"
        columns = {name: (base == name).astype(float) for name in dict.fromkeys(wanted)}
        for tier in TIERS[1:]:
            here = samples["tier"] == tier
            columns[f"{tier}+job"] = here * (samples["jobs"] - 1.0)
        columns["weak"] = (remote & samples["weak"].astype(bool)).astype(float)
        columns["edge_weak"] = ((samples["tier"] == "cloud") & samples["edge_weak"].astype(bool)).astype(float)
        design = np.column_stack([c.to_numpy("float64") for c in columns.values()])
        latency_s = samples["latency_s"].to_numpy("float64")
        found, *_ = np.linalg.lstsq(design, latency_s, rcond=None)
        residual_s = float(np.sqrt(np.mean((design @ found - latency_s) ** 2)))
        table = {name: float(value) for name, value in zip(columns, found, strict=True)}
        return cls(table, ladder, actions, residual_s)

    def times_s(self, condition: Condition, joint: IntArray) -> FloatArray:
        """Base time of the action, jobs and weak links added."""
        tier = np.array(self.actions.tier)[joint]
        times = np.array([self.table[name] for name in self.actions.names(self.ladder)])[joint]
        for number in (1, 2):
            there = tier == number
            times = times + there * self.table[f"{TIERS[number]}+job"] * (there.sum(1, keepdims=True) - 1)
        weak = np.array([n.weak for n in condition.devices])
        times = times + (tier > 0) * weak * self.table["weak"] + (tier == 2) * condition.edge.weak * self.table["edge_weak"]
        found: FloatArray = np.maximum(times, 0.0)
        return found


def samples_of(requests: pd.DataFrame, tier_of: Mapping[str, str], weak: Mapping[str, bool] | None = None,
               edge_weak: bool = False) -> pd.DataFrame:
    """Samples for `Fitted.fit` from the requests table of a trial in which every device kept to one plan.

    tier_of: node -> device, edge or cloud. weak: device -> whether its link is weak. Only measured requests that succeeded count.
    """
    good = requests[(requests["status"] == "ok") & (requests["phase"] == "measure")]
    per_node = good.groupby(["policy", "final_node"])["device"].transform("nunique")
    return pd.DataFrame({
        "tier": good["final_node"].map(dict(tier_of)), "model": good["model"], "jobs": per_node,
        "weak": good["device"].map(lambda d: bool((weak or {}).get(d, False))), "edge_weak": edge_weak,
        "latency_s": (good["completed_ns"] - good["scheduled_ns"]) / 1e9}).reset_index(drop=True)


def read_samples(path: Path, weak: bool) -> pd.DataFrame:
    """Samples of a trial's requests.csv, all links weak or none; nodes are named after their tier. Raises InputError."""
    try:
        requests = pd.read_csv(path)
        nodes = pd.concat([requests["device"], requests["final_node"]]).dropna().unique()
        tier_of = {str(node): str(node).rstrip("0123456789") for node in nodes}
        return samples_of(requests, tier_of, {str(d): weak for d in requests["device"].unique()}, weak)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"has no requests of a trial ({type(error).__name__}: {error})", file=path, key="probes",
                         remedy="name requests.csv files of runs") from error


@dataclass(frozen=True)
class Live(ResponseSource):
    """The system itself: `run(condition, joint action (N,))` has the devices do it once and returns their response times (N,).

    Expected times are what one run shows, so a learner meets the noise of the system.
    """

    run: Callable[[Condition, IntArray], FloatArray]

    def times_s(self, condition: Condition, joint: IntArray) -> FloatArray:
        """One run per joint action."""
        return np.stack([np.asarray(self.run(condition, one), np.float64) for one in joint])
