"""Policies: one file per published system, all deciding plans through the same seam."""

from testbed.policies.base import Policy
from testbed.policies.check import check_policy
from testbed.policies.knowledge import (
    Computation,
    Context,
    ExitPoint,
    ModelInfo,
    NodeInfo,
    NodeState,
    Observation,
    Outcome,
    Probe,
    ProbeSpec,
    Transfer,
)
from testbed.policies.plan import ExitRule, Plan, Step
from testbed.policies.registry import make_policy

__all__ = [
    "Computation", "Context", "ExitPoint", "ExitRule", "ModelInfo", "NodeInfo", "NodeState", "Observation", "Outcome",
    "Plan", "Policy", "Probe", "ProbeSpec", "Step", "Transfer", "check_policy", "make_policy",
]
