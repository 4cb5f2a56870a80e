"""The seam between what is known about a request and what is done with it: Observation -> Policy -> Plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from testbed.policies.knowledge import Context, Observation, Outcome, Probe, ProbeSpec
from testbed.policies.plan import Plan

if TYPE_CHECKING:
    from testbed.policies.truth import Truth


class Policy(ABC):
    """Decides a plan per request. One object lives for a trial on one device and is called from one thread.

    A user's own policy is a subclass in any file, named in the scenario as `policy: my_policy.py:MyPolicy`; its
    `options:` arrive as keyword arguments after the context.
    """

    id: ClassVar[str] = ""
    version: ClassVar[int] = 1  # raised when the same input would give other plans
    all_foreseen: ClassVar[bool] = False  # plans() names every computation: nodes with memoised outputs have these and no others
    max_decision_s: ClassVar[float] = 0.001  # stated median time of a decision; `check_policy` holds the policy to it
    clairvoyant: ClassVar[bool] = False  # whether `reveal` is called

    def __init__(self, context: Context) -> None:
        self.context = context
        self.probes: ProbeSpec | None = None  # set it in __init__ to have the remote nodes probed

    @abstractmethod
    def decide(self, observation: Observation) -> Plan:
        """The plan for this request. Must not block."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from a finished request; the default does nothing."""
        return None

    def observe_late(self, outcome: Outcome) -> None:
        """Learn from the slower side of a request with a backup, after `observe` had the answer; the default does nothing.

        `outcome` is that side's own: of the plan when `backup_won`, else of the backup.
        """
        return None

    def observe_probe(self, probe: Probe) -> None:
        """Learn from a finished probe; the default does nothing."""
        return None

    def reveal(self, truth: Truth) -> None:
        """What the links of this trial will carry, before the first request; only for policies that are `clairvoyant`."""
        return None

    def models(self) -> tuple[str, ...]:
        """Models that its plans may name, so that nodes have them; by default the scenario's."""
        return (self.context.model,)

    def plans(self) -> tuple[Plan, ...]:
        """Plans that it may return, as far as their codecs change what later steps compute: nodes that look outputs up then have
        those of frames and tensors that went through these codecs. By default none: outputs of unchanged frames are there."""
        return ()

    def scores(self) -> Mapping[str, float]:
        """What the last decision weighed, for the decision log; the default is empty."""
        return {}
