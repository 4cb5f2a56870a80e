"""Token-bucket offloading in a running network: the weak exit on the device answers, unless the table says to spend a token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.policies.base import Policy
from testbed.policies.chain import checked_codecs, model_of, server_of
from testbed.policies.knowledge import Context, Observation, Outcome
from testbed.policies.plan import ExitRule, Plan, Step
from testbed.policies.token_bucket.bucket import Bucket


class TokenBucket(Policy):
    """Runs the model up to an early exit on the device; a token lets the rest run on a server.

    ### Decides
    The bucket's level when the request begins picks a threshold h from the table. The exit answers when the calibrated entropy
    of its probabilities is at most h; else the tensor goes on to the server, and a token is spent. Below one token the
    exit answers always. The table is a study's (`policy_r*_b*.yaml` of a token_bucket study): MDP thresholds, translated from
    the metric to the entropy where the metric first reaches them.

    ### Conforms
    Requests that are under way count as if each had spent a token, until their outcome is known. So in any time t the device
    offloads at most depth + rate * t / unit_s images, whatever overlaps. A request that failed counts as offloaded.

    ### Options
    | option | unit | default | meaning |
    |---|---|---|---|
    | rate, depth | tokens per unit of time, tokens | 0.1, 4 | the bucket; it starts full |
    | entropy | nats | 1.0 | threshold per level from one token to full, or one for all; null: never offload at this level |
    | unit_s | s | 1 | the unit of time; a study counts in arrivals, so the mean time between requests |
    | exit, model, node | | first exit, the scenario's, nearest | early exit that answers, model, tier or name of the server |
    | codec | | raw | how the tensor travels |

    ### Different from the papers
    Weak and strong answer are two exits of one model, and the tensor travels in place of the image; the papers have two models
    and send the image.

    ### Reference
    Chakrabarti, Guerin, Lu and Liu, SEC 2021, arXiv 2010.13737.

    ### Versions
    1: first.
    """

    id: ClassVar[str] = "token-bucket"
    version: ClassVar[int] = 1
    all_foreseen: ClassVar[bool] = True

    def __init__(self, context: Context, rate: float = 0.1, depth: float = 4.0,
                 entropy: float | Sequence[float | None] = 1.0, unit_s: float = 1.0, exit: str | None = None,
                 model: str | None = None, node: str | None = None, codec: str = "raw") -> None:
        """Raises ValueError for options that cannot be."""
        super().__init__(context)
        checked_codecs(codec)
        if not unit_s > 0:
            raise ValueError("unit_s must be above 0")
        self._bucket = Bucket.of(rate, depth)
        levels = self._bucket.levels
        table = list(entropy) if isinstance(entropy, Sequence) else [entropy] * levels
        if len(table) != levels:
            raise ValueError(f"entropy: has {len(table)} values, and this bucket has {levels} levels from one token to full")
        self._info = model_of(context, model)
        early = {name: stage for name, stage in self._info.exits.items() if name != self._info.final_exit}
        if not early:
            raise ValueError(f"model {self._info.name} has no early exit")
        name = min(early, key=early.__getitem__) if exit is None else exit
        if name not in early:
            raise ValueError(f"exit: {name!r} is not one of {', '.join(early)}")
        self._server, self._codec, self._stop = server_of(context, node), codec, early[name] + 1
        scale = math.log(self._info.output_bytes[-1] // 4)  # the rule's entropy is divided by log(classes)
        self._keep = Plan("keep", (self._step(ExitRule("always", 0.0)),))
        self._plans = [self._keep if h is None else self._offer(h / scale) for h in table]
        self._parts_per_ns = self._bucket.refill / (unit_s * 1e9)
        self._level, self._at_ns, self._begun = float(self._bucket.depth), 0, False
        self._open: set[str] = set()
        self._scores: dict[str, float] = {}

    def plans(self) -> tuple[Plan, ...]:
        """Every plan of the table, and the one that keeps the token."""
        return tuple(dict.fromkeys([*self._plans, self._keep]))

    def decide(self, observation: Observation) -> Plan:
        """The threshold of the level that is left when all open requests spend a token."""
        self._refill(observation.t_ns)
        free = self._level - self._bucket.token * len(self._open)
        row = math.floor(free + 1e-9) - self._bucket.token
        plan = self._plans[row] if row >= 0 else self._keep
        if plan is not self._keep:
            self._open.add(observation.request_id)
        rule = plan.steps[0].exit
        self._scores = {"tokens": self._level / self._bucket.token, "open": float(len(self._open)),
                        "entropy_threshold": -1.0 if plan is self._keep or rule is None else rule.threshold}
        return plan

    def observe(self, outcome: Outcome) -> None:
        """A token is spent when the tensor left the device, or when nobody knows whether it did."""
        if outcome.request_id not in self._open:
            return
        self._open.discard(outcome.request_id)
        self._refill(outcome.t_ns)
        left = any(sent.src_node == self.context.device for sent in outcome.transfers)
        if left or outcome.final_node != self.context.device:
            self._level -= self._bucket.token

    def scores(self) -> Mapping[str, float]:
        """Of the last decision: tokens, requests under way that may spend one, threshold (normalised entropy; -1: keeps)."""
        return self._scores

    def _refill(self, t_ns: int) -> None:
        if self._begun:
            gain = max(0, t_ns - self._at_ns) * self._parts_per_ns
            self._level = min(float(self._bucket.depth), self._level + gain)
        self._begun, self._at_ns = True, max(t_ns, self._at_ns)

    def _offer(self, threshold: float) -> Plan:
        rest = Step(self._server, self._info.name, self._stop, self._info.num_stages, self._codec)
        return Plan(f"offer-{threshold:.3f}", (self._step(ExitRule("entropy", threshold, calibrated=True)), rest))

    def _step(self, rule: ExitRule) -> Step:
        return Step(self.context.device, self._info.name, 0, self._stop, exit=rule)
