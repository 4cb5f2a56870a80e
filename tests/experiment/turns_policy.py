"""A policy for tests: the edge, the edge with a backup, and the device in turn; learns from whatever it is told."""

from __future__ import annotations

import random

from testbed.policies import Context, Observation, Outcome, Plan, Policy, Probe, ProbeSpec, Step


class Turns(Policy):
    def __init__(self, context: Context, weight: float = 0.5) -> None:
        super().__init__(context)
        self.probes = ProbeSpec(period_s=0.5, size_bytes=20_000)
        self.weight, self.rtt_s, self.count, self.late, self.transfers = weight, 0.05, 0, 0, 0
        self.random = random.Random(context.seed)

    def decide(self, observation: Observation) -> Plan:
        device, edge = self.context.device, self.context.nodes["edge"]
        stages = self.context.models[self.context.model].num_stages
        here, there = Step(device, self.context.model, 0, stages), Step(edge, self.context.model, 0, stages, "uint8")
        self.count += 1
        if self.count % 3 == 0:
            return Plan("device", (here,))
        if self.count % 3 == 1:
            return Plan("edge", (there,))
        return Plan("both", (there,), backup=(here,), backup_after_s=self.random.random() * self.rtt_s)

    def observe(self, outcome: Outcome) -> None:
        self.transfers += len(outcome.transfers)

    def observe_late(self, outcome: Outcome) -> None:
        self.late += 1

    def observe_probe(self, probe: Probe) -> None:
        if probe.rtt_s is not None:
            self.rtt_s += self.weight * (probe.rtt_s - self.rtt_s)

    def scores(self) -> dict[str, float]:
        return {"rtt_s": self.rtt_s, "late": self.late, "transfers": self.transfers}
