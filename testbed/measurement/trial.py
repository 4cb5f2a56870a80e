"""A finished trial on disk: finding trials of a run and loading their manifest, tables and fabric summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.errors import InputError
from testbed.measurement.format import swept
from testbed.measurement.records import HOPS, LINKS, NODES, ORACLE, REQUESTS, Table, empty_table, read_table

MANIFEST = "manifest.json"
FABRIC = "fabric.json"
STATUS = "status.json"
RUN = "run.json"
_COMPLETE = ("complete", "completed", "done")


@dataclass(frozen=True)
class Trial:
    """One trial: one policy at one sweep point, one repeat."""

    path: Path
    manifest: Mapping[str, Any]
    requests: pd.DataFrame
    hops: pd.DataFrame
    links: pd.DataFrame
    nodes: pd.DataFrame
    fabric: Mapping[str, Any] = field(default_factory=dict)
    oracle: pd.DataFrame = field(default_factory=lambda: empty_table(ORACLE))

    @property
    def run_id(self) -> str:
        """Identifier of the trial."""
        return str(self.manifest.get("run_id") or self.path.name)

    @property
    def policy(self) -> str:
        """Name of the policy or plan under test."""
        return str(self.manifest.get("policy", "unnamed"))

    @property
    def sweep_point(self) -> dict[str, Any]:
        """Swept keys and their values at this trial."""
        return dict(self.manifest.get("sweep_point") or {})

    @property
    def label(self) -> str:
        """`split, rate=2, repeat 0`."""
        point = [f"{key.rsplit('.', 1)[-1]}={swept(value)}" for key, value in self.sweep_point.items()]
        return ", ".join([self.policy, *point, f"repeat {self.manifest.get('repeat', 0)}"])

    @property
    def tier_of(self) -> dict[str, str]:
        """Node name -> tier name."""
        return {str(node["name"]): str(node.get("tier", node["name"])) for node in self.manifest.get("nodes") or []}

    @property
    def tiers(self) -> list[str]:
        """Tier names from the device side to the cloud side."""
        topology = (self.manifest.get("config") or {}).get("topology")
        declared = topology.get("tiers") if isinstance(topology, Mapping) else None
        names = [str(tier["name"]) for tier in declared or [] if isinstance(tier, Mapping) and "name" in tier]
        return list(dict.fromkeys([*names, *self.tier_of.values()]))

    @property
    def device_tier(self) -> str:
        """The tier that issues requests: the scenario's `devices:`, else the first tier."""
        named = (self.manifest.get("config") or {}).get("devices")
        return str(named) if named else (self.tiers[0] if self.tiers else "device")


def load_trial(trial_dir: str | Path) -> Trial:
    """Load a trial. `manifest.json` and `requests.csv` must be there; other tables may be absent (empty then)."""
    path = Path(trial_dir)
    manifest = read_json(path / MANIFEST)
    fabric = read_json(path / FABRIC) if (path / FABRIC).exists() else {}
    return Trial(
        path=path,
        manifest=manifest,
        requests=read_table(path / "requests.csv", REQUESTS),
        hops=_optional(path / "hops.csv", HOPS),
        links=_optional(path / "links.csv", LINKS),
        nodes=_optional(path / "nodes.csv", NODES),
        fabric=fabric,
        oracle=_optional(path / "oracle.csv", ORACLE),
    )


def find_trials(run_dir: str | Path) -> list[Path]:
    """Return the trial directories of a run: `<run>/<config-hash>/<repeat>/`, finished ones only.

    A trial directory itself is accepted as a run of one. `run.json` names the trials of the last whole run.
    Without it (an interrupted run) all finished trials count; where several stand for the same policy, sweep
    point and repeat, because the scenario was edited in between, the newest counts.
    Raises InputError when there is no finished trial.
    """
    root = Path(run_dir)
    if not root.is_dir():
        raise InputError("there is no such run directory", file=root, remedy="give a directory such as runs/quickstart")
    if (root / MANIFEST).is_file():
        return [root]
    if (root / RUN).is_file():
        listed = [root / str(name) for name in read_json(root / RUN).get("trials") or []]
        if listed and all(_finished(path) and (path / MANIFEST).is_file() for path in listed):
            return listed
    candidates = sorted(path.parent for path in root.glob(f"*/*/{MANIFEST}"))
    newest: dict[tuple[str, str, int], tuple[str, Path]] = {}
    for path in candidates:
        if not _finished(path):
            continue
        manifest = read_json(path / MANIFEST)
        key = (str(manifest.get("policy")), json.dumps(manifest.get("sweep_point") or {}, sort_keys=True),
               int(manifest.get("repeat") or 0))
        stamp = str(manifest.get("finished_utc") or manifest.get("started_utc") or "")
        if key not in newest or stamp >= newest[key][0]:
            newest[key] = (stamp, path)
    if not newest:
        raise InputError("holds no finished trial", file=root,
                         remedy="give the directory of a run, such as runs/quickstart, or run the scenario first")
    return _in_file_order([path for _, path in newest.values()])


def run_folder(run: str | Path) -> Path:
    """A run's directory; a bare name that is no directory is looked up in `runs/`."""
    folder = Path(run)
    return folder if folder.is_dir() or not (Path("runs") / folder).is_dir() else Path("runs") / folder


def load_run(run_dir: str | Path, trials: Sequence[str | Path] | None = None) -> list[Trial]:
    """Load the given trial directories, or all that `find_trials` names."""
    return [load_trial(path) for path in (find_trials(run_dir) if trials is None else trials)]


def rejudged(trial: Trial) -> Trial:
    """The same trial without its stored verdict, so that whoever asks for it judges now. Nothing is written."""
    return replace(trial, manifest={**trial.manifest, "validity": {}})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises InputError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("the file is missing", file=path, remedy="give the directory of a finished run") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not JSON: {error}", file=path, remedy="run the trial again") from None
    if not isinstance(value, dict):
        raise InputError("must hold a JSON object", file=path, remedy="run the trial again")
    return value


def _optional(path: Path, table: Table) -> pd.DataFrame:
    return read_table(path, table) if path.exists() else empty_table(table)


def _finished(path: Path) -> bool:
    if not (path / "requests.csv").is_file():
        return False
    if not (path / STATUS).is_file():
        return True
    status = read_json(path / STATUS)
    word = status.get("status", status.get("state"))
    return word is None or str(word) in _COMPLETE


def _in_file_order(paths: list[Path]) -> list[Path]:
    """Order as the scenario lists its policies, then by sweep point and repeat, so that tables read like the file."""

    def key(path: Path) -> tuple[int, str, int]:
        manifest = read_json(path / MANIFEST)
        listed = (manifest.get("config") or {}).get("policies") or []
        names = [entry.get("name") if isinstance(entry, dict) else entry for entry in listed]
        policy = manifest.get("policy")
        position = names.index(policy) if policy in names else len(names)
        return position, json.dumps(manifest.get("sweep_point") or {}, sort_keys=True), int(manifest.get("repeat") or 0)

    return sorted(paths, key=key)
