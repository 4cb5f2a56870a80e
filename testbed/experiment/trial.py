"""One trial, inside its sandbox: build the network, start the nodes, calibrate, run the load, merge, judge.

Started by the runner as `python -m testbed.experiment.trial FOLDER`; events go to standard output as JSON lines.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testbed.emulation.fabric import LinkFabric
from testbed.emulation.network import Network
from testbed.errors import EmulationError, TestbedError
from testbed.experiment import calibrate, gather, machine
from testbed.experiment.content import Content
from testbed.experiment.directions import Specs, calibration_target, direction_specs
from testbed.experiment.events import EventSchedule
from testbed.experiment.nodes import NodeSet
from testbed.experiment.trials import devices_of
from testbed.inference.catalogue import ModelInfo
from testbed.measurement.nominal import model_accuracy
from testbed.schema.scenario import PlanSpec, PolicySpec, Scenario
from testbed.workload.arrivals import generator

START_DELAY_S = 0.5  # between telling the devices and the common start instant
DRAIN_MARGIN_S = 5.0
TICK_S = 0.25
LIVE_TICKS = 2  # a live view gets links and nodes on every second tick


class Trial:
    """State of the running trial; the folder's trial.json says what to run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.spec: dict[str, Any] = json.loads((folder / "trial.json").read_text())
        self.scenario = Scenario.model_validate(self.spec["config"])
        self.policy: PlanSpec | PolicySpec = self.scenario.policies[0]
        self.repeat = int(self.spec["repeat"])
        entry = self.spec.get("own_model")  # as it was when the run was planned: built, checked and measured once
        self.content = Content.of(self.scenario, Path(self.spec["source"]), ModelInfo.model_validate(entry) if entry else None)
        changed = {n for n, h in self.content.sha256.items() if self.spec["files"].get(n, h) != h}
        if changed:
            raise EmulationError(f"{', '.join(sorted(changed))} changed since the run was planned; start it again")
        self.devices = devices_of(self.scenario)

    def run(self) -> str:
        """The whole trial; returns the verdict. Raises TestbedError."""
        began = time.monotonic()
        started = datetime.datetime.now(datetime.UTC)
        host = machine.host()
        with ExitStack() as stack:
            _phase("outputs")
            nodes = NodeSet(self)
            outputs = nodes.prepare()
            if outputs is not None:
                _emit("outputs_ready", **outputs)
            _phase("network")
            fabric = LinkFabric(self.folder, seed=self._seed("network"), step_s=self.scenario.replay_step)
            stack.enter_context(nodes)
            specs = direction_specs(self.scenario, self._seed, self.devices)
            network = Network(self.scenario.topology, fabric, specs, nodes.host_class)
            network.build()
            stack.callback(fabric.stop)
            fabric.start()
            _phase("nodes")
            nodes.start(network)
            calibrated = self._calibrate(network, specs)
            events = EventSchedule(self.scenario.events, network, fabric, nodes)
            start_ns = self._load(fabric, nodes, events)
            _phase("judge")
            sdn = network.sdn.finish() if network.sdn is not None else None
            summary = fabric.stop()
            node_calibration = nodes.calibration()
            nodes.stop()
        manifest = {
            "schema_version": 1, **{k: self.spec[k] for k in ("run_id", "scenario", "config_hash", "repeat", "sweep_point",
                                                              "config", "command", "source")},
            "seed": self.scenario.seed, "policy": self.policy.name,
            "started_utc": started.isoformat(timespec="seconds"),
            "finished_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "clock": {"start_ns": start_ns, "unix_ns_at_start": start_ns + time.time_ns() - time.monotonic_ns()},
            "versions": machine.versions(), "host": host, "links": gather.links(self.scenario, network, fabric, specs),
            "nodes": nodes.manifest(network), "events": events.log, "sdn": sdn, "outputs": outputs,
            "own_model": self.spec.get("own_model"), "model_accuracy": model_accuracy(self.content.models.values()),
            "calibration": {"links": calibrated, "nodes": node_calibration},
            "files": dict(self.content.sha256),
        }
        verdict = gather.finish(self.folder, manifest, summary, nodes.machine_rows, self.devices)
        _emit("finished", verdict=verdict, seconds=time.monotonic() - began)
        return verdict

    def _seed(self, purpose: str, index: int = 0) -> int:
        return int(generator(self.scenario.seed, self.repeat, purpose, index).integers(2**31))

    def _calibrate(self, network: Network, specs: Specs) -> list[dict[str, Any]]:
        settings = self.scenario.calibration
        if settings.mode == "off":
            return []
        _phase("calibrate")
        targets = [calibration_target(name, network, specs) for name in network.links]

        def popen(node: str, argv: Sequence[str]) -> subprocess.Popen[str]:
            process: subprocess.Popen[str] = network.hosts[node].popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            return process

        results = calibrate.calibrate_links(targets, popen, time_s=settings.iperf_time, pings=settings.pings)
        if settings.mode == "stop":
            for r in results:
                asked, measured = r["asked_rate_bps"], r["measured_rate_bps"]
                if measured is not None and abs(measured - asked) > settings.rate_tolerance * asked:
                    raise EmulationError(f"link {r['link']} {r['direction']}: {measured / 1e6:.3f} Mbit/s measured, "
                                         f"{asked / 1e6:.3f} asked; the machine cannot be this link (calibration: mode: stop)")
                if r["measured_rtt_s"] is None or abs(r["measured_rtt_s"] - r["asked_rtt_s"]) > settings.rtt_tolerance:
                    raise EmulationError(f"link {r['link']}: round trip {r['measured_rtt_s']} s measured, "
                                         f"{r['asked_rtt_s']} s asked (calibration: mode: stop)")
        return results

    def _load(self, fabric: LinkFabric, nodes: NodeSet, events: EventSchedule) -> int:
        """One start instant for devices, traces and events; returns it when every device has ended."""
        _phase("load")
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        fabric.start_replay(start_ns)
        nodes.begin(start_ns)
        events.start(start_ns)
        load = self.scenario.load
        count = load.requests_per_device + load.warmup_requests
        last_s = nodes.last_scheduled_s
        if load.arrivals == "closed" or load.queue.workers is not None:  # one after the other, each as long as it may take
            last_s += count * load.timeout / (load.queue.workers or 1)
        limit_s = START_DELAY_S + last_s + load.timeout + DRAIN_MARGIN_S
        total, deadline = count * len(self.devices), time.monotonic() + limit_s * (1 + self.policy.retries)
        ticks = 0
        while not nodes.devices_done():
            if time.monotonic() > deadline:
                raise EmulationError(f"the devices did not finish within {limit_s:.0f} s; see {self.folder}/logs")
            _emit("progress", done=nodes.requests_done(), total=total)
            ticks += 1
            if self.spec.get("live") and ticks % LIVE_TICKS == 0:
                _emit("live", links=fabric.newest_rows(), usage=nodes.newest_usage())
            time.sleep(TICK_S)
        events.stop()
        return start_ns


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _phase(phase: str) -> None:
    _emit("phase", phase=phase)


def main(argv: Sequence[str]) -> int:
    """Entry point; the exit code is 0 when the trial ended, valid or not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        Trial(Path(argv[0])).run()
    except TestbedError as error:
        traceback.print_exc()
        _emit("error", error=str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _emit("error", error=f"{type(error).__name__}: {error} (a defect of the testbed; the traceback is in "
                             f"{Path(argv[0]) / 'logs' / 'trial.log'})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
