"""Before a trial's network is built: every output that its memoised nodes will be asked for is computed and stored.

Runs as a program of its own (`python -m testbed.experiment.outputs JOB.json RESULT.json`), so that the trial does not
carry torch; events go to standard output as JSON lines. Outputs that are stored already are not computed again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import EmulationError, InputError, TestbedError
from testbed.inference.catalogue import Catalogue, load_catalogue
from testbed.inference.codecs import Registry
from testbed.inference.exits import ExitRule
from testbed.inference.memo import LIMIT_BYTES, MemoisedModel, make_room
from testbed.measurement.atomic import write_json_atomic
from testbed.serving.plan import Step, parse_steps
from testbed.workload.inputs import Inputs

REPORT_S = 0.25
Progress = Callable[[int, int, int], None]  # (samples done, samples, steps computed)


@dataclass(frozen=True)
class Walk:
    """A plan that the samples of some devices take; node names are replaced by their order, 0 being the device."""

    steps: tuple[Step, ...]
    samples: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"steps": [s.to_json() for s in self.steps], "samples": list(self.samples)}

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Walk:
        """From its JSON form."""
        return cls(tuple(parse_steps(value["steps"])), tuple(value["samples"]))


@dataclass(frozen=True)
class Job:
    """What is to be stored: the walks of fixed plans, and whole models stage by stage where a policy decides the cuts."""

    catalogue: Path
    folder: Path
    inputs: Path
    models: tuple[str, ...]
    walks: tuple[Walk, ...]
    every_cut: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"catalogue": str(self.catalogue), "folder": str(self.folder), "inputs": str(self.inputs),
                "models": list(self.models), "walks": [w.to_json() for w in self.walks], "every_cut": list(self.every_cut)}

    @classmethod
    def read(cls, path: Path) -> Job:
        """From a file."""
        data = json.loads(path.read_text())
        return cls(Path(data["catalogue"]), Path(data["folder"]), Path(data["inputs"]), tuple(data["models"]),
                   tuple(Walk.parse(w) for w in data["walks"]), tuple(data["every_cut"]))

    def size_bytes(self, catalogue: Catalogue) -> int:
        """Upper bound of the tensors that will be stored; rows of stages come to some hundred bytes each beside them."""
        walks = sum(len(w.samples) * catalogue[s.model].bytes_at(s.stop) for w in self.walks for s in w.steps)
        stages = sum(s.size_bytes for name in self.models for s in catalogue[name].stages)
        return walks + len(self.every_cut) * stages


def walks_of(plans: Iterable[tuple[str, Sequence[Mapping[str, Any]], Iterable[int]]]) -> tuple[Walk, ...]:
    """Merge (device, plan as JSON, samples): devices whose plans differ in node names only share a walk."""
    merged: dict[tuple[Step, ...], set[int]] = {}
    for device, plan, samples in plans:
        steps = parse_steps(plan)
        order = {name: str(i) for i, name in enumerate(dict.fromkeys([device, *(s.node for s in steps)]))}
        key = tuple(Step(order[s.node], s.model, s.start, s.stop, s.codec, ExitRule()) for s in steps)
        merged.setdefault(key, set()).update(samples)
    return tuple(Walk(steps, tuple(sorted(samples))) for steps, samples in merged.items())


def fill(job: Job, progress: Progress = lambda done, of, computed: None) -> dict[str, Any]:
    """Store what the job asks for; returns what was done. Raises InputError, EmulationError.

    A store that turns out to be broken is replaced, once.
    """
    catalogue = load_catalogue(job.catalogue)
    needed = job.size_bytes(catalogue)
    if needed > LIMIT_BYTES:
        raise InputError(f"memoised outputs would take {needed / 2**30:.1f} GiB, more than {LIMIT_BYTES / 2**30:.0f}",
                         key="load.requests_per_device", remedy="send fewer different samples, cut where the tensor is "
                         "smaller, or write outputs: computed")
    models = {name: MemoisedModel.of(catalogue, name, job.folder) for name in job.models}
    make_room(job.folder, {m.store.path for m in models.values()}, LIMIT_BYTES - needed)
    begin = time.monotonic()
    try:
        _fill(job, models, progress)
        broken = any(m.store.failed for m in models.values())
    except EmulationError:
        broken = True
        if not any([m.store.repair() for m in models.values()]):  # every one of them, not up to the first
            raise
    else:
        if broken:
            for model in models.values():
                model.store.repair()
    if broken:
        models = {name: MemoisedModel.of(catalogue, name, job.folder) for name in job.models}
        _fill(job, models, progress)
    for model in models.values():
        os.utime(model.store.path)
    return {"samples": sum(len(w.samples) for w in job.walks) + len(job.every_cut),
            "computed": sum(m.misses for m in models.values()), "duration_s": time.monotonic() - begin,
            "stores": [{"model": name, "file": m.store.path.name, "size_bytes": m.store.size_bytes}
                       for name, m in models.items()]}


def _fill(job: Job, models: Mapping[str, MemoisedModel], progress: Progress) -> None:
    inputs, codecs = Inputs(job.inputs), Registry(job.catalogue)
    total = sum(len(w.samples) for w in job.walks) + len(job.every_cut)
    for model in models.values():  # the frame with which a node measures itself
        model.whole_step(np.zeros((1, *model.info.input_shape), np.float32), 0, model.info.num_stages)
    for done, _ in enumerate(_work(job, models, inputs, codecs), start=1):
        progress(done, total, sum(m.misses for m in models.values()))


def _work(job: Job, models: Mapping[str, MemoisedModel], inputs: Inputs, codecs: Registry) -> Iterator[None]:
    for walk in job.walks:
        for sample in walk.samples:
            _take(walk.steps, models, inputs.sample(sample), codecs)
            yield
    for sample in job.every_cut:
        for model in models.values():
            tensor = inputs.sample(sample)
            for stage in range(model.info.num_stages):
                tensor = model.whole_step(tensor, stage, stage + 1)
        yield


def _take(steps: Sequence[Step], models: Mapping[str, MemoisedModel], x: NDArray[np.float32], codecs: Registry) -> None:
    """Follow a plan as `run_steps` does, encoding and decoding between nodes, but past every exit."""
    node, given, current = "0", x, x
    for step in steps:
        if step.start == 0:
            current = given
        if step.node != node:
            codec = codecs[step.codec]
            try:
                encoded = codec.encode(current)
            except ValueError:
                return  # the run will say so, request by request: this tensor cannot travel in this codec
            given = current = codec.decode(encoded.arrays, encoded.params)
            node = step.node
        current = models[step.model].whole_step(current, step.start, step.stop)


def fill_in_process(job: Job, work: Path) -> dict[str, Any]:
    """Run `fill` as a program whose events go where ours go. Raises EmulationError with its last words."""
    write_json_atomic(work / "outputs.json", job.to_json())
    argv = [sys.executable, "-m", __name__, str(work / "outputs.json"), str(work / "outputs.result.json")]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EmulationError(f"the outputs to be memoised could not be computed: {last}")
    result: dict[str, Any] = json.loads((work / "outputs.result.json").read_text())
    return result


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    last = [0.0]

    def progress(done: int, of: int, computed: int) -> None:
        now = time.monotonic()
        if now - last[0] >= REPORT_S and computed:
            last[0] = now
            print(json.dumps({"event": "outputs", "done": done, "total": of}), flush=True)

    try:
        write_json_atomic(Path(argv[1]), fill(Job.read(Path(argv[0])), progress))
    except TestbedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
