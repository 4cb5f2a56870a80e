"""The program of a device: issues requests on a seeded schedule, lets the policy decide, runs the plan, writes records.

Started in the device's host as `python -m testbed.workload.device --config FILE`. All timing is CLOCK_MONOTONIC.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.inference.catalogue import load_catalogue
from testbed.inference.codecs import Registry
from testbed.inference.compute import load_profile
from testbed.policies import Context, Plan, make_policy
from testbed.policies.knowledge import from_json
from testbed.policies.registry import with_defaults
from testbed.policies.truth import Truth
from testbed.schema.scenario import PlanSpec, PolicySpec
from testbed.serving.background import freeze_garbage
from testbed.serving.backup import Race, execute_with_backup
from testbed.serving.client import NodeClient
from testbed.serving.coding import Coder
from testbed.serving.execute import PlanError, PlanOutcome, execute_plan
from testbed.serving.worker import make_worker
from testbed.workload.dispatch import Dispatcher, Request, Tasks
from testbed.workload.inputs import Inputs
from testbed.workload.learning import Knowledge, PolicyError, ask, outcome_of
from testbed.workload.probing import Prober
from testbed.workload.recording import Recorder

_SPIN_S = 0.0015  # the event loop's timer is good to a millisecond; the rest of the wait is polled


def main(argv: list[str] | None = None) -> int:
    """Entry point; ends with 0 when every request has an end status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--die-with-stdin", action="store_true", help="end when standard input ends")
    options = parser.parse_args(argv)
    config = json.loads(options.config.read_text())
    device = Device(config)
    if options.die_with_stdin:
        threading.Thread(target=_die_with_stdin, daemon=True).start()
    asyncio.run(device.run())
    return 0


def _die_with_stdin() -> None:
    import os

    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(70)


class Device:
    """One device: its worker, its policy, its schedule."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.name: str = config["name"]
        self.context = from_json(Context, config["context"])
        kind = PlanSpec if "plan" in config["policy"] else PolicySpec
        self.spec = kind.model_validate(config["policy"])
        self.policy = make_policy(self.spec, self.context)
        self.inputs = Inputs(config["inputs"])
        profile = load_profile(config["compute"], config["profiles"])
        self.worker = make_worker(load_catalogue(config["catalogue"]), config["models"], profile, config.get("outputs"),
                                  config.get("residency"))
        self.coder = Coder(Registry(config["catalogue"]), profile)
        self.knowledge = Knowledge(self.name, self.worker, self.context.min_accuracy)
        self.inflight = 0
        self.late = Tasks()

    async def run(self) -> None:
        """Warm up, wait for the start instant, issue all requests, wait for every end status."""
        config = self.config
        await self.worker.warm_up()
        self.worker.settle()
        self.coder.codecs.warm_up(config["codecs"])
        truth = Truth.load(Path(config["truth"])) if self.policy.clairvoyant else None
        freeze_garbage()
        async with NodeClient(self.name, config["peers"], config["tiers"], config["tier_order"]) as client:
            self.client = client
            with Recorder(config, self.inputs) as self.recorder:
                self.recorder.policy(config["policy"], self.context)
                Path(config["ready"]).write_text("{}")
                start_ns = await self._start_instant()
                if truth is not None:
                    self.policy.reveal(truth.started(start_ns))
                async with Prober(self.policy, self.context, client, self.knowledge, self.recorder):
                    await self._load(start_ns)
                    await self.late.drain()
        self.worker.close()
        self.coder.close()

    async def _start_instant(self) -> int:
        path = Path(self.config["start"])
        while not path.exists():
            await asyncio.sleep(0.01)
        start_ns = int(json.loads(path.read_text())["start_ns"])
        await sleep_until(start_ns)
        return start_ns

    async def _load(self, start_ns: int) -> None:
        """Issue all requests; returns when each is answered."""
        config = self.config
        if config["arrivals"] == "closed":
            for i in range(len(config["samples"])):
                request = self._issue(i, time.monotonic_ns() if i else start_ns)
                await self._begin(request, request.issued_ns)
            return
        dispatcher = Dispatcher(self._begin, config["queue"]["order"], config["queue"]["workers"])
        for i, offset_ns in enumerate(config["schedule_ns"]):
            await sleep_until(start_ns + offset_ns)
            dispatcher.submit(self._issue(i, start_ns + offset_ns))
        await dispatcher.drain()

    def _issue(self, index: int, scheduled_ns: int) -> Request:
        self.inflight += 1
        return Request(index, f"{self.name}-{index:05d}", scheduled_ns, time.monotonic_ns(), self.config["deadlines_s"][index])

    def _begin(self, request: Request, taken_ns: int) -> Coroutine[Any, Any, None]:
        """Decide a request now; what is left is to wait for its answer."""
        observation = self.knowledge.observation(request, taken_ns, self.inflight - 1)
        about = request.request_id
        plan = with_defaults(ask(self.spec.name, about, self.policy.decide, observation), self.spec, self.context)
        decided_ns = time.monotonic_ns()
        self.recorder.decide(observation, plan, ask(self.spec.name, about, self.policy.scores))
        return self._execute(request, taken_ns, decided_ns, plan)

    async def _execute(self, request: Request, taken_ns: int, decided_ns: int, plan: Plan) -> None:
        try:
            race = await self._carry_out(request, decided_ns, plan)
        except PlanError as error:
            raise PolicyError(self.spec.name, f"made a plan for {request.request_id} that cannot be: {error}") from error
        self.inflight -= 1
        self.recorder.answered()
        done, other = race.first, race.other
        self.knowledge.learn(done)
        self.knowledge.last_latency_s = (done.completed_ns - request.scheduled_ns) / 1e9
        failed = other.result().error_type if other is not None and other.done() and race.backup == "won" else None
        outcome = outcome_of(request, plan, done, race.backup, failed)
        ask(self.spec.name, request.request_id, self.policy.observe, outcome)
        self.recorder.outcome(outcome)
        if other is None:
            self.recorder.request(request, taken_ns, decided_ns, plan, done)
        else:
            self.late.add(self._wait_for_other(request, taken_ns, decided_ns, plan, race, other))

    async def _carry_out(self, request: Request, decided_ns: int, plan: Plan) -> Race:
        x = self.inputs.sample(self.config["samples"][request.index])  # (1, C, H, W)
        timeout_s = self.config["timeout_s"]
        if plan.backup:
            return await execute_with_backup(
                self.name, self.worker, self.client, plan.wire(), plan.backup_wire(), x, request_id=request.request_id,
                start_ns=decided_ns, after_s=plan.backup_after_s or 0.0, timeout_s=timeout_s, retries=plan.retries,
                coder=self.coder)
        return Race(await execute_plan(
            self.name, self.worker, self.client, plan.wire(), x, request_id=request.request_id, start_ns=decided_ns,
            timeout_s=timeout_s, fallback=plan.fallback_wire(), retries=plan.retries, coder=self.coder))

    async def _wait_for_other(self, request: Request, taken_ns: int, decided_ns: int, plan: Plan, race: Race,
                              other: asyncio.Task[PlanOutcome]) -> None:
        """The slower side of a request with a backup: learn from it, and write the rows of both."""
        result = await other
        self.recorder.request(request, taken_ns, decided_ns, plan, race.first, race.backup, result)
        if result.error_type == "withdrawn" and not result.hops:
            return
        self.knowledge.learn(result)
        outcome = replace(outcome_of(request, plan, result, race.backup), deadline_met=False)
        ask(self.spec.name, request.request_id, self.policy.observe_late, outcome)
        self.recorder.outcome(outcome, late=True)


async def sleep_until(due_ns: int) -> None:
    """Return at an absolute instant, or at once when it has passed; polls for the last 1.5 ms."""
    ahead_s = (due_ns - time.monotonic_ns()) / 1e9
    if ahead_s > _SPIN_S:
        await asyncio.sleep(ahead_s - _SPIN_S)
    while time.monotonic_ns() < due_ns:
        await asyncio.sleep(0)


if __name__ == "__main__":
    sys.exit(main())
