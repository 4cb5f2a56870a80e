"""Reading YAML files into models: line numbers, overrides, sweeps, and one-line errors with key, value and remedy."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from testbed.errors import InputError
from testbed.schema.scenario import Scenario
from testbed.schema.topology import Topology

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]
_FILE_KEYS = ("trace", "jitter_log", "regression", "saved", "probes", "weak_probes")


@dataclass(frozen=True)
class Document:
    """A YAML file as plain data, with the line of every key."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the changed keys, and the scenario that results."""

    changes: dict[str, Any]
    scenario: Scenario


def read_document(path: str | Path) -> Document:
    """Read a YAML mapping. Raises InputError for an absent file, a syntax error or a key given twice."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1) \
            if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise InputError("there is no such file", file=path, remedy=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=path, remedy="give a YAML text file") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {}
        if root is not None:
            _walk(root, (), lines, path)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"is not YAML: {problem}", file=path, key=f"line {mark.line + 1}" if mark else None,
                         remedy="mend the syntax; indentation is by spaces, and `key: value` needs the space") from None
    except ValueError as error:  # a scalar such as the date 2026-13-01
        raise InputError(f"is not YAML: {error}", file=path, remedy="put the value in quotes") from None
    if not isinstance(data, dict):
        raise InputError("is not a mapping of keys to values", file=path, value=data,
                         remedy="start from a copy of scenarios/quickstart.yaml")
    return Document(path, data, lines)


def _walk(node: yaml.Node, where: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    lines[where] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise InputError("is given twice", file=path, key=f"line {key.start_mark.line + 1}: {name}",
                                 remedy="remove one of the two")
            seen.add(name)
            _walk(value, (*where, name), lines, path)
            lines[(*where, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*where, i), lines, path)


def load_topology(path: str | Path) -> Topology:
    """Read and check a topology file; trace paths in it become absolute. Raises InputError."""
    document = read_document(path)
    return _validate(Topology, _absolute(document.data, document.path), document)


def load_scenario(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read and check a scenario file with its topology; `overrides` are dotted keys. Raises InputError."""
    return _scenario(_resolved(read_document(path)), overrides or {})


def load_as(path: str | Path, model: type[Model], overrides: Mapping[str, Any] | None = None) -> Model:
    """Read a YAML file as `model`; `overrides` are dotted keys, paths become absolute. Raises InputError."""
    document = read_document(path)
    data = copy.deepcopy(document.data)
    for key, value in (overrides or {}).items():
        _assign(data, key, value, document.path)
    data = _absolute(data, document.path)
    if isinstance(data.get("catalogue"), str):
        data["catalogue"] = str((document.path.parent / data["catalogue"]).resolve())
    _own_policies(data, document.path)
    return _validate(model, data, document)


def expand(path: str | Path, overrides: Mapping[str, Any] | None = None,
           sweep: Mapping[str, Sequence[Any]] | None = None) -> list[Point]:
    """All sweep points of a scenario file, in the order of the keys; every one is checked. Raises InputError.

    `sweep` adds axes, or replaces the file's axis of the same key; an override of a swept key takes it out of the sweep.
    A file's list of points is crossed with the axes of `sweep`.
    """
    document = _resolved(read_document(path))
    base = _scenario(document, overrides or {})
    fixed, extra = set(overrides or {}), dict(sweep or {})
    listed: list[dict[str, Any]] = [{}]
    axes: dict[str, Sequence[Any]] = extra
    if isinstance(base.sweep, list):
        listed = [{k: v for k, v in point.items() if k not in fixed and k not in extra} for point in base.sweep]
    else:
        axes = {k: v for k, v in {**base.sweep, **extra}.items() if k not in fixed}
    for key, values in axes.items():
        if not values:
            raise InputError("has no values", file=document.path, key=f"sweep.{key}", remedy="list at least one value")
    points: dict[str, Point] = {}
    for point, combination in itertools.product(listed, itertools.product(*axes.values())):
        changes = {**point, **dict(zip(axes, combination, strict=True))}
        if repr(changes) not in points:  # points of a list may be alike once a key is taken out
            points[repr(changes)] = Point(changes, _scenario(document, {**(overrides or {}), **changes}))
    return list(points.values())


def _resolved(document: Document) -> Document:
    """The scenario document with its topology file read into it and every path absolute."""
    data = _absolute(copy.deepcopy(document.data), document.path)
    topology = data.get("topology")
    if isinstance(topology, str):
        file = (document.path.parent / topology).resolve()
        if not file.is_file():
            raise InputError("there is no such topology file", file=document.path, key="topology", value=topology,
                             remedy="give a path relative to the scenario file, such as ../topologies/lte_three_tier.yaml")
        inner = read_document(file)
        inlined = _absolute(inner.data, file)
        _validate(Topology, inlined, inner)
        data["topology"] = inlined
    for key in ("catalogue",):
        if isinstance(data.get(key), str):
            data[key] = str((document.path.parent / data[key]).resolve())
    _own_policies(data, document.path)
    return Document(document.path, data, document.lines)


def _own_policies(data: dict[str, Any], origin: Path) -> None:
    """Make `file.py:Class` of every policy absolute, in place. Raises InputError when there is no such file."""
    for policy in data.get("policies") or []:
        if isinstance(policy, dict) and isinstance(policy.get("policy"), str) and ".py:" in policy["policy"]:
            name, _, cls = policy["policy"].rpartition(":")
            file = (origin.parent / name).resolve()
            if not file.is_file():
                raise InputError("there is no such policy file", file=origin, key="policies.policy", value=policy["policy"],
                                 remedy="give file.py:Class relative to the scenario file")
            policy["policy"] = f"{file}:{cls}"


def _absolute(data: Any, origin: Path) -> Any:
    """Copy of `data` with paths of traces, logs, data sets and profiles made absolute, relative to the file they stand in."""
    if isinstance(data, dict):
        return {k: _resolve_paths(v, origin) if _names_file(k, v) else _absolute(v, origin) for k, v in data.items()}
    return [_absolute(v, origin) for v in data] if isinstance(data, list) else data


def _names_file(key: str, value: Any) -> bool:
    """Whether the value of a key is a path (or paths), and not the name of something known or a mapping."""
    if key in ("compute", "profile"):
        return isinstance(value, str) and is_profile_path(value)
    return key in _FILE_KEYS or (key == "dataset" and _is_path(value))


def is_profile_path(name: str) -> bool:
    """A `compute:` profile with this ending is a file; anything else is the name of a shipped one."""
    return name.endswith((".yaml", ".yml"))


def is_own_model(name: str) -> bool:
    """A scenario's `model: file.py:function` is a user's own; anything else is the name of one of the catalogue."""
    return ".py:" in name


def _model_path(name: str, scenario: Path) -> str:
    place, _, function = name.rpartition(":")
    file = (scenario.parent / place).resolve()
    if not file.is_file():
        raise InputError("there is no such model file", file=scenario, key="model", value=name,
                         remedy="give file.py:function relative to the scenario file")
    return f"{file}:{function}"


def _is_path(value: Any) -> bool:
    """A `dataset:` with a slash or `.npz` is a path; anything else is the name of a known data set."""
    return isinstance(value, str) and ("/" in value or value.endswith(".npz"))


def _resolve_paths(value: Any, origin: Path) -> Any:
    if isinstance(value, list):
        return [_resolve_paths(v, origin) for v in value]
    return _resolve_path(value, origin) if isinstance(value, str) else value


def _resolve_path(name: str, origin: Path) -> str:
    from testbed.schema.data import expand_data_path

    expanded = expand_data_path(name, origin)
    return str((origin.parent / expanded).resolve())


def _scenario(document: Document, overrides: Mapping[str, Any]) -> Scenario:
    data = copy.deepcopy(document.data)
    for key, value in overrides.items():
        _assign(data, key, value, document.path)
    data = _absolute(data, document.path)
    if isinstance(data.get("model"), str) and is_own_model(data["model"]):
        data["model"] = _model_path(data["model"], document.path)
    return _validate(Scenario, data, document)


def _assign(data: Any, dotted: str, value: Any, file: Path) -> None:
    """Set `a.b[0].c` or `topology.links.device-edge.up.rate` (list items by index, name or `between`)."""
    parts = [p for p in dotted.replace("[", ".").replace("]", "").split(".") if p]
    here = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            index = _item(here, part)
            if index is None:
                names = ", ".join(filter(None, (_label(item) for item in here))) or f"0 to {len(here) - 1}"
                raise InputError(f"there is no {part!r} in {'.'.join(parts[:depth])}", file=file, key=dotted,
                                 remedy=f"use one of {names}")
            if isinstance(here[index], str) and not last:
                here[index] = {"name": here[index], "plan": here[index]}
            if last:
                here[index] = value
            else:
                here = here[index]
        elif isinstance(here, dict):
            if last:
                # choosing one of two exclusive keys removes the other: sweep a rate where the file has a trace
                for mine, other in (("rate", "trace"), ("trace", "rate")):
                    if part == mine:
                        here.pop(other, None)
                here[part] = value
            else:
                here = here.setdefault(part, {})
        else:
            raise InputError(f"{'.'.join(parts[:depth])} is a single value and has no keys", file=file, key=dotted,
                             value=here, remedy="name a key of a mapping")


def _label(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        if isinstance(item.get("between"), list):
            return "-".join(map(str, item["between"]))
        name = item.get("name", item.get("plan"))
        return None if name is None else str(name)
    return None


def _item(items: list[Any], part: str) -> int | None:
    labels = [_label(item) for item in items]
    if part in labels:
        return labels.index(part)
    return int(part) if part.isdigit() and int(part) < len(items) else None


def _validate(model: type[Model], data: Any, document: Document) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first_error(error, model, document) from None


def _first_error(error: ValidationError, model: type[BaseModel], document: Document) -> InputError:
    """The first problem as one line. Raises nothing; returns the typed error."""
    problem = error.errors(include_url=False)[0]
    where = tuple(p for p in problem["loc"] if not (isinstance(p, str) and _is_tag(p)))
    kind, text = problem["type"], problem["msg"]
    value = None if kind in ("missing", "value_error") and isinstance(problem.get("input"), dict) else problem.get("input")
    remedy: str | None = None
    if kind == "extra_forbidden":
        key = str(where[-1])
        known = _known_keys(model, where[:-1])
        near = difflib.get_close_matches(key, known, n=1)
        text = "unknown key"
        remedy = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(known)}" if known else "remove it"
        value = None
    elif kind == "missing":
        text, remedy = "is missing", f"add {where[-1]}:"
    elif kind == "value_error":
        text, _, remedy = str(problem["ctx"]["error"]).partition("|")
    elif kind == "literal_error":
        text, remedy = "is not allowed", f"use one of {problem['ctx']['expected']}"
    elif kind == "string_pattern_mismatch":
        text, remedy = "is not allowed", f"it must match {problem['ctx']['pattern']}"
    else:
        text = text[0].lower() + text[1:]
        remedy = "see `testbed schema` for what is allowed"
    return InputError(text, file=f"{document.path}{_line(document, where)}", key=_dotted(where) or None, value=value,
                      remedy=remedy or "see `testbed schema` for what is allowed")


def _is_tag(part: str) -> bool:
    return part.startswith(("function-", "tagged-union", "nullable", "union")) or part in ("PlanSpec", "PolicySpec")


def _line(document: Document, where: KeyPath) -> str:
    for end in range(len(where), 0, -1):
        if where[:end] in document.lines:
            return f":{document.lines[where[:end]]}"
    return ""


def _dotted(where: KeyPath) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where).lstrip(".")


def _known_keys(model: type[BaseModel], where: KeyPath) -> list[str]:
    """Keys of the model that stands at `where`, found through its fields."""
    current: list[type[BaseModel]] = [model]
    for part in where:
        if isinstance(part, int):
            continue
        current = [m for c in current if part in c.model_fields for m in _models_in(c.model_fields[part].annotation)]
    return sorted({name for c in current for name in c.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()) or ():
        yield from _models_in(inner)
