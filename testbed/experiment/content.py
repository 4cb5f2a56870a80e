"""The files that a scenario names: catalogue, data set, compute profiles, traces, a user's policies; opened and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.inference.catalogue import Catalogue, load_catalogue, write_catalogue
from testbed.inference.catalogue import ModelInfo as CatalogueEntry
from testbed.inference.codecs import Registry, standard_names
from testbed.inference.codecs.learned import PREFIX
from testbed.inference.compute import load_profile
from testbed.inference.data import DATASETS, dataset_sha256, is_path, load_dataset
from testbed.policies import ExitPoint, ModelInfo
from testbed.schema.files import is_own_model, is_profile_path
from testbed.schema.scenario import PlanSpec, PolicySpec, Scenario
from testbed.schema.topology import Direction
from testbed.traces import Trace, concatenate, load_trace


@dataclass(frozen=True)
class Content:
    """What lies outside the scenario file. `sha256` maps the names that the configuration uses to content hashes.

    `model` is the name of the scenario's model in `catalogue`, which has an entry for a user's own model too.
    """

    catalogue: Catalogue
    model: str
    profiles: Path
    models: Mapping[str, ModelInfo]
    codecs: Registry
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, scenario: Scenario, source: Path, own_model: CatalogueEntry | None = None) -> Content:
        """Open all of it. Raises InputError naming file, key and remedy.

        own_model: the entry of the user's model that the scenario names, when it is known; built and measured otherwise.
        """
        path = Path(scenario.catalogue) if scenario.catalogue else find_upwards(source, "nodes/models/catalogue.yaml")
        if path is None:
            raise InputError("finds no nodes/models/catalogue.yaml beside it or above it", file=source, key="catalogue",
                             remedy="name one with catalogue:")
        catalogue = load_catalogue(path)
        name = scenario.model
        if is_own_model(name):
            entry = own_model or _own_model(scenario, source)
            name, catalogue = entry.name, replace(catalogue, models={**catalogue.models, entry.name: entry})
        elif name not in catalogue.models:
            raise InputError("there is no such model in the catalogue", file=source, key="model", value=name,
                             remedy=f"use one of {', '.join(catalogue.models)}, or file.py:function")
        used = {f"model:{name}"}.union(*map(names_of_policy, scenario.policies))  # names of no model among them do no harm
        hashes = {f"model:{name}": info.sha256 for name, info in catalogue.models.items() if f"model:{name}" in used}
        if is_own_model(scenario.model):
            hashes = {scenario.model: catalogue[name].sha256, **hashes}
            hashes.pop(f"model:{name}")
        hashes |= _check_dataset(scenario, catalogue[name], source)
        profiles = path.parent.parent / "profiles"
        for i, tier in enumerate(scenario.topology.tiers):
            if tier.compute.profile is not None:
                hashes |= _check_profile(tier.compute.profile, profiles, catalogue[name], source,
                                         f"topology.tiers[{i}].compute")
        for i, link in enumerate(scenario.topology.links):
            for which in ("up", "down"):
                hashes |= _check_direction(link.direction(which), source, f"topology.links[{i}].{which}")
        for policy in scenario.policies:
            if isinstance(policy, PolicySpec) and ".py:" in policy.policy:
                hashes[policy.policy] = _sha256(Path(policy.policy.rpartition(":")[0]))
            hashes |= {file: _sha256(Path(file)) for file in regressions_of(policy)}
        codecs = Registry(path)
        for policy in scenario.policies:
            hashes |= {f"codec:{name}": codecs.learned(name).sha256() for name in _learned_codecs(policy)}
        models = {name: _for_policies(info, path, codecs) for name, info in catalogue.models.items()}
        return cls(catalogue, name, profiles, models, codecs, hashes)


    @property
    def own_model(self) -> CatalogueEntry | None:
        """The entry of the user's model, where the scenario names one."""
        entry = self.catalogue[self.model]
        return entry if entry.weights is None else None

    def catalogue_file(self, folder: Path) -> Path:
        """The catalogue as a file for nodes: its own, or one written into `folder` that has the user's model too."""
        if self.own_model is None:
            return self.catalogue.path
        write_catalogue(self.catalogue, folder / "catalogue.yaml")
        return folder / "catalogue.yaml"


def _for_policies(info: CatalogueEntry, catalogue: Path, codecs: Registry) -> ModelInfo:
    """What policies may know of a model."""
    weights = catalogue.parent / info.weights if info.weights else None
    return ModelInfo(
        name=info.name, stage_names=tuple(s.name for s in info.stages), exits={e.name: e.after for e in info.exits},
        input_bytes=info.bytes_at(0), output_bytes=tuple(s.size_bytes for s in info.stages),
        macs=tuple(s.macs for s in info.stages), exit_accuracy={e.name: e.accuracy for e in info.exits},
        edges=info.edges, vertex_bytes=info.vertex_bytes, exit_curve=_exit_points(info), wire_bytes=_wire_bytes(info, codecs),
        weight_bytes=weights.stat().st_size if weights and weights.is_file() else 4 * info.parameters)


def _exit_points(info: CatalogueEntry) -> tuple[ExitPoint, ...]:
    curve = info.exit_curve
    if curve is None:
        return ()
    return tuple(ExitPoint(
        threshold, {name: column[i] for name, column in curve.share.items()},
        {name: value for name, column in curve.exit_accuracy.items() if (value := column[i]) is not None}, curve.accuracy[i])
        for i, threshold in enumerate(curve.threshold))


def _wire_bytes(info: CatalogueEntry, codecs: Registry) -> dict[str, tuple[int, ...]]:
    """Payload per cut by codec; at a cut that a codec cannot carry, the float32 bytes, so that it never looks cheap there."""
    float32 = tuple(info.bytes_at(cut) for cut in range(info.num_stages + 1))
    found = {name: tuple(full if size is None else size for size, full in zip(sizes, float32, strict=True))
             for name, sizes in info.wire_bytes.items()}
    for name in codecs.learned_for([info.name]):
        learned = codecs.learned(name).info
        found[name] = tuple(learned.size_bytes if cut == learned.cut else full for cut, full in enumerate(float32))
    return found


def _own_model(scenario: Scenario, source: Path) -> CatalogueEntry:
    """Build, check and measure the user's model for the scenario's data set. Raises InputError."""
    from testbed.experiment.machine import host
    from testbed.inference.own_model import describe_own

    _check_dataset_name(scenario, source)
    data = load_dataset(scenario.dataset, image_size=scenario.image_size)
    return describe_own(scenario.model, data, scenario.dataset, str(host()["cpu_model"]))


def names_of_policy(policy: PlanSpec | PolicySpec) -> set[str]:
    """Names in `Content.sha256` that one policy brings in: its own file, models that its plan names, learned codecs."""
    codecs = {f"codec:{name}" for name in _learned_codecs(policy)}
    if isinstance(policy, PolicySpec):  # any string in its options may name a model
        named = {f"model:{text}" for text in _strings(policy.options)}
        return codecs | named | regressions_of(policy) | ({policy.policy} if ".py:" in policy.policy else set())
    return codecs | {f"model:{name}" for name in (policy.model, *(step.model for step in policy.steps)) if name is not None}


def codecs_of_policy(policy: PlanSpec | PolicySpec, codecs: Registry, models: Iterable[str]) -> list[str]:
    """Codecs that nodes should have used once before the load: the plan's, or all when the policy decides as it runs."""
    if isinstance(policy, PolicySpec):
        return [*standard_names(), *codecs.learned_for(models)]
    return sorted({policy.codec, policy.input_codec, *(step.codec for step in policy.steps)})


def codecs_named(value: Any, key: str = "") -> set[str]:
    """Codecs in a policy's specification (as plain data): texts under keys that speak of codecs."""
    if isinstance(value, Mapping):
        return set().union(*(codecs_named(inner, str(name)) for name, inner in value.items()))
    if isinstance(value, list):
        return set().union(*(codecs_named(inner, key) for inner in value))
    return {value} if isinstance(value, str) and "codec" in key else set()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def regressions_of(policy: PlanSpec | PolicySpec) -> set[str]:
    """Files of layer regressions and of trained policies in a policy's options."""
    options = policy.options if isinstance(policy, PolicySpec) else {}
    return {named for key in ("regression", "saved") if isinstance(named := options.get(key), str)}


def _learned_codecs(policy: PlanSpec | PolicySpec) -> set[str]:
    """Learned codecs in a policy's keys and options, without what is compressed on top."""
    return {text.partition("+")[0] for text in _strings(policy.model_dump()) if text.startswith(PREFIX)}


def _check_profile(name: str, profiles: Path, model: CatalogueEntry, source: Path, key: str) -> dict[str, str]:
    """Hash of a compute profile, a shipped one or a file, that has a time for every stage. Raises InputError."""
    file = Path(name) if is_profile_path(name) else profiles / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in profiles.glob("*.yaml")))
        raise InputError("there is no such compute profile", file=source, key=key, value=name,
                         remedy=f"use real, one of {known}, or the path of a file.yaml")
    load_profile(name, profiles).check(model)
    return {name if is_profile_path(name) else f"profile:{name}": _sha256(file)}


def _check_dataset(scenario: Scenario, model: CatalogueEntry, source: Path) -> dict[str, str]:
    """Digest of the data set's content; a user's own is opened and must fit the model. Raises InputError."""
    name = scenario.dataset
    if is_path(name):
        data = load_dataset(name, image_size=scenario.image_size)
        if data.shape != model.input_shape:
            have, want = ("x".join(map(str, shape)) for shape in (data.shape, model.input_shape))
            raise InputError(f"has samples of {have}, but model {model.name} takes {want} (channels x height x width)",
                             file=name, key="dataset", remedy=f"convert them, or for a folder of images of the right "
                             f"colours write image_size: {list(model.input_shape[1:])}")
        if data.classes > model.classes or (data.class_names and data.classes != model.classes):
            raise InputError(f"has {data.classes} classes, but model {model.name} has {model.classes}", file=name, key="dataset",
                             remedy="use a model with these classes, or keep only the samples that it knows")
        return {name: dataset_sha256(name)}
    _check_dataset_name(scenario, source)
    if model.dataset != name:
        raise InputError(f"model {model.name} was trained on {model.dataset}", file=source, key="dataset", value=name,
                         remedy=f"write dataset: {model.dataset}")
    if scenario.image_size is not None:
        raise InputError("belongs to a folder of images", file=source, key="image_size", value=list(scenario.image_size),
                         remedy=f"remove it: the frames of {name} have one size")
    return {f"dataset:{name}": dataset_sha256(name)}


def _check_dataset_name(scenario: Scenario, source: Path) -> None:
    if not is_path(scenario.dataset) and scenario.dataset not in DATASETS:
        raise InputError("there is no such data set", file=source, key="dataset", value=scenario.dataset,
                         remedy=f"use one of {', '.join(DATASETS)}, or the path of a file.npz or of a folder of images (./NAME)")


def direction_trace(direction: Direction) -> Trace | None:
    """The trace of one direction, files one after the other, with scale and clip applied; None without a trace.

    Raises InputError.
    """
    if direction.trace is None:
        return None
    parts = [_trace(file, direction.trace_column, direction.trace_clip, direction.trace_scale, _changed_ns(file))
             for file in direction.trace]
    return parts[0] if len(parts) == 1 else replace(concatenate(parts), name="+".join(p.name for p in parts))


def _changed_ns(file: str) -> int:
    return Path(file).stat().st_mtime_ns if Path(file).is_file() else 0


@lru_cache(maxsize=64)
def _trace(path: str, column: str | None, clip: int | None, scale: float, mtime_ns: int) -> Trace:
    trace = replace(load_trace(path, column=column, clip=clip), name=Path(path).name)
    return trace if scale == 1.0 else trace.scaled(scale)


def _check_direction(direction: Direction, source: Path, key: str) -> dict[str, str]:
    hashes = {}
    named = [("trace", file) for file in direction.trace or ()]
    for name, file in named + ([("jitter_log", direction.jitter_log)] if direction.jitter_log else []):
        if not Path(file).is_file():
            raise InputError("there is no such file", file=source, key=f"{key}.{name}", value=file,
                             remedy="give a path relative to the file that names it; `testbed traces list` shows those here")
        hashes[file] = _sha256(Path(file))
    trace = direction_trace(direction)
    if trace is not None and trace.total_bits == 0:
        raise InputError("carries nothing at all", file=source, key=f"{key}.trace", value="+".join(direction.trace or ()),
                         remedy="use a trace with at least one non-zero second")
    return hashes


def find_upwards(start: Path, relative: str) -> Path | None:
    """`relative` in the folder of `start` or the nearest folder above it that has it."""
    for folder in start.resolve().parents:
        if (folder / relative).is_file():
            return folder / relative
    return None


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path and its permissions") from None
