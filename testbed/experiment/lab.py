"""An interactive lab: a topology with its nodes running, Mininet's command line, and commands of ours.

Started by `testbed shell` in a sandbox as `python -m testbed.experiment.lab FOLDER`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mininet.cli import CLI

from testbed.emulation.fabric import DIRECTIONS, LinkFabric
from testbed.emulation.network import Network
from testbed.errors import EmulationError, InputError, TestbedError
from testbed.experiment.directions import direction_specs
from testbed.experiment.nodes import NodeSet
from testbed.experiment.trial import Trial
from testbed.experiment.trials import context_for
from testbed.measurement.components import components
from testbed.measurement.records import HOPS, REQUESTS, read_table
from testbed.policies import make_policy
from testbed.schema.scenario import SHORT_PLANS, PlanSpec
from testbed.schema.units import parse_duration_s, parse_rate_bps
from testbed.workload.arrivals import generator

INFER_TIMEOUT_S = 60.0


class Lab(Trial):
    """The network and the nodes of a trial whose load is what the user asks for, one request at a time."""

    def __enter__(self) -> Lab:
        self._stack = ExitStack()
        try:
            self.fabric = LinkFabric(self.folder, seed=self._seed("network"), step_s=self.scenario.replay_step)
            self.nodes = NodeSet(self)
            self.nodes.prepare()
            self._stack.enter_context(self.nodes)
            specs = direction_specs(self.scenario, self._seed, self.devices)
            self.network = Network(self.scenario.topology, self.fabric, specs, self.nodes.host_class)
            self.network.build()
            self._stack.callback(self.fabric.stop)
            self.fabric.start()
            self.servers = [n for n in self.scenario.topology.node_names if n not in self.devices]
            self.nodes.start(self.network, self.servers)
            self.fabric.start_replay(time.monotonic_ns())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _seed(self, purpose: str, index: int = 0) -> int:
        return int(generator(self.scenario.seed, 0, purpose, index).integers(2**31))

    def rate(self, link: str, rate_bps: int | None, directions: Sequence[str]) -> None:
        """A fixed rate; None gives the topology's own rate or trace back. Raises InputError for an unknown link."""
        for direction in directions:
            self.fabric.set_rate(self._known(link), direction, rate_bps)

    def delay(self, link: str, delay_s: float, directions: Sequence[str]) -> None:
        """Another one-way delay. Raises InputError for an unknown link."""
        for direction in directions:
            self.fabric.set_impairment(self._known(link), direction, delay_s=delay_s)

    def link_down(self, link: str, down: bool, directions: Sequence[str]) -> None:
        """Cut a link, or mend it. Raises InputError for an unknown link."""
        self.network.set_link_down(self._known(link), down, directions)

    def fail(self, node: str) -> None:
        """Kill a server's program. Raises InputError for an unknown node."""
        self.nodes.crash(self._server(node))

    def heal(self, node: str) -> None:
        """Start a killed program again, and wait until it is ready."""
        self.nodes.restart(self._server(node))
        self.nodes.wait_ready(node)

    def infer(self, device: str, plan: PlanSpec) -> str:
        """Issue one request and say where its time went. Raises InputError, EmulationError."""
        if device not in self.devices:
            raise InputError("is no device", value=device, remedy=f"use one of {', '.join(self.devices)}")
        make_policy(plan, context_for(self.scenario, self.content, device, 0))
        self.policy = plan
        self.repeat += 1  # another sample
        work = self.nodes.work
        for file in work.glob(f"{device}.*"):
            file.unlink()
        (work / "start.json").unlink(missing_ok=True)
        self.nodes.prepare()
        self.nodes.start(self.network, [device])
        (work / "start.json.part").write_text(f'{{"start_ns": {time.monotonic_ns() + 200_000_000}}}')
        (work / "start.json.part").rename(work / "start.json")
        deadline = time.monotonic() + INFER_TIMEOUT_S
        container = self.nodes.containers[device]
        while container.poll() is None:
            if time.monotonic() > deadline:
                container.kill()
                raise EmulationError(f"{device} did not finish within {INFER_TIMEOUT_S:.0f} s; see {container.log_path}")
            time.sleep(0.02)
        if container.poll() != 0:
            raise EmulationError(f"the program of {device} ended with code {container.poll()}: {container.log_tail(3)}")
        return self._told(device)

    def _told(self, device: str) -> str:
        requests = read_table(self.nodes.work / f"{device}.requests.csv", REQUESTS)
        hops = read_table(self.nodes.work / f"{device}.hops.csv", HOPS)
        row = requests.iloc[-1]
        latency_s = (row["completed_ns"] - row["scheduled_ns"]) / 1e9
        if row["status"] != "ok":
            return f"{row['status']} ({row['error_type']}) after {latency_s * 1e3:.1f} ms, plan {row['plan']}"
        tier_of = {n: self.scenario.topology.tier_of(n).name for n in self.scenario.topology.node_names}
        parts = components(requests, hops, tier_of).iloc[-1]
        lines = [f"{latency_s * 1e3:.1f} ms: class {row['prediction']} (it is {row['label']}), plan {row['plan']}, "
                 f"answered by {row['final_node']}, {row['request_bytes']} bytes sent"]
        lines += [f"  {name:<24} {seconds * 1e3:8.1f} ms" for name, seconds in parts.items() if abs(seconds) >= 5e-5]
        return "\n".join(lines)

    def _known(self, link: str) -> str:
        if link not in self.network.links:
            raise InputError("there is no such link", value=link, remedy=f"use one of {', '.join(self.network.links)}")
        return link

    def _server(self, node: str) -> str:
        if node not in self.servers:
            raise InputError("is no server", value=node, remedy=f"use one of {', '.join(self.servers)}")
        return node


def plan_of(text: str, tiers: Sequence[str]) -> PlanSpec:
    """`edge` (all stages there), `device-only`, `split:3`, `early-exit:0.8`. Raises InputError."""
    name, _, value = text.partition(":")
    try:
        if name in tiers and not value:
            return PlanSpec.model_validate({"name": name, "plan": "steps", "steps": [{"tier": name}]})
        if name in SHORT_PLANS and not value:
            return PlanSpec.model_validate({"name": name, "plan": name})
        if name == "split" and value:
            return PlanSpec.model_validate({"name": name, "plan": name, "at": int(value) if value.isdigit() else value})
        if name == "early-exit" and value:
            return PlanSpec.model_validate({"name": name, "plan": name, "threshold": float(value)})
    except ValueError:
        pass
    raise InputError("is no plan", value=text, remedy=f"use a tier ({', '.join(tiers)}), {', '.join(SHORT_PLANS)}, "
                     "split:STAGE or early-exit:THRESHOLD")


class LabCLI(CLI):  # type: ignore[misc]  # Mininet has no types
    """Mininet's command line, and `link`, `links`, `fail`, `heal` and `infer`."""

    prompt = "testbed> "

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        super().__init__(lab.network.net)

    def do_link(self, line: str) -> None:
        """link NAME rate 2mbit|own [up|down] / link NAME delay 50ms [up|down] / link NAME down|up"""
        words = line.split()

        def act() -> None:
            if len(words) == 2 and words[1] in ("up", "down"):
                self.lab.link_down(words[0], words[1] == "down", DIRECTIONS)
                return
            if len(words) not in (3, 4) or words[1] not in ("rate", "delay") or (len(words) == 4 and words[3] not in DIRECTIONS):
                raise InputError("is not understood", value=line, remedy=str(LabCLI.do_link.__doc__))
            directions = DIRECTIONS if len(words) == 3 else (words[3],)
            try:
                parse = parse_rate_bps if words[1] == "rate" else parse_duration_s
                value = None if words[2] == "own" else parse(words[2])
            except ValueError as error:
                raise InputError(str(error).partition("|")[0], value=words[2], remedy="write 2mbit or 50ms") from None
            if words[1] == "rate":
                self.lab.rate(words[0], None if value is None else int(value), directions)
            elif value is None:
                raise InputError("belongs to rate", value="own", remedy="write a delay such as 50ms")
            else:
                self.lab.delay(words[0], float(value), directions)
        self._do(act)

    def do_links(self, line: str) -> None:
        """Names of the links, and what the topology says of them."""
        for name, link in self.lab.network.links.items():
            print(f"{name}  ({link.backend})")

    def do_fail(self, line: str) -> None:
        """fail NODE (kills its program) / fail LINK (cuts it)"""
        name = line.strip()
        self._do(lambda: self.lab.link_down(name, True, DIRECTIONS) if name in self.lab.network.links else self.lab.fail(name))

    def do_heal(self, line: str) -> None:
        """heal NODE / heal LINK: undo fail"""
        name = line.strip()
        self._do(lambda: self.lab.link_down(name, False, DIRECTIONS) if name in self.lab.network.links else self.lab.heal(name))

    def do_infer(self, line: str) -> None:
        """infer [DEVICE] [TIER | device-only | split:STAGE | early-exit:THRESHOLD]: one request, and where its time went"""
        tiers = [t.name for t in self.lab.scenario.topology.tiers]
        words = line.split()
        device = words.pop(0) if words and words[0] in self.lab.scenario.topology.node_names else self.lab.devices[0]
        last = next((t for t in tiers if t != self.lab.scenario.device_tier), tiers[0])

        def act() -> None:
            if len(words) > 1:
                raise InputError("is not understood", value=line, remedy=str(LabCLI.do_infer.__doc__))
            print(self.lab.infer(device, plan_of(words[0], tiers) if words else plan_of(last, tiers)))
        self._do(act)

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except TestbedError as error:
            print(f"error: {error}")
        sys.stdout.flush()


def _lead_session() -> None:
    """Make the terminal on standard input this session's own; a child goes on, and we end with its exit code."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)


def _to_foreground() -> None:
    """Leave the process group of the links' helpers, so that Ctrl-C reaches the command line and not them."""
    os.setpgid(0, 0)
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, before)


def main(argv: Sequence[str]) -> int:
    """Entry point: build, take commands until the end, and leave."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    terminal = os.isatty(0)
    if terminal:
        _lead_session()
    folder = Path(argv[0])
    try:
        with Lab(folder) as lab:
            if terminal:
                _to_foreground()
            print(f"{len(lab.scenario.topology.node_names)} nodes, {len(lab.network.links)} links; `help` lists the commands, "
                  "`exit` ends. Ours: link, links, fail, heal, infer", flush=True)
            LabCLI(lab)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, subprocess.SubprocessError):
        traceback.print_exc()
        return 1
    return 0


def lab_spec(trial: Any, engine: str) -> dict[str, Any]:
    """trial.json of a lab, from a planned trial."""
    return {"container_run_id": f"{trial.scenario.name[:20]}-{trial.config_hash}-{os.getpid()}", "run_id": trial.run_id,
            "repeat": 0, "config": trial.config(), "files": dict(trial.content_sha256), "engine": engine, "command": sys.argv,
            "source": str(trial.source.resolve()), "scenario": trial.scenario.name, "config_hash": trial.config_hash,
            "sweep_point": {}, "own_model": None if trial.own_model is None else trial.own_model.model_dump(mode="json")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
