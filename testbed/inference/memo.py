"""Memoised outputs: what a model's stages make of a tensor, computed once and kept on disk.

An entry is content-addressed: (model, stage, digest of the stage's input) -> digest of its output and the logits of the
exit behind it; tensors are kept by their digest where a step ends. So any plan is served by chaining look-ups, with any
cut, exit rule and threshold, and what a lossy codec changed on the way is honoured: it is another input.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import EmulationError
from testbed.inference.catalogue import Catalogue, ModelInfo, load_model
from testbed.inference.execution import StepOutput, TorchRun, run_step
from testbed.inference.exits import ExitRule
from testbed.schema.data import cache_folder

if TYPE_CHECKING:
    from testbed.inference.staged import StagedModel

DIGEST_BYTES = 16
LIMIT_BYTES = 8 * 2**30  # of all stores together; the ones not used for longest go first
IN_USE_S = 3600.0  # a store that was filled this recently may serve a trial that runs
_FORMAT = 1
_BUSY_S = 20.0
_LOG = logging.getLogger("testbed.memo")
_TABLES = """
CREATE TABLE IF NOT EXISTS stages (stage INTEGER NOT NULL, input BLOB NOT NULL, output BLOB NOT NULL, logits BLOB,
    seal BLOB NOT NULL, PRIMARY KEY (stage, input)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tensors (digest BLOB PRIMARY KEY, data BLOB NOT NULL);
"""


class Miss(Exception):
    """The store does not hold what a step needs."""


def digest(tensor: NDArray[np.float32]) -> bytes:
    """blake2b-128 of a float32 tensor's bytes in C order."""
    return _hash(np.ascontiguousarray(tensor, np.float32).data)


def _hash(*parts: bytes | memoryview) -> bytes:
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        total.update(part)
    return total.digest()


def model_key(info: ModelInfo, catalogue: Path) -> str:
    """Identity of a model's outputs: weights, the builder's code, stages, and the torch that computes them."""
    place, _, function = info.builder.rpartition(":")
    about = {"format": _FORMAT, "weights": info.sha256, "code": _code_sha256(place, catalogue),
             "builder": function if place.endswith(".py") else info.builder,  # a file may lie anywhere
             "stages": [[s.name, *s.shape] for s in info.stages], "exits": [[e.name, e.after] for e in info.exits],
             "torch": importlib.metadata.version("torch")}
    return _hash(json.dumps(about, sort_keys=True).encode()).hex()


def _code_sha256(place: str, catalogue: Path) -> str | None:
    if place.endswith(".py"):
        file = (catalogue.parent / place).resolve()
    else:
        spec = importlib.util.find_spec(place)
        if spec is None or spec.origin is None:
            return None
        file = Path(spec.origin)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


@dataclass
class Record:
    """What one computed step adds to a store: a row (stage, input, output, logits) per stage, tensors by digest."""

    rows: list[tuple[int, bytes, bytes, bytes | None]] = field(default_factory=list)
    tensors: dict[bytes, bytes] = field(default_factory=dict)


class MemoStore:
    """Outputs of one model in one SQLite file: many processes may read and write it at a time.

    The file is in write-ahead mode: a writer that is killed leaves whole transactions only. Every row and every tensor
    is checked when it is read. A store that cannot be read answers nothing (and says so once); `repair` replaces it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False  # whether SQLite refused a look-up
        self._local = threading.local()
        self._told = False

    @classmethod
    def of(cls, info: ModelInfo, catalogue: Path, folder: Path | None = None) -> MemoStore:
        """The store of a model: below the user's cache folder unless `folder` says otherwise."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", info.name)[-60:]
        return cls((folder or outputs_folder()) / f"{name}-{model_key(info, catalogue)[:24]}.sqlite")

    def stage(self, index: int, given: bytes) -> tuple[bytes, bytes | None] | None:
        """(digest of the output, logits' bytes or None) of a stage for an input's digest; None when unknown."""
        row = self._one("SELECT output, logits, seal FROM stages WHERE stage = ? AND input = ?", (index, given))
        if row is None:
            return None
        output, logits, seal = row
        if not isinstance(output, bytes) or not isinstance(logits, bytes | None) or seal != _seal(index, given, output, logits):
            self._tell(f"stage {index} of an input is damaged")
            return None
        return output, logits

    def tensor(self, wanted: bytes) -> bytes | None:
        """The bytes of the tensor of this digest; None when it is not kept."""
        row = self._one("SELECT data FROM tensors WHERE digest = ?", (wanted,))
        if row is None:
            return None
        data = row[0]
        if not isinstance(data, bytes) or _hash(data) != wanted:
            self._tell("a tensor is damaged")
            return None
        return data

    def add(self, record: Record) -> None:
        """Keep a step's record, in one transaction. Raises EmulationError when the file cannot be written."""
        rows = [(*row, _seal(*row)) for row in record.rows]
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?)", rows)
                connection.executemany("INSERT OR REPLACE INTO tensors VALUES (?, ?)", record.tensors.items())
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise EmulationError(f"{self.path}: outputs cannot be stored ({error}); make room, or remove the file") from error

    def repair(self) -> bool:
        """Replace a file that is no sound store by an empty one; True when that was needed.

        What was there is kept beside it as `.broken`.
        """
        with self._lock():
            self.close()
            try:
                if self._connection().execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                    return False
            except sqlite3.OperationalError as error:
                if "malformed" not in str(error):
                    raise EmulationError(f"{self.path}: the store of outputs cannot be opened ({error})") from error
            except sqlite3.DatabaseError:
                pass
            self.close()
            _LOG.warning("%s is not a sound store of outputs; it is kept as .broken, and outputs are computed again", self.path)
            self.path.replace(self.path.with_suffix(".broken"))
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            return True

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(f.stat().st_size for s in ("", "-wal") if (f := self.path.with_name(self.path.name + s)).exists())

    def close(self) -> None:
        """Close the calling thread's connection."""
        connection, self._local.connection = getattr(self._local, "connection", None), None
        if connection is not None:
            connection.close()

    def _one(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._connection().execute(query, values).fetchone()
            return row
        except sqlite3.Error as error:
            self.failed = True
            self._tell(str(error))
            return None

    def _tell(self, what: str) -> None:
        if not self._told:
            _LOG.warning("%s: %s; what is missing is computed again", self.path, what)
        self._told = True

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            try:
                _use_wal(connection)
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_TABLES)
            except sqlite3.Error:
                connection.close()
                raise
            self._local.connection = connection
        return connection

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead mode; SQLite does not wait by itself while another process is switching."""
    give_up_s = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
            time.sleep(0.01)


class MemoisedModel:
    """A model that looks its outputs up, and computes, keeps and counts what the store does not hold.

    Parameters
    ----------
    load: builds the model; called at the first miss only, so that a process without misses never loads torch.
    """

    def __init__(self, info: ModelInfo, store: MemoStore, load: Callable[[], StagedModel]) -> None:
        self.info, self.store = info, store
        self.hits, self.misses = 0, 0
        self._load = load
        self._model: StagedModel | None = None

    @classmethod
    def of(cls, catalogue: Catalogue, name: str, folder: Path | None = None) -> MemoisedModel:
        """A model of the catalogue with its store. Raises InputError for an unknown name."""
        info = catalogue[name]
        return cls(info, MemoStore.of(info, catalogue.path, folder), lambda: load_model(catalogue, name).model)

    def step(self, tensor: NDArray[np.float32], start: int, stop: int, rule: ExitRule, final_answers: bool) -> StepOutput:
        """One step of a plan, as `run_step` has it. What cannot be stored is answered all the same, and logged."""
        try:
            found = run_step(_LookUp(self.store, self.info, tensor), self.info, start, stop, rule, final_answers, True)
            self.hits += 1
            return found
        except Miss:
            self.misses += 1
        run = self._recording(tensor)
        made = run_step(run, self.info, start, stop, rule, final_answers, False)
        try:
            self.store.add(run.record(keep_tensor=made.exit_id is None))
        except EmulationError as error:
            _LOG.warning("%s", error)
        return made

    def whole_step(self, tensor: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
        """The tensor after stages start..stop-1, whatever an exit says, so that every rule and threshold is served later.

        Raises EmulationError when it cannot be stored.
        """
        look_up = _LookUp(self.store, self.info, tensor)
        try:
            for index in range(start, stop):
                look_up.advance(index)
            found = look_up.tensor()
            self.hits += 1
            return found
        except Miss:
            self.misses += 1
        run = self._recording(tensor)
        for index in range(start, stop):
            run.advance(index)
        self.store.add(run.record(keep_tensor=True))
        return run.tensor()

    def _recording(self, tensor: NDArray[np.float32]) -> _Recording:
        if self._model is None:
            import torch

            torch.set_num_threads(1)
            self._model = self._load()
        return _Recording(self._model, self.info, tensor)


class _LookUp:
    """A `StageRun` that reads a store. Raises Miss."""

    def __init__(self, store: MemoStore, info: ModelInfo, tensor: NDArray[np.float32]) -> None:
        self._store, self._info = store, info
        self._digest, self._count = digest(tensor), len(tensor)
        self._logits: bytes | None = None
        self._shape: tuple[int, ...] = ()

    def advance(self, index: int) -> None:
        found = self._store.stage(index, self._digest)
        if found is None:
            raise Miss
        self._digest, self._logits = found
        self._shape = self._info.shape_at(index + 1)

    def logits(self, index: int) -> NDArray[np.float32]:
        if self._logits is None:
            raise Miss
        return self._array(self._logits, (self._info.classes,))

    def tensor(self) -> NDArray[np.float32]:
        data = self._store.tensor(self._digest)
        if data is None:
            raise Miss
        return self._array(data, self._shape)

    def _array(self, data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
        try:
            return np.frombuffer(data, np.float32).reshape(self._count, *shape)
        except ValueError:  # a sound row of another shape cannot be of this model
            raise Miss from None


class _Recording(TorchRun):
    """Computes, and notes every stage with the logits of every exit on the way, asked for or not."""

    def __init__(self, model: StagedModel, info: ModelInfo, tensor: NDArray[np.float32]) -> None:
        super().__init__(model, tensor)
        self._info, self._digest, self._record = info, digest(tensor), Record()

    def advance(self, index: int) -> None:
        super().advance(index)
        given, self._digest = self._digest, digest(self.tensor())
        logits = np.ascontiguousarray(self.logits(index)).tobytes() if index in self._info.exit_after else None
        self._record.rows.append((index, given, self._digest, logits))

    def record(self, keep_tensor: bool) -> Record:
        """Everything noted so far, with the last tensor where the step handed one on."""
        if keep_tensor:
            self._record.tensors[self._digest] = np.ascontiguousarray(self.tensor(), np.float32).tobytes()
        return self._record


def outputs_folder() -> Path:
    """Where stores lie: `$XDG_CACHE_HOME/testbed/outputs`."""
    return cache_folder("outputs")


def make_room(folder: Path, keep: set[Path], limit_bytes: int = LIMIT_BYTES) -> list[Path]:
    """Remove the stores that were not used for longest until all fit into the limit.

    Those to `keep` stay, and those that another trial may be using now.
    """
    stores = sorted((p for p in folder.glob("*.sqlite")), key=lambda p: p.stat().st_mtime)
    total = sum(MemoStore(p).size_bytes for p in stores)
    gone = []
    for path in stores:
        if total <= limit_bytes:
            break
        if path in keep or time.time() - path.stat().st_mtime < IN_USE_S:
            continue
        total -= MemoStore(path).size_bytes
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        gone.append(path)
    return gone


def _seal(stage: int, given: bytes, output: bytes, logits: bytes | None) -> bytes:
    return _hash(stage.to_bytes(4, "little"), given, output, logits or b"")[:8]
