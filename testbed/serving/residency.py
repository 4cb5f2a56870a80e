"""Which models a node keeps in memory: a budget of weights, loading from disk when a model is cold, unloading the oldest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.inference.catalogue import Catalogue, LoadedModel, ModelInfo, load_model
from testbed.inference.memo import MemoisedModel

Served = LoadedModel | MemoisedModel


@dataclass(frozen=True)
class Loader:
    """A model that can be loaded: its entry, the bytes of its weights in memory's budget, and how."""

    info: ModelInfo
    weight_bytes: int
    load: Callable[[], Served]


class Residency:
    """The models in memory; called from the worker's thread only, except `resident`.

    Parameters
    ----------
    loaders: all models that this node may serve.
    budget_bytes: weights that may be in memory at a time; the model that was not used for longest goes first.
    load_bps, load_floor_s: rate at which weights are read, and what loading takes in any case: the load is held to that,
        as on the host of the compute profile. Without a rate loading takes what it takes here.
    keep_alive_s: a model that was not used for this long is unloaded, as serverless platforms do.
    resident: models that are in memory when the load begins.

    Raises InputError when a model does not fit the budget by itself, or `resident` do not together.
    """

    def __init__(self, loaders: Mapping[str, Loader], *, budget_bytes: int | None = None, load_bps: float | None = None,
                 load_floor_s: float = 0.0, keep_alive_s: float | None = None, resident: Iterable[str] = ()) -> None:
        self.loaders, self.budget_bytes = dict(loaders), budget_bytes
        self._load_bps, self._load_floor_s = load_bps, load_floor_s
        self._keep_alive_ns = None if keep_alive_s is None else round(keep_alive_s * 1e9)
        self._initial = tuple(name for name in resident if name in loaders)
        self._loaded: dict[str, Served] = {}  # in the order of last use
        self._held = False  # from `reset` on
        self._used_ns: dict[str, int] = {}
        check_budget({name: loader.weight_bytes for name, loader in loaders.items()}, budget_bytes, self._initial)

    @property
    def resident(self) -> tuple[str, ...]:
        """Models in memory, the one that was not used for longest first. May be read from any thread."""
        now_ns, used = time.monotonic_ns(), dict(self._used_ns)
        return tuple(n for n in list(self._loaded) if n in used and not self._stale(used[n], now_ns))

    def acquire(self, name: str) -> tuple[Served, int | None]:
        """The model, loaded if it is cold; with the nanoseconds that loading took, None when it was in memory."""
        now_ns = time.monotonic_ns()
        for other in [n for n, used_ns in self._used_ns.items() if self._stale(used_ns, now_ns)]:
            self._unload(other)
        load_ns = None
        if name in self._loaded:
            model = self._loaded.pop(name)
        else:
            loader = self.loaders[name]
            self._make_room(loader.weight_bytes)
            model = loader.load()
            if self._held and self._load_bps is not None:
                _sleep_until(now_ns + round((self._load_floor_s + 8 * loader.weight_bytes / self._load_bps) * 1e9))
            load_ns = time.monotonic_ns() - now_ns
        self._loaded[name] = model
        self._used_ns[name] = time.monotonic_ns()
        return model, load_ns

    def reset(self) -> None:
        """Back to what is in memory when the load begins; from here on loading is held to its rate."""
        self._held = False
        for name in list(self._loaded):
            self._unload(name)
        for name in self._initial:
            self.acquire(name)
        self._held = True

    def _stale(self, used_ns: int, now_ns: int) -> bool:
        return self._keep_alive_ns is not None and now_ns - used_ns > self._keep_alive_ns

    def _make_room(self, wanted_bytes: int) -> None:
        if self.budget_bytes is None:
            return
        while self._loaded and wanted_bytes + sum(self.loaders[n].weight_bytes for n in self._loaded) > self.budget_bytes:
            self._unload(next(iter(self._loaded)))

    def _unload(self, name: str) -> None:
        self._loaded.pop(name, None)
        self._used_ns.pop(name, None)


def check_budget(weight_bytes: Mapping[str, int], budget_bytes: int | None, resident: Iterable[str]) -> None:
    """Raise InputError when a model alone, or those resident at the start together, are larger than the budget."""
    if budget_bytes is None:
        return
    for name, size in weight_bytes.items():
        if size > budget_bytes:
            raise InputError(f"is smaller than the weights of model {name} ({size} bytes)", key="residency.budget",
                             value=budget_bytes, remedy="raise it, or leave the model out")
    together = sum(weight_bytes.get(name, 0) for name in resident)
    if together > budget_bytes:
        raise InputError(f"models are {together} bytes together, more than the budget of {budget_bytes}",
                         key="residency.resident", value=", ".join(resident), remedy="raise the budget, or name fewer")


def loaders(catalogue: Catalogue, names: Iterable[str], outputs: str | None) -> dict[str, Loader]:
    """What loads the models of these names: weights from disk, or the folder of memoised `outputs`. Raises InputError."""

    def loader(name: str) -> Loader:
        info = catalogue[name]
        file = catalogue.path.parent / info.weights if info.weights else None
        size = file.stat().st_size if file is not None and file.is_file() else 4 * info.parameters
        if outputs is None:
            return Loader(info, size, lambda: load_model(catalogue, name))
        return Loader(info, size, lambda: MemoisedModel.of(catalogue, name, Path(outputs)))

    return {name: loader(name) for name in names}


def residency_from(config: Mapping[str, Any] | None, catalogue: Catalogue, names: Iterable[str],
                   outputs: str | None) -> Residency | None:
    """The residency that a node's configuration asks for; None: every model stays in memory. Raises InputError."""
    if config is None:
        return None
    return Residency(loaders(catalogue, names, outputs), budget_bytes=config.get("budget"), load_bps=config.get("load_rate"),
                     load_floor_s=config.get("load_floor", 0.0), keep_alive_s=config.get("keep_alive"),
                     resident=config.get("resident", ()))


def _sleep_until(due_ns: int) -> None:
    left_s = (due_ns - time.monotonic_ns()) / 1e9
    if left_s > 0:
        time.sleep(left_s)
