"""Token-bucket offloading in a running network: the weak model on the device answers, unless the table says to spend a token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs, model_of, server_of
from testbed.policies.knowledge import Context, ModelInfo, Observation, Outcome
from testbed.policies.plan import ExitRule, Plan, Step
from testbed.policies.token_bucket.bucket import Bucket
from testbed.policies.token_bucket.meter import Meter
from testbed.policies.token_bucket.wire import bucket_of, offload_bytes

Entropy = float | Sequence[float] | None  # of one level: threshold, [threshold, upper end], or never


class TokenBucket(Policy):
    """Runs a weak model on the device; a token lets a strong one on a server answer instead.

    ### Decides
    The bucket's level at the request's scheduled instant picks a threshold h from the table. The weak answer stands when the
    calibrated entropy of its probabilities is at most h; else the server is asked, and a token is spent. Below one token the
    weak answer stands always, and when the server cannot be reached. The table is a study's (`policy_r*_b*.yaml` of a
    token_bucket study): MDP thresholds, translated from the metric to the entropy. Where the metric falls again for the hardest
    images, a level has two entropies, and the weak answer stands above the second too.

    ### Conforms
    Requests that are under way count as if each had spent a token, until their outcome is known. So of the requests that are
    scheduled within any time t at most depth + rate * t / unit_s are offloaded, whatever overlaps. A request that failed counts
    as offloaded. With one request under way at a time (`load.queue: {workers: 1}`) decisions are those of the analytic policy.

    ### Options
    | option | unit | default | meaning |
    |---|---|---|---|
    | rate | images per unit of time, or a rate such as `12kbit` | 0.1 | of the bucket; it starts full |
    | depth | images, or a size such as `16KB` | 4 | of the bucket |
    | entropy | nats | 1.0 | threshold, or [threshold, upper end], per level from one token to full; or one for all; null: keep |
    | unit_s | s | 1 | the unit of time; a study counts in arrivals, so the mean time between requests |
    | model, exit | | the scenario's, its first exit | weak model, and the exit that gives its answer: its first |
    | strong | | the weak model | model on the server; the weak one: its remaining stages, and the tensor is sent, not the image |
    | node | | nearest | tier or name of the server |
    | codec | | raw | how the image, or the tensor, travels |

    A rate in bit/s and a depth in bytes count what one offload puts on the link, headers of all layers included.

    ### Reference
    Chakrabarti, Guerin, Lu and Liu, SEC 2021, arXiv 2010.13737.

    ### Versions
    1: first.
    """

    id: ClassVar[str] = "token-bucket"
    version: ClassVar[int] = 1
    all_foreseen: ClassVar[bool] = True

    def __init__(self, context: Context, rate: float | str = 0.1, depth: float | str = 4.0,
                 entropy: float | Sequence[Entropy] = 1.0, unit_s: float = 1.0, exit: str | None = None,
                 model: str | None = None, strong: str | None = None, node: str | None = None, codec: str = "raw") -> None:
        """Raises ValueError, InputError for options that cannot be."""
        super().__init__(context)
        checked_codecs(codec)
        if not unit_s > 0:
            raise ValueError("unit_s must be above 0")
        self.weak = model_of(context, model)
        self.strong = self.weak if strong is None else model_of(context, strong)
        self._stop = weak_stop(self.weak, exit, alone=self.strong.name == self.weak.name)
        self._begin = self._stop if self.strong.name == self.weak.name else 0  # of the strong part
        self.server, self._codec = server_of(context, node), codec
        self.image_bytes = offload_bytes(self.strong.bytes_at(self._begin, codec))  # that one offload puts on the link
        self.bucket, self.unit_ns = bucket_of(rate, depth, unit_s, self.image_bytes), round(unit_s * 1e9)
        self.table = table_of(entropy, self.bucket)  # nats
        scale = math.log(self.weak.output_bytes[-1] // 4)  # the rule's entropy is divided by log(classes)
        self._keep = Plan("keep", (self._step(ExitRule("always", 0.0)),))
        self._plans = [self._keep if ends is None else self._offer(*(h / scale for h in ends)) for ends in self.table]
        self._meter = Meter(self.bucket, self.unit_ns)
        self._scores: dict[str, float] = {}

    def models(self) -> tuple[str, ...]:
        """The weak and the strong model."""
        return tuple(dict.fromkeys((self.weak.name, self.strong.name)))

    def plans(self) -> tuple[Plan, ...]:
        """Every plan of the table, and the one that keeps the token."""
        return tuple(dict.fromkeys([*self._plans, self._keep]))

    def decide(self, observation: Observation) -> Plan:
        """The threshold of the level that is left when all open requests spend a token."""
        parts = self._meter.at(observation.t_ns - round(observation.elapsed_s * 1e9))
        row = parts - self.bucket.token
        plan = self._plans[row] if row >= 0 else self._keep
        if plan is not self._keep:
            self._meter.open(observation.request_id)
        rule = plan.steps[0].exit
        self._scores = {"tokens": parts / self.bucket.token, "open": float(self._meter.open_count),
                        "entropy_threshold": -1.0 if plan is self._keep or rule is None else rule.threshold}
        return plan

    def observe(self, outcome: Outcome) -> None:
        """A token is kept when the weak answer stood; it is spent when the server answered, or nobody knows what was sent."""
        stood = outcome.status == "ok" and outcome.final_node == self.context.device and not outcome.used_fallback
        self._meter.close(outcome.request_id, spent=not stood)

    def scores(self) -> Mapping[str, float]:
        """Of the last decision: tokens, requests under way that may spend one, threshold (normalised entropy; -1: keeps)."""
        return self._scores

    def _offer(self, threshold: float, upper: float) -> Plan:
        rule = ExitRule("entropy", threshold, calibrated=True, upper=upper if math.isfinite(upper) else None)
        rest = Step(self.server, self.strong.name, self._begin, self.strong.num_stages, self._codec)
        return Plan(f"offer-{threshold:.3f}", (self._step(rule), rest), fallback=self._keep.steps)

    def _step(self, rule: ExitRule) -> Step:
        return Step(self.context.device, self.weak.name, 0, self._stop, exit=rule)


def weak_stop(weak: ModelInfo, exit: str | None, alone: bool) -> int:
    """Stages of the weak model up to the exit that gives its answer. Raises ValueError.

    `alone`: the strong answer comes from the same model, so that something must be left of it. An exit before the one asked for
    would answer first, so only the first is possible.
    """
    first = min(weak.exits, key=lambda name: weak.exits[name])
    if exit is not None and exit not in weak.exits:
        raise ValueError(f"exit: {exit!r} is not one of {', '.join(weak.exits)}")
    if exit not in (None, first):
        raise ValueError(f"exit: {exit!r} comes after {first!r}, which would answer before it; the first exit is the weak answer")
    if alone and first == weak.final_exit:
        raise ValueError(f"model {weak.name} has no early exit; name another model with strong:")
    return weak.exits[first] + 1


def table_of(entropy: float | Sequence[Entropy], bucket: Bucket) -> list[tuple[float, float] | None]:
    """Entropies (levels,) in nats above which, and up to which (infinity: any), an image is offloaded. Raises ValueError."""
    table: list[Entropy] = list(entropy) if isinstance(entropy, Sequence) else [entropy] * bucket.levels
    if len(table) != bucket.levels:
        raise ValueError(f"entropy: has {len(table)} values, and this bucket has {bucket.levels} levels from one token to full")
    return [None if h is None else _ends(h) for h in table]


def _ends(value: float | Sequence[float]) -> tuple[float, float]:
    ends = tuple(value) if isinstance(value, Sequence) else (value, math.inf)
    if len(ends) != 2 or not all(isinstance(h, int | float) for h in ends) or not 0 <= ends[0] <= ends[1] or ends[0] == math.inf:
        raise ValueError(f"entropy: {value!r} is no threshold of at least 0, nor [threshold, upper end], nor null")
    return ends
