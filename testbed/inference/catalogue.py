"""The model catalogue: a YAML file that names models, their stages, exits and weights; loading verifies all of it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from testbed.errors import InputError
from testbed.schema.files import read_document
from testbed.schema.topology import Strict

if TYPE_CHECKING:
    from testbed.inference.staged import StagedModel


class StageInfo(Strict):
    """One stage: the shape of its output for one sample, that tensor's float32 bytes, and its cost."""

    name: str
    shape: tuple[int, ...]
    size_bytes: int = Field(ge=1)
    macs: int = Field(ge=0)
    reference_time_s: float = Field(ge=0)


class ExitInfo(Strict):
    """An exit after stage `after`: accuracy on the test split when every sample leaves there, and its head's cost.

    `accuracy_2000` is that of the first 2,000 test samples, which is quickly checked.
    `ece` is the expected calibration error on the test split as it is, `ece_calibrated` after division of the logits by
    `temperature`, which was fitted on the calibration split.
    """

    name: str
    after: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    accuracy_2000: float | None = Field(None, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    ece: float | None = Field(None, ge=0, le=1)
    ece_calibrated: float | None = Field(None, ge=0, le=1)
    parameters: int = Field(ge=0)
    macs: int = Field(ge=0)
    reference_time_s: float = Field(ge=0)


class ExitCurve(Strict):
    """How samples of the calibration split leave, by threshold on the largest softmax probability; one value per threshold.

    `share` of the samples by exit, `exit_accuracy` of those that leave there (None where none do), `accuracy` over all.
    """

    samples: int = Field(ge=1)
    threshold: tuple[float, ...] = Field(min_length=1)
    accuracy: tuple[float, ...]
    share: dict[str, tuple[float, ...]]
    exit_accuracy: dict[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _consistent(self) -> ExitCurve:
        columns = [self.accuracy, *self.share.values(), *self.exit_accuracy.values()]
        if any(len(column) != len(self.threshold) for column in columns):
            raise ValueError("has columns of different lengths")
        if list(self.threshold) != sorted(self.threshold):
            raise ValueError("threshold: does not rise")
        if any(abs(sum(column[i] for column in self.share.values()) - 1) > 1e-3 for i in range(len(self.threshold))):
            raise ValueError("share: does not add up to 1")
        return self


class ModelInfo(Strict):
    """A model of the catalogue. Everything here is known without loading torch or the weights."""

    name: str
    builder: str = Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")
    dataset: str
    input_shape: tuple[int, ...] = Field(min_length=1)
    classes: int = Field(ge=2)
    weights: str | None  # None: a user's own builder brings them along
    storage: Literal["fp32", "fp16", "int8", "torch-int8"] = "fp32"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    seed: int
    recipe: dict[str, Any]
    parameters: int = Field(ge=0)
    reference: dict[str, Any]
    stages: tuple[StageInfo, ...] = Field(min_length=1)
    exits: tuple[ExitInfo, ...] = Field(min_length=1)
    exit_curve: ExitCurve | None = None  # of a model with early exits, where it was measured
    wire_bytes: dict[str, tuple[int | None, ...]] = Field(default_factory=dict)  # codec -> mean payload per cut; None: unfit

    edges: tuple[tuple[int, int], ...] = ()  # of a graph: which stage reads what another made (-1: the input); else a chain
    vertex_bytes: tuple[int, ...] = ()  # of a graph: float32 bytes of each stage's own output

    @model_validator(mode="after")
    def _consistent(self) -> ModelInfo:
        if bool(self.edges) != bool(self.vertex_bytes) or (self.edges and len(self.vertex_bytes) != len(self.stages)):
            raise ValueError("edges: and vertex_bytes: go together, one size per stage")
        if any(not -1 <= a < b < len(self.stages) for a, b in self.edges):
            raise ValueError("edges: does not lead from an earlier stage (or -1, the input) to a later one")
        for codec, sizes in self.wire_bytes.items():
            if len(sizes) != len(self.stages) + 1:
                raise ValueError(f"wire_bytes.{codec}: has {len(sizes)} cuts instead of {len(self.stages) + 1}")
        if self.exit_curve is not None and any(set(column) != {e.name for e in self.exits}
                                               for column in (self.exit_curve.share, self.exit_curve.exit_accuracy)):
            raise ValueError("exit_curve: its exits are not those of the model")
        if [e.after for e in self.exits] != sorted({e.after for e in self.exits}):
            raise ValueError("exits: are not in the order of their stages")
        if self.exits[-1].after != len(self.stages) - 1:
            raise ValueError("exits: the last exit is not after the last stage")
        return self

    @property
    def num_stages(self) -> int:
        """Number of stages; a cut is a number from 0 (send the input) to this (send the logits)."""
        return len(self.stages)

    @property
    def exit_after(self) -> Mapping[int, ExitInfo]:
        """Stage index -> exit after that stage."""
        return {e.after: e for e in self.exits}

    def shape_at(self, cut: int) -> tuple[int, ...]:
        """Shape of one sample's tensor at a cut: the input of stage `cut`."""
        return self.input_shape if cut == 0 else self.stages[cut - 1].shape

    def bytes_at(self, cut: int) -> int:
        """Bytes of one sample's float32 tensor at a cut."""
        size = 4
        for n in self.shape_at(cut):
            size *= n
        return size

    def reference_time_s(self, start: int, stop: int, exits: tuple[int, ...] = ()) -> float:
        """Time of stages start..stop-1 and of the exit heads after the stages `exits`, on the reference machine."""
        return (sum(s.reference_time_s for s in self.stages[start:stop])
                + sum(self.exit_after[i].reference_time_s for i in exits))

    def cut(self, at: int | str) -> int:
        """A cut as a number, or as the name of the first stage behind it. Raises InputError."""
        names = [s.name for s in self.stages]
        if isinstance(at, str) and at in names:
            return names.index(at)
        number = int(at) if isinstance(at, int) or at.isdigit() else -1
        if not 0 <= number <= self.num_stages:
            raise InputError(f"model {self.name} has no such cut", key="at", value=at,
                             remedy=f"use 0 to {self.num_stages}, or the stage before which to cut: {', '.join(names)}")
        return number


@dataclass(frozen=True)
class Catalogue:
    """The models of one catalogue file."""

    path: Path
    models: Mapping[str, ModelInfo]

    def __getitem__(self, name: str) -> ModelInfo:
        """The model of this name. Raises InputError naming those that exist."""
        if name not in self.models:
            raise InputError("there is no such model in the catalogue", file=self.path, key="model", value=name,
                             remedy=f"use one of {', '.join(self.models)}; `testbed models list` shows them")
        return self.models[name]


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, in evaluation mode, and its entry in the catalogue."""

    model: StagedModel
    info: ModelInfo


def load_catalogue(path: str | Path) -> Catalogue:
    """Read and check a catalogue. Raises InputError naming file, key and remedy."""
    path = Path(path)
    document = read_document(path)
    entries = document.data.get("models")
    if document.data.get("schema_version") != 1:
        raise InputError("is not a catalogue of version 1", file=path, key="schema_version",
                         value=document.data.get("schema_version"), remedy="write schema_version: 1")
    if not isinstance(entries, dict) or not entries:
        raise InputError("lists no models", file=path, key="models", remedy="run `testbed models train NAME`")
    models = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise InputError("is not a mapping", file=path, key=f"models.{name}", value=entry,
                             remedy="run `testbed models train` to write the entry")
        try:
            models[str(name)] = ModelInfo.model_validate({"name": str(name), **entry})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(str(p) for p in ("models", name, *problem["loc"]))
            raise InputError(problem["msg"], file=path, key=key, value=problem.get("input"),
                             remedy=f"run `testbed models train {name}` to write the entry anew") from None
    return Catalogue(path, models)


def load_model(catalogue: Catalogue, name: str) -> LoadedModel:
    """Build a model and load its weights after checking their sha256. Raises InputError; never unpickles."""
    info = catalogue[name]
    if info.weights is None:
        from testbed.inference.own_model import load_own

        return LoadedModel(load_own(info, catalogue.path.parent), info)
    file = catalogue.path.parent / info.weights
    data = verified_bytes(file, info.sha256, catalogue.path, f"models.{name}")
    from safetensors import SafetensorError

    from testbed.inference.weights import unpack

    model = builder(info.builder, catalogue.path)()
    try:
        state = unpack(data)
        if info.storage == "torch-int8":
            from testbed.inference.quantise import import_state

            import_state(model, state)
        else:  # a file may hold the exits of another entry too
            wanted = model.state_dict().keys()
            model.load_state_dict({k: v for k, v in state.items() if k in wanted or not k.startswith("heads.")})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise InputError(f"weights do not fit the builder: {str(error).splitlines()[0]}", file=file,
                         key=f"models.{name}.weights", remedy=f"run `testbed models train {name}`") from None
    if model.num_stages != info.num_stages or list(model.exits.items()) != [(e.after, e.name) for e in info.exits]:
        raise InputError("the builder's stages or exits are not those of the catalogue", file=catalogue.path,
                         key=f"models.{name}", value=f"{model.stage_names}, {model.exits}",
                         remedy=f"run `testbed models train {name}`")
    return LoadedModel(model.eval().requires_grad_(False), info)


def verified_bytes(file: Path, sha256: str, catalogue: Path, key: str) -> bytes:
    """Contents of a file whose hash the catalogue names. Raises InputError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"weights cannot be read ({error.strerror})", file=catalogue, key=f"{key}.weights",
                         value=str(file), remedy="train the model again, or get the file back") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError("weights are not those that the catalogue names", file=file, key=f"{key}.sha256",
                         value=found, remedy=f"expected {sha256[:12]}...; get the file back or train the model again")
    return data


def builder(reference: str, catalogue: Path) -> Callable[[], StagedModel]:
    """The function `package.module:name` or `file.py:name` (relative to the catalogue). Raises InputError."""
    place, _, function = reference.rpartition(":")
    try:
        if place.endswith(".py"):
            file = (catalogue.parent / place).resolve()
            module = _module_of(file)
        else:
            module = importlib.import_module(place)
        found: Callable[[], StagedModel] = getattr(module, function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"builder cannot be loaded: {error}", file=catalogue, key="builder", value=reference,
                         remedy="write package.module:function or file.py:function") from None
    return found


def _module_of(file: Path) -> ModuleType:
    name = f"testbed_builder_{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        text = (str(error).splitlines() or [""])[0]
        raise InputError(f"cannot be loaded: {type(error).__name__}: {text}", file=file, key="builder",
                         remedy="run the file with python to see the whole error") from error
    return module


def write_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Write all entries into another file, in another folder: weights and builder files are named by their full paths."""
    import yaml

    def absolute(relative: str) -> str:
        return str((catalogue.path.parent / relative).resolve())

    models = {}
    for name, info in catalogue.models.items():
        place, _, function = info.builder.rpartition(":")
        models[name] = {**info.model_dump(mode="json", exclude={"name"}),
                        "builder": f"{absolute(place)}:{function}" if place.endswith(".py") else info.builder,
                        "weights": None if info.weights is None else absolute(info.weights)}
    others = dict(read_document(catalogue.path).data)
    for entry in (others.get("bottlenecks") or {}).values():
        entry["weights"] = absolute(entry["weights"])
    path.write_text(yaml.safe_dump({**others, "models": models}, sort_keys=False), encoding="utf-8")


def write_entry(path: Path, name: str, entry: Mapping[str, Any], header: str) -> None:
    """Write one model's entry into a catalogue file, keeping the others. The file is made when it is absent."""
    import yaml

    data: dict[str, Any] = {"schema_version": 1, "models": {}}
    if path.exists():
        data = dict(read_document(path).data)
    data["models"] = {**(data.get("models") or {}), name: json.loads(json.dumps(dict(entry)))}
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    body = yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None)
    temporary = path.with_suffix(".new")
    temporary.write_text(comment + body, encoding="utf-8")
    temporary.replace(path)
