"""A user's own model, `file.py:function` in a scenario: built, checked against the data set, traced, timed once, cached.

The function takes nothing and returns an nn.Module (cut at every node) or a StagedModel (cut at its stages). It runs in
every process that holds the model, each time from the same seed, and must give the same weights each time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from testbed.errors import InputError
from testbed.inference.catalogue import ModelInfo, builder
from testbed.inference.data import Dataset, is_path
from testbed.inference.describe import describe, fixed_wire_bytes
from testbed.inference.evaluate import exit_curve, exit_logits, score_exits
from testbed.inference.graph import GraphModel
from testbed.inference.staged import StagedModel
from testbed.inference.trace import BATCHES
from testbed.measurement.atomic import write_json_atomic
from testbed.schema.data import cache_folder

SCORED_SAMPLES = 256  # of the test split, for the accuracy and the exit curve in the model's entry
_FORMAT = 3  # of the cached entries; raised when the same model would be cut or measured in another way
_SEED = 0


def model_name(reference: str) -> str:
    """Name of the model `/a/b/my_model.py:build` in tables, plans and URLs: `my_model.py:build`."""
    return reference.rpartition("/")[2]


def build_module(reference: str, folder: Path) -> nn.Module:
    """What the function `file.py:function` (relative to `folder`) returns, from a fixed seed, on the CPU. Raises InputError."""
    place, _, function = reference.rpartition(":")
    file = (folder / place).resolve()
    if not file.is_file():
        raise InputError("there is no such model file", file=file, key="model", value=reference,
                         remedy="give file.py:function, with a path relative to the scenario file")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            function_found = builder(reference, folder / "any")
        except InputError as error:
            raise InputError(error.problem, file=file, key="model", value=reference, remedy=error.remedy) from error
        try:
            made: Any = function_found()
        except Exception as error:
            raise InputError(f"{function}() fails: {type(error).__name__}: {_line(error)}", file=file, key="model",
                             remedy="it takes no arguments; run the file with python to see the whole error") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{function}() returns a {type(made).__name__}", file=file, key="model",
                         remedy="return a torch.nn.Module, or a testbed.inference.staged.StagedModel")
    return made.cpu().eval().requires_grad_(False)


def content_sha256(reference: str, folder: Path, module: nn.Module) -> str:
    """Hash of the file's bytes and of every parameter and buffer."""
    total = hashlib.sha256((folder / reference.rpartition(":")[0]).read_bytes())
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        if isinstance(value, Tensor) and not value.is_quantized:
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def as_staged(module: nn.Module, x: Tensor, file: Path, *, check: bool) -> StagedModel:
    """The module as stages, for samples x (N, C, H, W), N at least 3. Raises InputError naming the file.

    check: run head and tail of every cut and compare them with the whole.
    """
    try:
        if isinstance(module, StagedModel):
            if check:
                _check_staged(module, x)
            return module
        return GraphModel(module, x, check=check)
    except InputError as error:
        raise InputError(error.problem, file=file, key=error.key, value=error.value, remedy=error.remedy) from error


def describe_own(reference: str, data: Dataset, dataset: str, machine: str, cache: Path | None = None) -> ModelInfo:
    """The entry of a user's model, as the catalogue has one for a shipped model.

    Costs are measured once per content on this machine, single-threaded, batch 1, and kept in `cache` (below the user's
    cache folder unless given), so that all trials use the same times.

    Parameters: `reference`, `/a/b/my_model.py:build`; `data`, the samples it is to classify; `dataset`, their name in the
    scenario; `machine`, the processor's name. Raises InputError naming the file, what was wrong and the way out.
    """
    root, file = Path("/"), Path(reference.rpartition(":")[0])
    module = build_module(reference, root)
    sha256 = content_sha256(reference, root, module)
    about = [_FORMAT, sha256, torch.__version__, machine, dataset, list(data.shape), data.classes, len(data)]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    kept = (cache or cache_folder("models")) / f"{key[:32]}.json"
    fixed: dict[str, Any] = {"name": model_name(reference), "builder": reference, "dataset": dataset, "weights": None,
                             "sha256": sha256, "seed": _SEED, "recipe": {}}
    try:
        return ModelInfo.model_validate({**json.loads(kept.read_text(encoding="utf-8")), **fixed})
    except (OSError, ValueError):  # not there, or not readable: measured now
        pass
    if content_sha256(reference, root, build_module(reference, root)) != sha256:
        raise InputError("does not give the same weights twice", file=file, key="model", value=reference,
                         remedy="load the weights from a file, or draw them from torch's generator, which is seeded")
    few = replace(data, frames=data.frames[:SCORED_SAMPLES], y=data.y[:SCORED_SAMPLES])
    if len(few) < BATCHES[1]:
        raise InputError(f"has {len(data)} samples", key="dataset", value=dataset, remedy=f"at least {BATCHES[1]} are needed")
    model = as_staged(module, torch.from_numpy(np.ascontiguousarray(few.x[:BATCHES[1]])), file, check=True)
    logits = exit_logits(model, few)
    check_classes(logits, data, dataset, file)
    entry = describe(model, score_exits(logits, few.y, logits, few.y), machine)
    entry["reference"] |= {"scored_samples": len(few)}
    entry["exits"] = [{k: v for k, v in e.items() if k in _EXIT_KEYS} for e in entry["exits"]]
    if len(logits) > 1:
        entry["exit_curve"] = exit_curve(logits, few.y)
    entry["wire_bytes"] = fixed_wire_bytes([model.input_shape, *(tuple(s["shape"]) for s in entry["stages"])])
    info = ModelInfo.model_validate({**entry, **fixed})
    _keep(kept, entry)
    return info


_EXIT_KEYS = ("name", "after", "accuracy", "parameters", "macs", "reference_time_s")  # calibration wants a split of its own


def load_own(info: ModelInfo, folder: Path) -> StagedModel:
    """The model of an entry made by `describe_own`. Raises InputError when the file or its weights have changed."""
    file = (folder / info.builder.rpartition(":")[0]).resolve()
    module = build_module(info.builder, folder)
    found = content_sha256(info.builder, folder, module)
    if found != info.sha256:
        raise InputError("is not what it was when the run was planned", file=file, key="sha256", value=found,
                         remedy=f"expected {info.sha256[:12]}...; start the run again")
    x = torch.rand(BATCHES[1], *info.input_shape, generator=torch.Generator().manual_seed(0))
    model = as_staged(module, x, file, check=False)
    if model.stage_names != tuple(s.name for s in info.stages):
        raise InputError("has other stages than when the run was planned", file=file, key="model",
                         value=", ".join(model.stage_names), remedy="start the run again")
    return model


def _check_staged(model: StagedModel, x: Tensor) -> None:
    if model.input_shape != tuple(x.shape[1:]):
        raise InputError(f"takes samples of {_times(model.input_shape)}, but the data set has {_times(x.shape[1:])}",
                         key="model", remedy="give the StagedModel the data set's shape as input_shape")
    model.eval().requires_grad_(False)
    for n in BATCHES:
        given: Any = x[:n]
        for i, name in enumerate(model.stage_names):
            try:
                with torch.inference_mode():
                    given = model.run(given, i, i + 1)
            except Exception as error:
                raise InputError(f"stage {name} fails on {n} samples: {type(error).__name__}: {_line(error)}", key="model",
                                 remedy="each stage takes the tensor (N, ...) that the one before it returns") from error
            if not isinstance(given, Tensor) or given.dtype is not torch.float32 or given.ndim < 2 or len(given) != n:
                got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise InputError(f"stage {name} returns {got} for {n} samples", key="model",
                                 remedy="each stage returns one float32 tensor (N, ...)")


def check_classes(logits: dict[str, np.ndarray[Any, Any]], data: Dataset, dataset: str, file: Path) -> None:
    """Every exit has one output per class of the data set named `dataset`. Raises InputError."""
    for name, values in logits.items():
        width = values.shape[1] if values.ndim == 2 else None
        fewer_in_data = is_path(dataset) and not data.class_names and width is not None and width > data.classes
        if width != data.classes and not fewer_in_data:
            raise InputError(f"has {width} outputs at its exit {name}, but {dataset} has {data.classes} classes", file=file,
                             key="model", remedy="give its last layer one output per class")


def _keep(path: Path, entry: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, entry)
    except OSError as error:
        raise InputError(f"the model's measured costs cannot be kept ({error.strerror})", file=path,
                         remedy="set XDG_CACHE_HOME to a folder that can be written") from None


def _times(shape: Any) -> str:
    return "x".join(map(str, shape))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
