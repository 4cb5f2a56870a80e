"""Fixed plans: device-only, edge-only, cloud-only, split, early exit with escalation, explicit steps."""

from __future__ import annotations

from testbed.errors import InputError
from testbed.policies.base import Policy
from testbed.policies.knowledge import Context, ModelInfo, Observation
from testbed.policies.plan import ExitRule, Plan, Step
from testbed.schema.scenario import PlanSpec


class Fixed(Policy):
    """Always the same plan."""

    id = "fixed"
    all_foreseen = True

    def __init__(self, context: Context, plan: Plan) -> None:
        super().__init__(context)
        self.plan = plan

    def decide(self, observation: Observation) -> Plan:
        """The plan it was made with."""
        return self.plan

    def plans(self) -> tuple[Plan, ...]:
        """The plan it was made with."""
        return (self.plan,)


def compile_plan(spec: PlanSpec, context: Context) -> Plan:
    """The plan that `spec` means for this device. Raises InputError naming the key."""
    model = _model(spec.model or context.model, context)
    end = model.num_stages
    device = context.device
    only = {"device-only": context.tiers[0], "edge-only": "edge", "cloud-only": "cloud"}.get(spec.plan)
    if only is not None:
        node = device if spec.plan == "device-only" else context.nodes[only]
        steps = [Step(node, model.name, 0, end, spec.input_codec)]
    elif spec.plan == "split":
        assert spec.at is not None  # the schema asks for it
        cut = model.stage(spec.at, key=f"policies.{spec.name}.at")
        head = device if spec.head is None else context.nodes[spec.head]
        tail = context.nodes[spec.tail or _next_tier(context)]
        steps = [Step(head, model.name, 0, cut, spec.input_codec)] if cut else []
        if cut < end:
            steps.append(Step(tail, model.name, cut, end, spec.codec if cut else spec.input_codec))
    elif spec.plan == "early-exit":
        assert spec.threshold is not None
        stage = _exit_stage(spec, model)
        head = context.nodes[spec.head or _next_tier(context)]
        tail = context.nodes[spec.tail or context.tiers[-1]]
        rule = ExitRule(spec.rule, spec.threshold, spec.calibrated)
        steps = [Step(head, model.name, 0, stage + 1, spec.input_codec, rule),
                 Step(tail, model.name, stage + 1, end, spec.codec)]
    else:
        steps = [_explicit(spec, i, context) for i in range(len(spec.steps))]
    fallback = (Step(device, model.name, 0, end),) if spec.fallback == "device" else ()
    return Plan(spec.name, tuple(steps), fallback, spec.retries)


def _model(name: str, context: Context) -> ModelInfo:
    if name not in context.models:
        raise InputError("there is no such model in the catalogue", key="model", value=name,
                         remedy=f"use one of {', '.join(context.models)}")
    return context.models[name]


def _next_tier(context: Context) -> str:
    if len(context.tiers) < 2:
        raise InputError("the plan needs a second tier", key="topology.tiers", value=context.tiers[0],
                         remedy="add a tier and a link to it")
    return context.tiers[1]


def _exit_stage(spec: PlanSpec, model: ModelInfo) -> int:
    last = model.num_stages - 1
    early = {name: stage for name, stage in model.exits.items() if stage < last}
    key = f"policies.{spec.name}.exit"
    if not early:
        raise InputError(f"model {model.name} has no early exit", key=key, value=spec.exit,
                         remedy="choose a model that `testbed models list` shows with exits")
    if spec.exit is None:
        return min(early.values())
    if spec.exit not in early:
        raise InputError(f"model {model.name} has no such exit", key=key, value=spec.exit,
                         remedy=f"use one of {', '.join(early)}")
    return early[spec.exit]


def _explicit(spec: PlanSpec, index: int, context: Context) -> Step:
    item = spec.steps[index]
    model = _model(item.model or spec.model or context.model, context)
    key = f"policies.{spec.name}.steps[{index}].stages"
    first, _, last = (item.stages or ":").partition(":")
    start = model.stage(int(first) if first else 0, key=key)
    stop = model.stage(int(last) if last else model.num_stages, key=key)
    if start >= stop:
        raise InputError("has no stages", key=key, value=item.stages, remedy="write start:stop with start < stop")
    node = context.device if item.tier == context.tiers[0] else context.nodes[item.tier]
    rule = ExitRule(item.exit.kind, item.exit.threshold, item.exit.calibrated) if item.exit else None
    return Step(node, model.name, start, stop, item.codec, rule)
