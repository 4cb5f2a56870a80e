"""The programs of a trial: a node server per serving host, a device program per device, in containers or processes."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import testbed
from testbed.emulation.container import Container, Engine, Limits, Mount, NodeNamespace, choose_engine
from testbed.emulation.network import Network
from testbed.emulation.node_host import NodeHost
from testbed.errors import EmulationError
from testbed.experiment.content import codecs_of_policy, regressions_of
from testbed.experiment.machine import MachinePoll
from testbed.experiment.outputs import Job, fill_in_process, walks_of
from testbed.experiment.trials import context_for
from testbed.experiment.truth import truth_of
from testbed.inference.data import load_dataset
from testbed.inference.memo import outputs_folder
from testbed.measurement.atomic import write_json_atomic
from testbed.policies import Policy, make_policy
from testbed.policies.knowledge import to_json
from testbed.policies.static import Fixed
from testbed.schema.files import is_profile_path
from testbed.schema.scenario import PolicySpec
from testbed.workload.arrivals import deadlines_s, generator, sample_indices, schedule_ns
from testbed.workload.inputs import write_inputs

if TYPE_CHECKING:
    from testbed.experiment.trial import Trial

PORT = 8000
READY_TIMEOUT_S = 120.0


class NodeSet:
    """Starts, watches, faults and stops the programs. A context manager: leaving it kills what still runs."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.topology = trial.scenario.topology
        self._data = load_dataset(trial.scenario.dataset, image_size=trial.scenario.image_size)
        self.work = trial.folder / "work"
        self.work.mkdir(exist_ok=True)
        self._catalogue = trial.content.catalogue_file(self.work)
        self.engines: dict[str, Engine] = {}
        self.containers: dict[str, Container] = {}
        self.started_again: dict[str, int] = {}
        self._given: dict[str, NodeNamespace | None] = {}
        self.last_scheduled_s = 0.0
        self._poll = MachinePoll(self._usage_rows)
        self.machine_rows: list[dict[str, Any]] = []
        self._expected_dead: set[str] = set()
        self._network: Network | None = None

    def __enter__(self) -> NodeSet:
        run_id = self.trial.spec["container_run_id"]
        for runtime in dict.fromkeys(t.runtime for t in self.topology.tiers):
            wanted = self.trial.spec.get("engine", "auto") if runtime == "container" else "process"
            engine = choose_engine(wanted, run_id=run_id)
            engine.prepare()
            self.engines[runtime] = engine
        for node in self.topology.node_names:
            self._given[node] = self.engine(node).create_netns(node)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for engine in self.engines.values():
            engine.close()

    def engine(self, node: str) -> Engine:
        """The engine that runs this node's program."""
        return self.engines[self.topology.tier_of(node).runtime]

    def host_class(self, node: str) -> tuple[type[NodeHost], dict[str, Any]]:
        """How Mininet makes this node's host."""
        return NodeHost, {"netns": self._given[node]}

    # ---- life ------------------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any] | None:
        """Write the devices' samples, and compute what memoised nodes will look up; None when nothing is memoised.

        Raises EmulationError.
        """
        samples = {device: self._samples(device).tolist() for device in self.trial.devices}
        write_inputs(self.work, self._data, [i for indices in samples.values() for i in indices])
        memoised = {node for tier in self.topology.tiers if tier.compute.outputs == "memoised" for node in tier.nodes}
        if not memoised:
            return None
        plans: list[tuple[str, list[dict[str, Any]], list[int]]] = []
        models, every_cut = set(), set()
        for device, indices in samples.items():
            policy = self._policy(device)
            if not policy.all_foreseen:  # it may cut anywhere
                models |= set(self._models())
                every_cut |= set(indices)
            foreseen = [(p.wire(), p.fallback_wire(), p.backup_wire()) for p in policy.plans()]
            for steps in itertools.chain(*foreseen):
                if any(step["node"] in memoised for step in steps):
                    plans.append((device, steps, indices))
                    models |= {step["model"] for step in steps}
        job = Job(self._catalogue, outputs_folder(), self.work,
                  tuple(sorted(models | set(self._models()))), walks_of(plans), tuple(sorted(every_cut)))
        return fill_in_process(job, self.work)

    def start(self, network: Network, names: Sequence[str] | None = None) -> None:
        """Start every program (or those of `names`) and wait until all are ready.

        Raises EmulationError with the log's last lines.
        """
        self._network = network
        names = self.topology.node_names if names is None else names
        for node in names:
            config = self._device_config(node) if node in self.trial.devices else self._node_config(node)
            write_json_atomic(self._config_file(node), config)
            self._launch(node)
        for node in names:
            self.wait_ready(node)

    def wait_ready(self, node: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Block until the program says that it is ready. Raises EmulationError when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._ready_file(node).exists():
            container = self.containers[node]
            if container.poll() is not None:
                raise EmulationError(f"the program of {node} ended with code {container.poll()} before it was ready: "
                                     f"{' / '.join(container.log_tail(3).splitlines())}")
            if time.monotonic() > deadline:
                raise EmulationError(f"{node} was not ready within {timeout_s:.0f} s; see {container.log_path}")
            time.sleep(0.02)

    def begin(self, start_ns: int) -> None:
        """Give all devices the one start instant, and begin to poll."""
        write_json_atomic(self.work / "start.json", {"start_ns": start_ns})
        self._poll.start()

    def devices_done(self) -> bool:
        """True when every device program has ended. Raises EmulationError when one failed, or a node died by itself."""
        for node, container in self.containers.items():
            code = container.poll()
            if code is None or node in self._expected_dead:
                continue
            if node not in self.trial.devices or code != 0:
                raise EmulationError(f"the program of {node} ended by itself with code {code}: "
                                     f"{' / '.join(container.log_tail(3).splitlines())}")
        return all(self.containers[d].poll() is not None for d in self.trial.devices)

    def requests_done(self) -> int:
        """Requests that the devices have finished so far."""
        done = 0
        for device in self.trial.devices:
            try:
                done += int((self.work / f"{device}.done").read_text() or 0)
            except (OSError, ValueError):
                continue
        return done

    def newest_usage(self) -> list[dict[str, Any]]:
        """The last usage row of each node that runs, and of the machine."""
        rows = self._poll.rows[-2 * (1 + len(self.containers)):]
        return list({row["node"]: row for row in rows}.values())

    def stop(self) -> None:
        """End the polls and the programs."""
        self.machine_rows = self._poll.stop()
        for container in self.containers.values():
            container.stop()

    # ---- faults ----------------------------------------------------------------------------------------------

    def crash(self, node: str) -> None:
        """SIGKILL the node's program; its network namespace stays."""
        self._expected_dead.add(node)
        self.containers[node].kill()
        self._ready_file(node).unlink(missing_ok=True)

    def restart(self, node: str) -> None:
        """Start a crashed program again in the same namespace."""
        self._launch(node)
        self._expected_dead.discard(node)

    def pause(self, node: str) -> None:
        """Freeze the node's program."""
        self.containers[node].pause()

    def resume(self, node: str) -> None:
        """Let a frozen program go on."""
        self.containers[node].unpause()

    # ---- facts -----------------------------------------------------------------------------------------------

    def manifest(self, network: Network) -> list[dict[str, Any]]:
        """What ran where."""
        rows = []
        for tier in self.topology.tiers:
            engine = self.engines[tier.runtime]
            for node in tier.nodes:
                rows.append({"name": node, "tier": tier.name, "address": network.addresses[node],
                             "runtime": engine.runtime, "engine": f"{engine.name} {engine.version}",
                             "image": tier.image if engine.runtime == "container" else None,
                             "compute": tier.compute.profile or "real", "outputs": tier.compute.outputs,
                             "cpus": tier.cpus, "memory_bytes": tier.memory,
                             "role": "device" if node in self.trial.devices else "server"})
        return rows

    def calibration(self) -> list[dict[str, Any]]:
        """What each program measured of its own compute when it was ready."""
        rows = []
        for node in self.topology.node_names:
            try:
                rows.append({"node": node, **json.loads(self._ready_file(node).read_text() or "{}")})
            except (OSError, ValueError):
                continue
        return rows

    def _usage_rows(self) -> list[dict[str, Any]]:
        rows = []
        for node, container in self.containers.items():
            try:
                usage = container.usage()
            except EmulationError:
                continue  # ended, by itself at the end of the load or by a fault event
            rows.append({"t_ns": time.monotonic_ns(), "node": node, "cpu_usage_s": usage.cpu_usage_s,
                         "cpu_throttled_s": usage.cpu_throttled_s, "memory_bytes": usage.memory_bytes})
        return rows

    # ---- configurations --------------------------------------------------------------------------------------

    def _config_file(self, node: str) -> Path:
        return self.work / f"{node}.json"

    def _ready_file(self, node: str) -> Path:
        return self.work / f"{node}.ready"

    def _launch(self, node: str) -> None:
        assert self._network is not None
        tier = self.topology.tier_of(node)
        program = "testbed.workload.device" if node in self.trial.devices else "testbed.serving.node"
        self.containers[node] = self.engine(node).start(
            node,
            netns=self._network.hosts[node].netns,
            argv=[sys.executable, "-m", program, "--config", str(self._config_file(node)), "--die-with-stdin"],
            log_path=self.trial.folder / "logs" / f"{node}.log",
            mounts=self._mounts(),
            env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                 "HOME": "/tmp"},
            limits=Limits(cpus=tier.cpus, memory_bytes=tier.memory) if tier.cpus or tier.memory else None,
            image=tier.image,
        )

    def _mounts(self) -> list[Mount]:
        package = Path(testbed.__file__).parent
        folders = {package, self.trial.content.catalogue.path.parent, self.trial.content.profiles}
        folders |= {Path(tier.compute.profile).parent for tier in self.topology.tiers
                    if tier.compute.profile is not None and is_profile_path(tier.compute.profile)}
        folders |= {Path(name.rpartition(":")[0]).parent for name in self.trial.content.sha256 if ".py:" in name}
        folders |= {Path(file).parent for file in regressions_of(self.trial.policy)}
        writable = {self.work}
        if any(tier.compute.outputs == "memoised" for tier in self.topology.tiers):
            writable.add(outputs_folder())
        return [*(Mount(folder, read_only=False) for folder in sorted(writable)), *(Mount(folder) for folder in sorted(folders))]

    def _node_config(self, node: str) -> dict[str, Any]:
        assert self._network is not None
        tier = self.topology.tier_of(node)
        memoised = {"outputs": str(outputs_folder())} if tier.compute.outputs == "memoised" else {}
        residency = {} if tier.residency is None else {"residency": dict(tier.residency)}
        return {
            "name": node, "tier": tier.name, "host": "0.0.0.0", "port": PORT,
            "peers": {n: f"{a}:{PORT}" for n, a in self._network.addresses.items() if n != node},
            "tiers": {n: self.topology.tier_of(n).name for n in self.topology.node_names},
            "tier_order": [t.name for t in self.topology.tiers],
            "catalogue": str(self._catalogue), "models": self._models(),
            # a policy that decides as it runs may never use the learned codecs, which would load torch
            "codecs": codecs_of_policy(self.trial.policy, self.trial.content.codecs, [] if memoised else self._models()),
            "profiles": str(self.trial.content.profiles), "compute": tier.compute.profile or "real", **memoised, **residency,
            "telemetry": str(self.work / f"{node}.nodes.csv"), "ready": str(self._ready_file(node)),
        }

    def _models(self) -> list[str]:
        names = {self.trial.content.model}
        policy = self.trial.policy
        model = getattr(policy, "model", None)
        names |= {model} if model else set()
        names |= {s.model for s in getattr(policy, "steps", []) if s.model}
        if isinstance(policy, PolicySpec):
            names |= set(self._policy(self.trial.devices[0]).models())
        return sorted(names)

    def _policy(self, device: str) -> Policy:
        return make_policy(self.trial.policy, context_for(self.trial.scenario, self.trial.content, device, self.trial.repeat))

    def _samples(self, device: str) -> NDArray[np.int64]:
        """Indices into the data set of the samples that this device sends, in order."""
        load, index = self.trial.scenario.load, self.trial.devices.index(device)
        count = load.warmup_requests + load.requests_per_device
        return sample_indices(len(self._data), count, generator(self.trial.scenario.seed, self.trial.repeat, "samples", index))

    def _device_config(self, device: str) -> dict[str, Any]:
        trial, load = self.trial, self.trial.scenario.load
        index = trial.devices.index(device)
        count = load.warmup_requests + load.requests_per_device
        seed, repeat = trial.scenario.seed, trial.repeat
        schedule = schedule_ns(load.arrivals, load.rate_per_s, count, generator(seed, repeat, "schedule", index))
        samples = self._samples(device)
        self.last_scheduled_s = max(self.last_scheduled_s, float(schedule[-1]) / 1e9)
        context = context_for(trial.scenario, trial.content, device, repeat)
        policy = self._policy(device)
        # a fixed plan that computes nothing here needs neither torch nor weights on the device
        local = not isinstance(policy, Fixed) or any(s.node == device for s in (*policy.plan.steps, *policy.plan.fallback))
        names = self.topology.node_names
        routes = {f"{a}>{b}": "+".join(self.topology.path_links(a, b)) for a in names for b in names
                  if a != b and (a not in trial.devices or a == device) and (b not in trial.devices or b == device)}
        return {
            **self._node_config(device), "models": self._models() if local else [], "run_id": trial.spec["run_id"],
            "inputs": str(self.work), "policy": trial.policy.model_dump(mode="json"),
            "policy_name": trial.policy.name, "context": to_json(context),
            "arrivals": load.arrivals, "schedule_ns": schedule.tolist(), "samples": samples.tolist(),
            "warmup_requests": load.warmup_requests, "timeout_s": load.timeout, "queue": load.queue.model_dump(),
            "deadlines_s": deadlines_s(load, generator(seed, repeat, "deadlines", index)).tolist(),
            "routes": routes, "start": str(self.work / "start.json"), "done": str(self.work / f"{device}.done"),
            "requests": str(self.work / f"{device}.requests.csv"), "hops": str(self.work / f"{device}.hops.csv"),
            "decisions": str(self.work / f"{device}.decisions.jsonl"), "truth": self._truth(policy),
        }

    def _truth(self, policy: Policy) -> str | None:
        """File with what the links will carry, for a policy that may know."""
        if not policy.clairvoyant:
            return None
        path = self.work / "truth.npz"
        if not path.exists():
            truth_of(self.trial.scenario, self.trial.repeat, 0).save(path)
        return str(path)
