"""Policies: one file per published system, all deciding plans through the same seam."""

from testbed.policies.base import Context, ExitRule, ModelInfo, Observation, Outcome, Plan, Policy, Step
from testbed.policies.registry import make_policy

__all__ = ["Context", "ExitRule", "ModelInfo", "Observation", "Outcome", "Plan", "Policy", "Step", "make_policy"]
