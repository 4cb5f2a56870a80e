"""Analytic studies: which kinds there are, and how one is read, run once, and kept under its configuration hash."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.errors import InputError
from testbed.experiment.machine import host, package_versions
from testbed.experiment.store import COMPLETE, TrialFolder, run_folder
from testbed.measurement.atomic import write_json_atomic, write_text_atomic
from testbed.measurement.study import Finding, StudyOutcome, findings_json, write_outcome
from testbed.measurement.study_view import read_tables, study_html
from testbed.schema.files import load_as
from testbed.schema.study import Study, study_kind

HASH_LENGTH = 12
Progress = Callable[[float, str], None]  # share done (0 to 1), what is being done


@dataclass(frozen=True)
class Kind:
    """Where a kind of study is: `module:Class` of its schema, `module:function` that runs it."""

    schema: str
    function: str

    def load_schema(self) -> type[Study]:
        """The subclass of Study."""
        found = _load(self.schema)
        assert isinstance(found, type) and issubclass(found, Study)
        return found

    def load_function(self) -> Callable[[Any, Progress], StudyOutcome]:
        """The function `run(spec, progress) -> StudyOutcome`."""
        found: Callable[[Any, Progress], StudyOutcome] = _load(self.function)
        return found


# a kind's module is imported when a file names it, not before
KINDS: dict[str, Kind] = {
    "mdinference": Kind("testbed.policies.mdinference_study:MDInferenceStudy", "testbed.policies.mdinference_study:run"),
    "orchestration": Kind("testbed.policies.orchestration.spec:OrchestrationStudy",
                          "testbed.policies.orchestration.study:run"),
    "placement": Kind("testbed.placement.spec:PlacementStudy", "testbed.placement.study:run_placement"),
    "token_bucket": Kind("testbed.policies.token_bucket.spec:TokenBucketStudy", "testbed.policies.token_bucket.study:run"),
}


@dataclass(frozen=True)
class PlannedStudy:
    """A checked study: its keys, its hash, its function."""

    spec: Study
    source: Path
    config_hash: str
    content: Mapping[str, str]
    kind: Kind

    def folder(self, runs: Path, fresh: bool = False) -> TrialFolder:
        """`runs/<name>/<config hash>`, below the newest folder of that name (`fresh`: the next one)."""
        return TrialFolder(run_folder(runs, self.spec.name, fresh=fresh) / self.config_hash)


@dataclass(frozen=True)
class StudyResult:
    """Where the results are, and what a person wants to see of them first."""

    folder: Path
    tables: Mapping[str, pd.DataFrame]
    findings: tuple[Finding, ...]
    skipped: bool
    duration_s: float

    @property
    def report(self) -> Path:
        """The offline page."""
        return self.folder / "report.html"


def plan_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> PlannedStudy:
    """Read and check a study file; nothing is touched. Raises InputError."""
    path = Path(path)
    name = str((overrides or {}).get("study", study_kind(path)))
    kind = KINDS.get(name)
    if kind is None:
        raise InputError("there is no such kind of study", file=path, key="study", value=name,
                         remedy=f"use one of {', '.join(sorted(KINDS))}")
    spec = load_as(path, kind.load_schema(), overrides)
    content = dict(spec.content())
    for file in spec.files():
        try:
            content[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=path, value=str(file), remedy="check the path") from None
    return PlannedStudy(spec, path, _config_hash(spec, content), content, kind)


def run_study(path: str | Path, overrides: Mapping[str, Any] | None = None, runs: Path = Path("runs"), fresh: bool = False,
              on_progress: Progress = lambda share, text: None) -> StudyResult:
    """Run a study, or read its results when it has finished before. Raises InputError, EmulationError (folder in use)."""
    planned = plan_study(path, overrides)
    folder = planned.folder(runs, fresh)
    if not folder.is_complete:
        with folder.lock():
            if not _is_complete(folder):  # another process may have been faster
                return _run(planned, folder, on_progress)
    return _finished(folder)


def _is_complete(folder: TrialFolder) -> bool:
    return folder.is_complete


def _run(planned: PlannedStudy, folder: TrialFolder, on_progress: Progress) -> StudyResult:
    spec, began = planned.spec, time.monotonic()
    status = {"run_id": f"{spec.name}/{planned.config_hash}", "study": spec.study, "started_unix_s": time.time()}
    write_json_atomic(folder.path / "status.json", {**status, "state": "running"})
    try:
        outcome = planned.kind.load_function()(spec, on_progress)
        pictures = write_outcome(folder.path, outcome)
        duration_s = time.monotonic() - began
        manifest = {
            "study": spec.study, "name": spec.name, "config_hash": planned.config_hash, "version": spec.version,
            "config": spec.model_dump(mode="json"), "content_sha256": dict(planned.content), "seed": spec.seed,
            "command": sys.argv, "source": str(planned.source.resolve()), "duration_s": duration_s,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "versions": package_versions(), "host": host(),
            "tables": list(outcome.tables), "figures": list(outcome.figures), "findings": findings_json(outcome.findings),
        }
        write_json_atomic(folder.path / "manifest.json", manifest)
        write_text_atomic(folder.path / "report.html", study_html(spec.name, spec.description, outcome, pictures, manifest))
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        write_json_atomic(folder.path / "status.json", {**status, "state": state, "error": f"{type(error).__name__}: {error}"})
        raise
    names = [*(f"{name}.csv" for name in outcome.tables), *(f"{n}.{s}" for n in outcome.figures for s in ("svg", "png")),
             *outcome.files, "manifest.json", "report.html"]
    sizes = {name: os.path.getsize(folder.path / name) for name in names}
    write_json_atomic(folder.path / "status.json", {**status, "state": COMPLETE, "finished_unix_s": time.time(),
                                                    "duration_s": duration_s, "sizes": sizes})
    return StudyResult(folder.path, outcome.tables, tuple(outcome.findings), False, duration_s)


def _finished(folder: TrialFolder) -> StudyResult:
    manifest = json.loads((folder.path / "manifest.json").read_text(encoding="utf-8"))
    findings = tuple(Finding(**finding) for finding in manifest["findings"])
    return StudyResult(folder.path, read_tables(folder.path, manifest["tables"]), findings, True, float(manifest["duration_s"]))


def _config_hash(spec: Study, content: Mapping[str, str]) -> str:
    """Hash of all that the results depend on: keys, version of the kind, content of the files (not their place)."""
    config = _without_paths(spec.model_dump(mode="json", exclude={"description"}), content)
    text = json.dumps([config, spec.version, sorted(content.values())], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _without_paths(value: Any, content: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v, content) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v, content) for v in value]
    return f"sha256:{content[value]}" if isinstance(value, str) and value in content else value


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
