"""A run of the token-bucket policy beside the analytic one on the same images and schedule, and what its transfers waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from testbed.errors import InputError
from testbed.inference.catalogue import Catalogue
from testbed.inference.logits import split_logits
from testbed.measurement.trial import Trial
from testbed.policies.replay import logged_policies
from testbed.policies.token_bucket.bucket import BoolArray, Bucket
from testbed.policies.token_bucket.metric import entropy
from testbed.policies.token_bucket.policy import TokenBucket
from testbed.schema.topology import Topology

FloatArray = npt.NDArray[np.float64]
Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Images:
    """What the models say of the images of one device's requests, all (T,): entropy in nats, whether each answer is right."""

    entropy: FloatArray
    weak_correct: BoolArray
    strong_correct: BoolArray


@dataclass(frozen=True)
class Agreement:
    """One device: what the run did, and what the analytic policy does with the same images at the same instants.

    `queue_s`: the longest that a transfer waited for others on its way; `image_s`: what one image takes on the slowest link.
    `excess`: tokens by which the offloads of the worst window exceed depth + rate x time; 0 when all conform.
    """

    device: str
    requests: int
    offloads: int
    analytic_offloads: int
    same_decisions: float
    accuracy: float
    analytic_accuracy: float
    queue_s: float
    image_s: float
    excess: float

    @property
    def accuracy_error(self) -> float:
        """Half a 95% interval of the accuracy over so many images."""
        return Z * float(np.sqrt(self.analytic_accuracy * (1 - self.analytic_accuracy) / self.requests))

    @property
    def offload_error(self) -> float:
        """Half a 95% interval of the count, as if images were offloaded independently of each other."""
        share = self.analytic_offloads / self.requests
        return Z * float(np.sqrt(share * (1 - share) * self.requests))

    @property
    def agrees(self) -> bool:
        """Whether count and accuracy are the analytic ones within sampling error."""
        return (abs(self.offloads - self.analytic_offloads) <= self.offload_error
                and abs(self.accuracy - self.analytic_accuracy) <= self.accuracy_error)

    @property
    def conforms(self) -> bool:
        """Whether offloads stay within the bucket, and no transfer waited as long as one image takes."""
        return self.excess <= 1e-6 and (self.queue_s < self.image_s or not self.image_s)


def decide(bucket: Bucket, unit_ns: int, table: Sequence[tuple[float, float] | None], h: FloatArray,
           scheduled_ns: npt.NDArray[np.integer]) -> BoolArray:
    """Offload (T,) by the entropies h (T,) in nats, above and up to the two of each level from one token to full.

    Levels are integers, `unit_ns` to a part, so that any schedule is exact.
    """
    full, token = bucket.depth * unit_ns, bucket.token * unit_ns
    level, offload = full, np.zeros(len(h), bool)
    for i, gap in enumerate(np.diff(scheduled_ns, prepend=scheduled_ns[:1]).tolist()):
        level = min(full, level + bucket.refill * gap)
        row = (level + unit_ns // 10_000) // unit_ns - bucket.token  # a schedule is rounded to ns
        ends = table[row] if row >= 0 else None
        offload[i] = ends is not None and ends[0] < h[i] <= ends[1]
        level -= token * bool(offload[i])
    return offload


def excess_tokens(bucket: Bucket, unit_ns: int, instants_ns: npt.NDArray[np.integer]) -> float:
    """Most tokens by which the offloads at these instants exceed depth + rate x time in any window; at least 0."""
    level, lowest, before = float(bucket.depth), 0.0, None
    for t_ns in instants_ns.tolist():
        gain = 0.0 if before is None else (t_ns - before) / unit_ns * bucket.refill
        level = min(float(bucket.depth), level + gain) - bucket.token
        lowest, before = min(lowest, level), t_ns
    return -lowest / bucket.token


def agreements(trial: Trial, catalogue: Catalogue) -> list[Agreement]:
    """One per device. Raises InputError for a trial of another policy, or with a data set that is a path."""
    config = trial.manifest["config"]
    found = []
    for device, policy in sorted(logged_policies(trial.path / "decisions.jsonl").items()):
        if not isinstance(policy, TokenBucket):
            raise InputError(f"is a trial of {trial.policy}, which has no analytic policy", file=trial.path,
                             remedy="give one of policy token-bucket")
        for name in {policy.weak.name, policy.strong.name}:
            if trial.manifest["files"].get(f"model:{name}", catalogue[name].sha256) != catalogue[name].sha256:
                raise InputError("has other weights than the run had", file=trial.path, key="model", value=name,
                                 remedy="run the scenario again")
        if config["dataset"] != catalogue[policy.weak.name].dataset:
            raise InputError("is not the data set of the weak model", file=trial.path, key="dataset", value=config["dataset"],
                             remedy=f"run it with {catalogue[policy.weak.name].dataset}")
        requests = trial.requests[trial.requests["device"] == device].sort_values("scheduled_ns", kind="stable")
        scheduled_ns = requests["scheduled_ns"].to_numpy(np.int64)
        images = images_of(policy, catalogue, requests["sample_index"].to_numpy(np.int64))
        analytic = decide(policy.bucket, policy.unit_ns, policy.table, images.entropy, scheduled_ns)
        sent = trial.hops[(trial.hops["kind"] == "transfer") & (trial.hops["src_node"] == device)]
        offloaded = requests["request_id"].isin(sent["request_id"]).to_numpy(bool)
        right = np.where(analytic, images.strong_correct, images.weak_correct)
        queue_s, image_s = queueing_s(policy, device, sent, Topology.model_validate(config["topology"]), trial.manifest["links"])
        found.append(Agreement(
            device, len(requests), int(offloaded.sum()), int(analytic.sum()), float((offloaded == analytic).mean()),
            float(requests["correct"].fillna(False).mean()), float(right.mean()), queue_s, image_s,
            excess_tokens(policy.bucket, policy.unit_ns, scheduled_ns[offloaded])))
    return found


def images_of(policy: TokenBucket, catalogue: Catalogue, samples: npt.NDArray[np.integer]) -> Images:
    """Entropies and answers of both models for these samples of the test split (computed once, and cached)."""
    weak, strong = (split_logits(catalogue, info.name, "test") for info in (policy.weak, policy.strong))
    first, *_ = weak.exits
    temperature = catalogue[policy.weak.name].exit_after[policy.weak.exits[first]].temperature
    logits, last = weak.exits[first][samples], list(strong.exits.values())[-1][samples]
    labels = weak.labels[samples]
    return Images(entropy(logits, temperature), logits.argmax(1) == labels, last.argmax(1) == labels)


def queueing_s(policy: TokenBucket, device: str, sent: pd.DataFrame, topology: Topology,
               links: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(longest wait of a transfer, time of one image on the slowest link); (0, .) without transfers.

    A wait is what a transfer took beyond the delays of its links and the sending of what their buckets do not hold.
    """
    named = {row["name"]: row for row in links}
    idle_s, image_s = 0.0, 0.0
    for a, b in pairwise(topology.path(device, policy.server)):
        side = named[f"{a}-{b}"]["up"] if f"{a}-{b}" in named else named[f"{b}-{a}"]["down"]
        idle_s += side["delay_s"]
        if side["rate_bps"]:
            idle_s += max(0, policy.image_bytes - side["bucket_bytes"]) * 8 / side["rate_bps"]
            image_s = max(image_s, policy.image_bytes * 8 / side["rate_bps"])
    took_s = (sent["recv_last_ns"] - sent["send_start_ns"]).dropna().to_numpy(np.float64) / 1e9
    return (max(0.0, float(took_s.max()) - idle_s) if len(took_s) else 0.0), image_s
