"""Trained policies as files: a joint action per condition and constraint, settings, evaluation curve, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.measurement.atomic import write_bytes_atomic
from testbed.policies.orchestration.conditions import Condition
from testbed.policies.orchestration.qlearning import Learned

FORMAT = "testbed-orchestration-1"


@dataclass(frozen=True)
class Entry:
    """One training. `actions`: condition -> per device `tier:model` (None: infeasible); `curve`: rows of epoch, mean_s, gap;
    `cost`: fields of `Exploration`; `algorithm`: qlearning, dqn or oracle."""

    constraint: str
    algorithm: str
    actions: Mapping[str, tuple[str, ...] | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1
    curve: tuple[tuple[float, ...], ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A file of trainings for N devices. `ladder`: names of the models; `source`: what the response times came from."""

    name: str
    devices: int
    ladder: tuple[str, ...]
    source: str
    entries: tuple[Entry, ...]

    def entry(self, constraint: str) -> Entry:
        """The training for a constraint. Raises InputError naming those that exist."""
        for entry in self.entries:
            if entry.constraint == constraint:
                return entry
        raise InputError(f"policy {self.name} was not trained for this constraint", key="constraint", value=constraint,
                         remedy=f"use one of {', '.join(e.constraint for e in self.entries)}")

    def action(self, constraint: str, condition: Condition) -> tuple[str, ...]:
        """`tier:model` of every device. Raises InputError for a condition never seen, or where the constraint is infeasible."""
        actions = self.entry(constraint).actions
        if condition.key not in actions:
            raise InputError(f"policy {self.name} was not trained for this condition", key="weak", value=condition.key,
                             remedy=f"use one of {', '.join(actions)} (busy, memory, link of each device, edge, cloud)")
        found = actions[condition.key]
        if found is None:
            raise InputError("the constraint is infeasible: no joint action meets it", key="constraint", value=constraint,
                             remedy="ask for less accuracy")
        return found

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    def write(self, path: Path) -> None:
        """Write it atomically."""
        write_bytes_atomic(path, self.to_bytes())


def entry_of(constraint: str, algorithm: str, learned: Learned, names: tuple[str, ...], settings: Any, seed: int) -> Entry:
    """A training's result as an entry; `names`: of the actions, `Actions.names`."""
    actions = {key: None if action is None else tuple(names[k] for k in action) for key, action in learned.actions.items()}
    curve = tuple(tuple(float(x) for x in row) for row in learned.curve.to_numpy("float64"))
    return Entry(constraint, algorithm, actions, asdict(settings), seed, curve, asdict(learned.cost))


def read(path: Path) -> Saved:
    """A file of `Saved.write`. Raises InputError when it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        entries = tuple(
            Entry(e["constraint"], e["algorithm"], {k: None if a is None else tuple(a) for k, a in e["actions"].items()},
                  e["settings"], e["seed"], tuple(tuple(row) for row in e["curve"]), e["cost"]) for e in data["entries"])
        return Saved(data["name"], int(data["devices"]), tuple(data["ladder"]), data["source"], entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is no orchestration policy ({type(error).__name__}: {error})", file=path, key="saved",
                         remedy="name a file that an orchestration study wrote") from error
