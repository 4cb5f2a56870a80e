"""A decision log, and its decisions made again by the policy from the log alone: no network, no models, no clocks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from testbed.errors import InputError
from testbed.policies.base import Policy
from testbed.policies.knowledge import Context, Observation, Outcome, Probe, from_json
from testbed.policies.plan import Plan
from testbed.policies.registry import make_policy, with_defaults
from testbed.policies.truth import Truth
from testbed.schema.scenario import PlanSpec, PolicySpec

T = TypeVar("T")
TOLERANCE = 1e-9  # relative: another machine's libraries may add in another order


@dataclass(frozen=True)
class Decision:
    """A decision of the log beside the one that was made again. `index` counts the decisions of the device from 0."""

    index: int
    request_id: str
    t_ns: int
    logged: Plan
    made: Plan
    logged_scores: Mapping[str, float]
    made_scores: Mapping[str, float]

    def same_plan(self, *, names: bool = True) -> bool:
        """Whether both plans do the same; with `names` they must have the same name too."""
        made = self.made if names else replace(self.made, name=self.logged.name)
        delays = (self.logged.backup_after_s, made.backup_after_s)
        if None not in delays and _close(*delays):
            made = replace(made, backup_after_s=self.logged.backup_after_s)
        return made == self.logged

    def same_scores(self) -> bool:
        """Whether the same was weighed."""
        return self.logged_scores.keys() == self.made_scores.keys() and all(
            _close(value, self.made_scores[name]) for name, value in self.logged_scores.items())


@dataclass(frozen=True)
class Replay:
    """All decisions of one device. `same_policy`: it was the logged policy with the logged options that made them again."""

    device: str
    policy: str
    same_policy: bool
    decisions: tuple[Decision, ...]

    @property
    def differing(self) -> list[Decision]:
        """Decisions that came out otherwise: another plan, and for the same policy other scores or another name too."""
        if self.same_policy:
            return [d for d in self.decisions if not (d.same_plan() and d.same_scores())]
        return [d for d in self.decisions if not d.same_plan(names=False)]


def replay_decisions(log: str | Path, policy: str | None = None, options: Mapping[str, Any] | None = None,
                     truth: Callable[[], Truth] | None = None) -> list[Replay]:
    """Make the decisions of a `decisions.jsonl` again, device by device.

    Parameters
    ----------
    policy: another policy (a built-in name or `file.py:Class`) that decides on the same observations; the outcomes that it
        learns from stay those of the logged plans.
    options: options to set or replace; with another policy these are all it gets.
    truth: what the links carried, asked for only when a policy is clairvoyant; without it such a policy knows nothing.

    Raises InputError for a log that is none, or for a policy or options that do not exist.
    """
    path = Path(log)
    return [_replay(path, device, lines, policy, options or {}, truth) for device, lines in _by_device(path).items()]


def logged_policies(log: str | Path) -> dict[str, Policy]:
    """Device -> its policy as it was before the first request. Raises InputError."""
    path, found = Path(log), {}
    for device, lines in _by_device(path).items():
        spec, context = _head(path, device, lines[0])
        found[device] = make_policy(_specification(spec, None, {}, path), context)
    return found


def _head(path: Path, device: str, head: Mapping[str, Any]) -> tuple[dict[str, Any], Context]:
    if head.get("kind") != "policy":
        raise InputError(f"does not begin with the policy of {device}", file=path,
                         remedy="give the decisions.jsonl of a run made by this version")
    return head["spec"], _value(Context, head, "context", path)


def _replay(path: Path, device: str, lines: list[dict[str, Any]], policy: str | None, options: Mapping[str, Any],
            truth: Callable[[], Truth] | None) -> Replay:
    logged, context = _head(path, device, lines[0])
    calls = lines[1:]
    spec = _specification(logged, policy, options, path)
    made_by = make_policy(spec, context)
    if made_by.clairvoyant and truth is not None:
        made_by.reveal(truth())
    decisions: list[Decision] = []
    for call in calls:
        kind = call.get("kind")
        if kind == "decide":
            observation = _value(Observation, call, "observation", path)
            plan = with_defaults(made_by.decide(observation), spec, context)
            decisions.append(Decision(len(decisions), observation.request_id, observation.t_ns, _value(Plan, call, "plan", path),
                                      plan, call.get("scores", {}), dict(made_by.scores())))
        elif kind == "outcome":
            made_by.observe(_value(Outcome, call, "outcome", path))
        elif kind == "late":
            made_by.observe_late(_value(Outcome, call, "outcome", path))
        elif kind == "probe":
            made_by.observe_probe(_value(Probe, call, "probe", path))
        else:
            raise InputError("is no kind of call", file=path, key="kind", value=kind,
                             remedy="give the decisions.jsonl of a run made by this version")
    return Replay(device, spec.name, policy is None and not options, tuple(decisions))


def _specification(logged: Mapping[str, Any], policy: str | None, options: Mapping[str, Any],
                   path: Path) -> PlanSpec | PolicySpec:
    if policy is not None:
        kept = {key: logged[key] for key in ("name", "fallback", "retries")}
        return _checked(PolicySpec, {**kept, "policy": policy, "options": dict(options)}, path)
    if "plan" in logged:
        if options:
            raise InputError("is an option, and the logged policy is a fixed plan, which has none", key="--set",
                             value=f"options.{next(iter(options))}", remedy="name a policy with --policy, or leave it out")
        return _checked(PlanSpec, logged, path)
    return _checked(PolicySpec, {**logged, "options": {**logged.get("options", {}), **options}}, path)


def _checked(kind: type[PlanSpec] | type[PolicySpec], data: Mapping[str, Any], path: Path) -> PlanSpec | PolicySpec:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"is no specification of a policy: {first['msg']}", file=path,
                         key=".".join(map(str, first["loc"])) or "spec", value=first["input"],
                         remedy="give a built-in policy's name, or file.py:Class") from None


def _by_device(path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for number, line in _lines(path):
        try:
            call = json.loads(line)
            found.setdefault(call["device"], []).append(call)
        except (ValueError, TypeError, KeyError):
            raise InputError("is not a line of a decision log", file=path, key=f"line {number}", value=line[:60],
                             remedy="give the decisions.jsonl of a trial") from None
    if not found:
        raise InputError("is empty", file=path, remedy="give the decisions.jsonl of a trial")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from ((i, line) for i, line in enumerate(stream, start=1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=path, remedy="give the folder of a finished trial") from None


def _value(kind: type[T], line: Mapping[str, Any], key: str, path: Path) -> T:
    try:
        return from_json(kind, line.get(key))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{error.errors()[0]['msg']} ({line.get('kind')} of {line.get('device')})", file=path,
                         key=f"{key}.{where}".rstrip("."), remedy="run the trial again with this version") from None


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-15) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)
