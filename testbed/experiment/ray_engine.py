"""Spreads the trials of a sweep over the machines of a Ray cluster; results come back into the run's folder.

Every machine (Ray node) with a CPU gets one worker process, which runs one trial at a time: two trials on one machine would
disturb each other. A trial travels as its resolved configuration and the files that it uses (see bundle.py), so
machines need no shared file system; they need testbed in the same version, what `testbed doctor` asks for, and data sets
that are known by name.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed.errors import EmulationError, MissingToolError, TestbedError
from testbed.experiment.bundle import Recipe, pack, plan_again, replace_strings, unzip, zip_folder
from testbed.experiment.runner import Progress, Result, run_experiment, split_complete
from testbed.experiment.store import COMPLETE, TrialFolder, run_folder
from testbed.experiment.trials import Experiment, Trial
from testbed.measurement.atomic import write_json_atomic


class Worker:
    """Lives in a Ray worker process and runs the trials that it is given, one after another."""

    def about(self) -> dict[str, str]:
        """Name of the machine and of its Ray node, and versions."""
        node = _ray().get_runtime_context().get_node_id()
        return {"host": f"{platform.node()}/{node[:8]}", "testbed": importlib.metadata.version("testbed"),
                "python": platform.python_version()}

    def run(self, content: bytes, recipe: dict[str, Any], config_hash: str) -> dict[str, Any]:
        """Run one trial; returns `{error}` or `{error: None, duration_s, archive}` with the trial's folder as a zip archive.

        content: zip archive of a content folder. Paths of this machine are replaced by those of the recipe.
        """
        scratch = Path(tempfile.mkdtemp(prefix="testbed-ray-"))
        try:
            unzip(content, scratch / "content")
            wanted = Recipe(**{**recipe, "source": Path(recipe["source"])})
            trial, places = plan_again(wanted, scratch / "scenario.yaml", scratch / "content")
            if trial.config_hash != config_hash:
                return {"error": f"{platform.node()} makes another experiment of it (hash {trial.config_hash} there, "
                                 f"{config_hash} here): its version of testbed or of a data set is another"}
            result, = run_experiment(Experiment(trial.scenario.name, trial.source, (trial,)), scratch / "runs")
            folder = result.folder.path
            if result.error is not None:
                log = folder / "logs" / "trial.log"
                return {"error": result.error, "log": log.read_text()[-20_000:] if log.is_file() else ""}
            duration_s = result.folder.status().get("duration_s")
            for name in ("manifest.json", "fabric.json"):
                file = folder / name
                write_json_atomic(file, replace_strings(json.loads(file.read_text()), places))
            for name in ("status.json", "trial.json", "lock"):
                (folder / name).unlink()
            return {"error": None, "duration_s": duration_s, "archive": zip_folder(folder)}
        except TestbedError as error:
            return {"error": str(error)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run_on_ray(experiment: Experiment, root: Path, *, resume: bool = True,
               on_progress: Progress = lambda trial, event: None) -> list[Result]:
    """As `run_experiment`, on the Ray cluster of RAY_ADDRESS, else on the one that runs here, else on one that is started.

    Raises MissingToolError without Ray, EmulationError when no worker is left, and what `run_experiment` raises.
    """
    ray = _ray()
    run = run_folder(root, experiment.name, fresh=not resume)
    done, todo = split_complete(experiment, run, on_progress)
    if todo:
        try:
            # the dashboard would open a port; log lines of workers would break into the progress
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning", ignore_reinit_error=True)
            _Spread(ray, run, on_progress).run(todo, done)
        finally:
            ray.shutdown()
    return [done[t.run_id] for t in experiment.trials]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingToolError("--engine ray needs Ray, which is not installed",
                               remedy="pip install 'testbed[ray]' (in a clone: .venv/bin/pip install -c constraints.txt "
                                      "ray)") from None
    return ray


class _Spread:
    """Gives every free worker the next trial until all are done."""

    def __init__(self, ray: Any, run: Path, on_progress: Progress) -> None:
        self._ray, self._run, self._on_progress = ray, run, on_progress
        self._contents: dict[str, Any] = {}  # packed once, kept in Ray's object store
        self._names: dict[Any, str] = {}
        self._workers = self._start_workers()

    def _start_workers(self) -> list[Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(Worker)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in self._ray.nodes()
                  if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        workers = [remote.options(num_cpus=1, scheduling_strategy=place).remote() for place in places]
        if not workers:
            raise EmulationError("the Ray cluster has no machine with a free CPU")
        ours = importlib.metadata.version("testbed")
        for worker in workers:
            about = self._ray.get(worker.about.remote())
            if about["testbed"] != ours:
                raise EmulationError(f"{about['host']} has testbed {about['testbed']}, here it is {ours}; install the same "
                                     "version")
            self._names[worker] = about["host"]
        return workers

    def run(self, todo: list[Trial], done: dict[str, Result]) -> None:
        """Run all of `todo`; results are put into `done`."""
        waiting, free = list(reversed(todo)), list(self._workers)
        running: dict[Any, tuple[Trial, TrialFolder, Any, ExitStack]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    worker, trial = free.pop(0), waiting.pop()
                    folder, lock = TrialFolder.of(self._run, trial), ExitStack()
                    lock.enter_context(folder.lock())
                    folder.begin(trial)
                    recipe = Recipe.of_trial(trial)
                    fields = {**asdict(recipe), "source": str(recipe.source)}
                    ref = worker.run.remote(self._content(recipe), fields, trial.config_hash)
                    running[ref] = trial, folder, worker, lock
                    self._on_progress(trial, {"event": "sent", "worker": self._names[worker]})
                if not running:
                    raise EmulationError("no worker of the Ray cluster is left")
                for ref in self._ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                    trial, folder, worker, lock = running.pop(ref)
                    answer, alive = self._answer(ref)
                    if alive:
                        free.append(worker)
                    done[trial.run_id] = self._finish(trial, folder, answer, self._names[worker])
                    lock.close()
        except BaseException as error:
            for trial, folder, _, lock in running.values():
                folder.end(trial, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                           error=f"{type(error).__name__}: {error}")
                lock.close()
            raise
        finally:
            for worker in self._workers:
                self._ray.kill(worker)  # its sandbox ends with it

    def _content(self, recipe: Recipe) -> Any:
        key = json.dumps(sorted(recipe.files.items()))
        if key not in self._contents:
            with tempfile.TemporaryDirectory(prefix="testbed-ray-") as scratch:
                pack([recipe], Path(scratch))
                self._contents[key] = self._ray.put(zip_folder(Path(scratch)))
        return self._contents[key]

    def _answer(self, ref: Any) -> tuple[dict[str, Any], bool]:
        """What the worker said, and whether it still lives."""
        try:
            answer: dict[str, Any] = self._ray.get(ref)
            return answer, True
        except self._ray.exceptions.RayActorError as error:
            return {"error": f"the worker died: {str(error).splitlines()[0]}"}, False
        except self._ray.exceptions.RayError as error:
            return {"error": str(error).strip().splitlines()[-1]}, True

    def _finish(self, trial: Trial, folder: TrialFolder, answer: dict[str, Any], worker: str) -> Result:
        error = answer["error"]
        if error is not None:
            (folder.path / "logs" / "trial.log").write_text(answer.get("log") or f"{error}\n")
            folder.end(trial, "failed", error=error)
            self._on_progress(trial, {"event": "failed", "error": error})
            return Result(trial, folder, False, None, error)
        unzip(answer["archive"], folder.path)
        source, files = str(trial.source.resolve()), dict(trial.content_sha256)
        manifest = json.loads((folder.path / "manifest.json").read_text())
        ours = {"config": trial.config(), "files": files, "source": source, "command": sys.argv, "sweep_point": dict(trial.point)}
        write_json_atomic(folder.path / "manifest.json", {**manifest, **ours, "worker": worker})
        write_json_atomic(folder.path / "trial.json", {
            **ours, "own_model": Recipe.of_trial(trial).own_model, "run_id": trial.run_id,
            "scenario": trial.scenario.name, "config_hash": trial.config_hash, "repeat": trial.repeat,
            "policy": trial.policy.name, "engine": "ray", "worker": worker})
        verdict, duration_s = manifest["validity"]["verdict"], answer["duration_s"]
        folder.end(trial, COMPLETE, verdict=verdict, duration_s=duration_s)
        self._on_progress(trial, {"event": "complete", "verdict": verdict, "duration_s": duration_s})
        return Result(trial, folder, False, verdict, None)
