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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.inference.catalogue import load_catalogue
from testbed.inference.codecs import Registry
from testbed.inference.compute import load_profile
from testbed.measurement.tables import HOPS, REQUESTS, TableWriter
from testbed.policies import Context, Observation, Outcome, Plan, make_policy
from testbed.policies.knowledge import from_json
from testbed.schema.scenario import PlanSpec, PolicySpec
from testbed.serving.background import Background, freeze_garbage
from testbed.serving.client import NodeClient
from testbed.serving.coding import Coder
from testbed.serving.execute import PlanOutcome, execute_plan
from testbed.serving.worker import Worker, served_models
from testbed.workload.inputs import Inputs

_SPIN_S = 0.0015  # the event loop's timer is good to a millisecond; the rest of the wait is polled
UPLINK_MIN_BYTES = 1000  # smaller transfers say more about delay than about rate


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
        context = from_json(Context, config["context"])
        kind = PlanSpec if "plan" in config["policy"] else PolicySpec
        self.policy = make_policy(kind.model_validate(config["policy"]), context)
        self.inputs = Inputs(config["inputs"])
        models = served_models(load_catalogue(config["catalogue"]), config["models"], config.get("outputs"))
        profile = load_profile(config["compute"], config["profiles"])
        self.worker = Worker(models, profile)
        self.coder = Coder(Registry(config["catalogue"]), profile)
        self.inflight = 0
        self.done = 0
        self.uplink_bps: dict[str, float] = {}
        self.uplink_ns: dict[str, int] = {}
        self.last_latency_s: float | None = None

    async def run(self) -> None:
        """Warm up, wait for the start instant, issue all requests, wait for every end status."""
        config = self.config
        await self.worker.warm_up()
        self.coder.codecs.warm_up(config["codecs"])
        freeze_garbage()
        async with NodeClient(self.name, config["peers"], config["tiers"], config["tier_order"]) as client:
            self.client = client
            with (TableWriter(config["requests"], REQUESTS, run_id=config["run_id"]) as self.requests,
                  TableWriter(config["hops"], HOPS, run_id=config["run_id"]) as self.hops,
                  open(config["decisions"], "w", encoding="utf-8") as self.decisions, Background() as self.background):
                Path(config["ready"]).write_text("{}")
                start_ns = await self._start_instant()
                if config["arrivals"] == "closed":
                    for i in range(len(config["samples"])):
                        await self._request(i, time.monotonic_ns() if i else start_ns)
                else:
                    tasks = []
                    for i, offset_ns in enumerate(config["schedule_ns"]):
                        due_ns = start_ns + offset_ns
                        await sleep_until(due_ns)
                        tasks.append(asyncio.create_task(self._request(i, due_ns)))
                    await asyncio.gather(*tasks)
        self.worker.close()
        self.coder.close()

    async def _start_instant(self) -> int:
        path = Path(self.config["start"])
        while not path.exists():
            await asyncio.sleep(0.01)
        start_ns = int(json.loads(path.read_text())["start_ns"])
        await sleep_until(start_ns)
        return start_ns

    async def _request(self, index: int, scheduled_ns: int) -> None:
        config = self.config
        issued_ns = time.monotonic_ns()
        request_id = f"{self.name}-{index:05d}"
        sample = config["samples"][index]
        self.inflight += 1
        observation = Observation(
            t_ns=issued_ns, request_id=request_id, queue_depth=self.worker.queue_depth, inflight=self.inflight - 1,
            uplink_bps=dict(self.uplink_bps), last_latency_s=self.last_latency_s,
            uplink_age_s={n: (issued_ns - t) / 1e9 for n, t in self.uplink_ns.items()})
        plan = self.policy.decide(observation)
        decided_ns = time.monotonic_ns()
        scores = dict(self.policy.scores())  # of this decision: the next one may come before this request ends
        x = self.inputs.sample(sample)  # (1, C, H, W)
        outcome = await execute_plan(
            self.name, self.worker, self.client, plan.wire(), x, request_id=request_id,
            start_ns=decided_ns, timeout_s=config["timeout_s"], fallback=plan.fallback_wire(), retries=plan.retries,
            coder=self.coder)
        self.background.submit(self._record, index, scheduled_ns, issued_ns, decided_ns, observation, plan, outcome,
                               scores)
        self.inflight -= 1
        self.done += 1
        self.background.submit(Path(config["done"]).write_text, str(self.done))
        self._learn(request_id, scheduled_ns, plan, outcome)

    def _record(self, index: int, scheduled_ns: int, issued_ns: int, decided_ns: int, observation: Observation,
                plan: Plan, outcome: PlanOutcome, scores: Mapping[str, float]) -> None:
        """Write the rows of a finished request (in the background thread)."""
        config = self.config
        sample = config["samples"][index]
        label = self.inputs.label(sample)
        latency_s = (outcome.completed_ns - scheduled_ns) / 1e9
        ok = outcome.status == "ok"
        split = plan.split_point
        tiers = [config["tiers"][h["dst_node"]] for h in outcome.hops if h.get("compute_end_ns") is not None]
        sent = [s.codec for s in plan.steps if s.node != self.name]
        self.requests.write({
            "request_id": observation.request_id, "sample_index": sample, "device": self.name,
            "phase": "warmup" if index < config["warmup_requests"] else "measure",
            "scheduled_ns": scheduled_ns, "issued_ns": issued_ns, "completed_ns": outcome.completed_ns,
            "status": outcome.status, "policy": config["policy_name"],
            # answered, but by the device's own fallback: the row says so, and why
            "error_type": f"fallback:{outcome.remote_error}" if ok and outcome.used_fallback else outcome.error_type,
            "plan": plan.label, "model": outcome.final_model or plan.steps[-1].model,
            "split_point": split, "exit_id": outcome.exit_id,
            "exit_confidence": outcome.exit_confidence, "final_node": outcome.final_node,
            "tiers_used": "+".join(dict.fromkeys(tiers)), "codec": "+".join(dict.fromkeys(sent)) or None,
            "request_bytes": outcome.request_bytes, "response_bytes": outcome.response_bytes,
            "prediction": outcome.prediction, "label": label,
            "correct": outcome.prediction == label if ok else None, "deadline_s": config["deadline_s"],
            "deadline_met": ok and latency_s <= config["deadline_s"],
            "decision_duration_s": (decided_ns - issued_ns) / 1e9,
        })
        for i, hop in enumerate(outcome.hops):
            self.hops.write({"request_id": observation.request_id, "hop_index": i, "link": self._link(hop), **hop})
        json.dump({"t_ns": observation.t_ns, "device": self.name, "request_id": observation.request_id,
                   "observation": {"queue_depth": observation.queue_depth, "inflight": observation.inflight,
                                   "uplink_bps": dict(observation.uplink_bps), "uplink_age_s": dict(observation.uplink_age_s),
                                   "last_latency_s": observation.last_latency_s},
                   "plan": plan.wire(), "scores": scores}, self.decisions)
        self.decisions.write("\n")

    def _link(self, hop: Mapping[str, Any]) -> str | None:
        if hop["src_node"] == hop["dst_node"]:
            return None
        forward = self.config["routes"].get(f"{hop['src_node']}>{hop['dst_node']}")
        return str(forward) if forward else None

    def _learn(self, request_id: str, scheduled_ns: int, plan: Plan, outcome: PlanOutcome) -> None:
        """Passive bandwidth estimate from this device's own finished uploads, and what the policy wants to know."""
        self.last_latency_s = (outcome.completed_ns - scheduled_ns) / 1e9
        for hop in outcome.hops:
            size_bytes, arrived_ns = hop.get("payload_bytes") or 0, hop.get("recv_last_ns")
            if hop["src_node"] == self.name != hop["dst_node"] and size_bytes >= UPLINK_MIN_BYTES and arrived_ns:
                duration_ns = arrived_ns - hop["send_start_ns"]
                if duration_ns > 0:
                    self.uplink_bps[hop["dst_node"]] = size_bytes * 8e9 / duration_ns
                    self.uplink_ns[hop["dst_node"]] = outcome.completed_ns
        self.policy.observe(Outcome(request_id, plan, outcome.status, self.last_latency_s, outcome.exit_id,
                                    outcome.exit_confidence, outcome.final_node))


async def sleep_until(due_ns: int) -> None:
    """Return at an absolute instant, or at once when it has passed; polls for the last 1.5 ms."""
    ahead_s = (due_ns - time.monotonic_ns()) / 1e9
    if ahead_s > _SPIN_S:
        await asyncio.sleep(ahead_s - _SPIN_S)
    while time.monotonic_ns() < due_ns:
        await asyncio.sleep(0)


if __name__ == "__main__":
    sys.exit(main())
