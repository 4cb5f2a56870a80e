"""From what a scenario names to a policy object: fixed plans, built-in policies, a user's `file.py:Class`."""

from __future__ import annotations

from dataclasses import replace

from testbed.errors import InputError
from testbed.policies.base import Policy
from testbed.policies.clairvoyant import Clairvoyant
from testbed.policies.dads import Dads
from testbed.policies.edgent import Edgent
from testbed.policies.knowledge import Context
from testbed.policies.layercake import LayerCake
from testbed.policies.mdinference import MDInference
from testbed.policies.modipick import ModiPick
from testbed.policies.neurosurgeon import Neurosurgeon
from testbed.policies.orchestration.policy import Orchestrated
from testbed.policies.plan import Plan, Step
from testbed.policies.random_plan import RandomPlan
from testbed.policies.spinn import Spinn
from testbed.policies.static import Fixed, compile_plan
from testbed.policies.token_bucket.policy import TokenBucket
from testbed.schema.scenario import PlanSpec, PolicySpec
from testbed.schema.user_class import load_user_class

BUILT_IN: dict[str, type[Policy]] = {  # published systems register here by name, one file each
    "dads": Dads,
    "clairvoyant": Clairvoyant,
    "edgent": Edgent,
    "layercake": LayerCake,
    "mdinference": MDInference,
    "modipick": ModiPick,
    "neurosurgeon": Neurosurgeon,
    "orchestrated": Orchestrated,
    "random": RandomPlan,
    "spinn": Spinn,
    "token-bucket": TokenBucket,
}


def make_policy(spec: PlanSpec | PolicySpec, context: Context) -> Policy:
    """The policy object that `spec` names, for one device. Raises InputError naming the key."""
    if isinstance(spec, PlanSpec):
        return Fixed(context, compile_plan(spec, context))
    key = f"policies.{spec.name}"
    cls = BUILT_IN.get(spec.policy)
    if cls is None:
        if ".py:" not in spec.policy:
            raise InputError("there is no such policy", key=f"{key}.policy", value=spec.policy,
                             remedy=f"use {_known()}a file such as my_policy.py:MyPolicy")
        cls = load_user_class(spec.policy, Policy, "policy", f"{key}.policy")
    try:
        policy = cls(context, **spec.options)
    except (TypeError, ValueError) as error:
        raise InputError(f"policy {cls.__name__} refuses its options: {error}", key=f"{key}.options", value=spec.options,
                         remedy="see the class's __init__ for what it takes") from error
    return policy


def with_defaults(plan: Plan, spec: PlanSpec | PolicySpec, context: Context) -> Plan:
    """A policy's plan with the specification's `retries` and `fallback: device` where it has none of its own.

    The fallback is the whole of the scenario's model on the device. A plan that never leaves the device, or that has a
    backup, gets none.
    """
    if isinstance(spec, PlanSpec) or all(step.node == context.device for step in plan.steps):
        return plan
    retries, fallback = plan.retries or spec.retries, plan.fallback
    if spec.fallback == "device" and not fallback and not plan.backup:
        fallback = (Step(context.device, context.model, 0, context.models[context.model].num_stages),)
    return replace(plan, retries=retries, fallback=fallback)


def _known() -> str:
    return f"one of {', '.join(sorted(BUILT_IN))}, or " if BUILT_IN else ""
