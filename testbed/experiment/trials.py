"""From a scenario file to the list of its trials: sweep points x policies x repeats, each with its configuration hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.experiment.content import Content, names_of_policy
from testbed.experiment.oracle_plans import plans_of
from testbed.inference.catalogue import ModelInfo as CatalogueEntry
from testbed.inference.compute import ComputeProfile, load_profile
from testbed.measurement.format import swept
from testbed.measurement.limits import Limits
from testbed.policies import Context, NodeInfo, Policy, make_policy
from testbed.policies.static import Fixed
from testbed.schema.files import expand
from testbed.schema.scenario import PlanSpec, PolicySpec, Scenario
from testbed.serving.residency import check_budget
from testbed.workload.arrivals import generator

HASH_LENGTH = 12
# keys that do not change what one trial measures; everything else is in the hash. The catalogue's place is not:
# what a trial uses of it is among the content hashes
_NOT_HASHED = ("description", "repeats", "sweep", "policies", "catalogue", "oracle")


@dataclass(frozen=True)
class Trial:
    """One policy at one sweep point, one repeat: a network of its own and a folder of its own."""

    scenario: Scenario
    policy: PlanSpec | PolicySpec
    point: Mapping[str, Any]
    repeat: int
    config_hash: str
    content_sha256: Mapping[str, str]
    source: Path
    own_model: CatalogueEntry | None = None

    @property
    def folder(self) -> Path:
        """Folder below `runs/<scenario>/`."""
        return Path(self.config_hash) / str(self.repeat)

    @property
    def run_id(self) -> str:
        """`quickstart/1a2b3c4d5e6f/0`."""
        return f"{self.scenario.name}/{self.config_hash}/{self.repeat}"

    @property
    def label(self) -> str:
        """What progress lines show."""
        point = " ".join(f"{k.split('.')[-1]}={swept(v)}" for k, v in self.point.items())
        return " ".join(filter(None, (self.policy.name, point, f"#{self.repeat}" if self.scenario.repeats > 1 else "")))

    def config(self) -> dict[str, Any]:
        """The resolved configuration of this trial, JSON-ready: the scenario with just this policy."""
        config = self.scenario.model_dump(mode="json")
        config["validity"] = self.scenario.model_dump(mode="json", exclude_none=True)["validity"]
        config["policies"] = [self.policy.model_dump(mode="json")]
        config["sweep"] = {}
        return config


@dataclass(frozen=True)
class Experiment:
    """All trials of a scenario file, in the order in which they run (repeats interleaved, so that drift hits all alike)."""

    name: str
    source: Path
    trials: tuple[Trial, ...]


def plan_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None,
                    sweep: Mapping[str, Sequence[Any]] | None = None) -> Experiment:
    """Read, check and expand a scenario file; nothing is touched. Raises InputError."""
    path = Path(path)
    trials: dict[tuple[str, int], Trial] = {}
    own_models: dict[tuple[Any, ...], CatalogueEntry | None] = {}
    name = ""
    for point in expand(path, overrides, sweep):
        name = point.scenario.name
        model = (point.scenario.model, point.scenario.dataset, point.scenario.image_size)
        content = check_content(point.scenario, path, own_models.get(model))
        own_models[model] = content.own_model
        Limits.of(point.scenario.model_dump(mode="json", exclude_none=True)["validity"], file=path)
        for repeat in range(point.scenario.repeats):
            for policy in point.scenario.policies:
                files = content_of_policy(point.scenario, policy, content.sha256)
                hashed = config_hash(point.scenario, policy, files)
                trial = Trial(point.scenario, policy, point.changes, repeat, hashed, files, path, content.own_model)
                trials.setdefault((hashed, repeat), trial)
    ordered = sorted(trials.values(), key=lambda t: t.repeat)
    return Experiment(name, path, tuple(ordered))


def content_of_policy(scenario: Scenario, policy: PlanSpec | PolicySpec, sha256: Mapping[str, str]) -> dict[str, str]:
    """The content hashes without those that only other policies bring in: a trial does not depend on them."""
    others = set().union(*(names_of_policy(p) for p in scenario.policies)) - names_of_policy(policy)
    return {name: digest for name, digest in sha256.items() if name not in others - {f"model:{scenario.model}"}}


def config_hash(scenario: Scenario, policy: PlanSpec | PolicySpec, content_sha256: Mapping[str, str]) -> str:
    """Hash of all that a trial measures: configuration, and the content of every file that it names (not its path)."""
    config = scenario.model_dump(mode="json", exclude=set(_NOT_HASHED))
    config["policy"] = policy.model_dump(mode="json")
    config["content_sha256"] = sorted(set(content_sha256.values()))  # weights and profiles are named, not given by path
    text = json.dumps(_without_paths(config, content_sha256), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _without_paths(value: Any, content_sha256: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v, content_sha256) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v, content_sha256) for v in value]
    return f"sha256:{content_sha256[value]}" if isinstance(value, str) and value in content_sha256 else value


def check_content(scenario: Scenario, path: Path, own_model: CatalogueEntry | None = None) -> Content:
    """Open every file that the scenario names and compile every policy for every device. Raises InputError."""
    content = Content.of(scenario, path, own_model)
    _check_residency(scenario, content, path)
    for policy in scenario.policies:
        for device in devices_of(scenario):
            try:
                made = make_policy(policy, context_for(scenario, content, device, repeat=0))
                check_plan(made, content, policy.name, device)
            except InputError as error:
                if error.file is None:
                    raise InputError(error.problem, file=path, key=error.key, value=error.value,
                                     remedy=error.remedy) from None
                raise
    if scenario.oracle is not None:
        try:
            plans_of(context_for(scenario, content, devices_of(scenario)[0], repeat=0), scenario.oracle)
        except InputError as error:
            raise InputError(error.problem, file=path, key=error.key, value=error.value, remedy=error.remedy) from None
    return content


def _check_residency(scenario: Scenario, content: Content, path: Path) -> None:
    """Models that are to be resident exist, and the scenario's own model fits every budget. Raises InputError."""
    for i, tier in enumerate(scenario.topology.tiers):
        for name in tier.residency.resident if tier.residency is not None else ():
            if name not in content.models:
                raise InputError("there is no such model in the catalogue", file=path, value=name,
                                 key=f"topology.tiers[{i}].residency.resident", remedy=f"use some of {', '.join(content.models)}")
        if tier.residency is not None:
            names = {content.model, *tier.residency.resident}
            try:
                check_budget({n: content.models[n].weight_bytes for n in names}, tier.residency.budget, tier.residency.resident)
            except InputError as error:
                raise InputError(error.problem, file=path, key=f"topology.tiers[{i}].{error.key}", value=error.value,
                                 remedy=error.remedy) from None


def check_plan(policy: Policy, content: Content, name: str, device: str) -> None:
    """The codecs of a fixed plan must exist, and fit the tensors that travel in them. Raises InputError."""
    if not isinstance(policy, Fixed):
        return
    key, node = f"policies.{name}.codec", device
    for step in policy.plan.steps:
        if step.codec not in content.codecs:
            raise InputError("there is no such codec", key=key, value=step.codec,
                             remedy=f"use one of {content.codecs.choices}")
        if step.node != node:
            learned = content.codecs.info(step.codec)
            why = content.codecs[step.codec].misfit((1, *content.catalogue[step.model].shape_at(step.start)))
            if learned is not None and (learned.model, learned.cut) != (step.model, step.start):
                why = f"it was trained for cut {learned.cut} of {learned.model}"
            if why is not None:
                raise InputError(f"cannot carry the tensor at cut {step.start} of {step.model}: {why}", key=key, value=step.codec,
                                 remedy=f"`testbed models codecs --model {step.model}` shows which codecs fit where")
        node = step.node


def devices_of(scenario: Scenario) -> list[str]:
    """Nodes that issue requests."""
    return next(t.nodes for t in scenario.topology.tiers if t.name == scenario.device_tier)


def context_for(scenario: Scenario, content: Content, device: str, repeat: int) -> Context:
    """What a policy on this device may know for the whole trial."""
    topology = scenario.topology
    tiers = tuple(t.name for t in topology.tiers)
    own = topology.tier_of(device).name
    tiers = (own, *(t for t in tiers if t != own))
    index = devices_of(scenario).index(device)
    nodes = {tier: topology.serving_node(device, tier) for tier in tiers}
    return Context(
        device=device,
        nodes=nodes,
        tiers=tiers,
        models=content.models,
        model=content.model,
        deadline_s=scenario.load.deadline,
        seed=int(generator(scenario.seed, repeat, "policy", index).integers(2**31)),
        compute={node: node_info(scenario, content, node) for node in nodes.values()},
        min_accuracy=scenario.load.min_accuracy,
    )


def node_info(scenario: Scenario, content: Content, node: str) -> NodeInfo:
    """What a policy may know of a node: the service times of its compute profile, for the models that it has times for."""
    tier = scenario.topology.tier_of(node)
    profile = load_profile(tier.compute.profile or "real", content.profiles)
    stage_s: dict[str, tuple[float, ...]] = {}
    head_s: dict[str, dict[str, float]] = {}
    for name, info in content.catalogue.models.items():
        try:
            profile.check(info)
        except InputError:
            continue
        stage_s[name] = tuple(_time_s(profile, info, i, i + 1) for i in range(info.num_stages))
        head_s[name] = {e.name: _time_s(profile, info, 0, 1, (e.after,)) - _time_s(profile, info, 0, 1) for e in info.exits}
    kept, load_s = tier.residency, {}
    if kept is not None and kept.load_rate is not None:
        load_s = {n: kept.load_floor + 8 * m.weight_bytes / kept.load_rate for n, m in content.models.items()}
    return NodeInfo(node, tier.name, stage_s, head_s, load_s, kept.budget if kept is not None else None)


def _time_s(profile: ComputeProfile, info: CatalogueEntry, start: int, stop: int, exits: tuple[int, ...] = ()) -> float:
    time_s = profile.service_time_s(info, start, stop, exits)
    return info.reference_time_s(start, stop, exits) if time_s is None else time_s
