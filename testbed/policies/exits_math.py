"""Costs of models with exits, cut once between device and server: of one branch, and expected over samples that leave early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.policies.knowledge import Computation, Context, ExitPoint, ModelInfo


@dataclass(frozen=True)
class Branch:
    """The model up to one exit, cut at `cut`: stages before the cut on the device, the others on the server.

    All samples leave at `exit_name`, and only its head is computed. `payload_bytes` crosses the cut; None: nothing does.
    """

    exit_name: str
    stop: int
    cut: int
    device_s: float
    server_s: float
    payload_bytes: int | None


@dataclass(frozen=True)
class Expected:
    """Means over samples that leave at the first exit whose confidence reaches the threshold of `point`, with a cut at `split`.

    `sent_share`: of the samples that are not answered before the cut, each of which sends `payload_bytes`; 0 when the device
    computes everything. `device_s`, `server_s`: of the stages and exit heads that run there; `whole_device_s`,
    `whole_server_s`: for a sample that leaves at the final exit.
    """

    point: ExitPoint
    split: int
    device_s: float
    server_s: float
    whole_device_s: float
    whole_server_s: float
    sent_share: float
    payload_bytes: int

    @property
    def sent_bytes(self) -> float:
        """Mean payload per sample."""
        return self.sent_share * self.payload_bytes


class BranchyTimes:
    """Times of a model's stages and exit heads on a device and on a server, for one sample, and its bytes at the cuts."""

    def __init__(self, context: Context, model: ModelInfo, server: str, codec: str = "raw", input_codec: str = "raw") -> None:
        """Raises ValueError when the compute profile of a node says nothing about the model."""
        self.model = model
        self.exits = tuple(sorted(model.exits.items(), key=lambda item: item[1]))  # (name, after stage), from first to final
        self._stage_s, self._head_s = {}, {}
        for node in (context.device, server):
            known = context.compute.get(node)
            if known is None or model.name not in known.stage_s:
                raise ValueError(f"no times are known of {model.name} on {node}; its compute profile needs a table or a slowdown")
            self._stage_s[node] = known.stage_s[model.name]
            self._head_s[node] = known.head_s.get(model.name, {})
        self.device, self.server = context.device, server
        self.payload_bytes = [model.bytes_at(0, input_codec)] + [model.bytes_at(c, codec) for c in range(1, model.num_stages)]

    def run_s(self, node: str, start: int, stop: int, heads: bool) -> float:
        """Stages start..stop-1 on a node, with the heads of the early exits among them, or without any."""
        asked = (self._head_s[node].get(name, 0.0) for name, after in self.exits if heads and start <= after < stop)
        return sum(self._stage_s[node][start:stop]) + sum(asked)

    def local_s(self, exit_name: str) -> float:
        """The device's time up to an exit, with its head only."""
        return self.run_s(self.device, 0, self.model.exits[exit_name] + 1, False) + self._head_s[self.device].get(exit_name, 0.0)

    def branches(self) -> list[Branch]:
        """Every exit with every cut from 0 (send the input) to its own stage + 1 (nothing is sent)."""
        found = []
        for name, after in self.exits:
            stop = after + 1
            for cut in range(stop + 1):
                head_s = self._head_s[self.device if cut == stop else self.server].get(name, 0.0)
                device_s, server_s = self.run_s(self.device, 0, cut, False), self.run_s(self.server, cut, stop, False)
                if cut == stop:
                    found.append(Branch(name, stop, cut, device_s + head_s, 0.0, None))
                else:
                    found.append(Branch(name, stop, cut, device_s, server_s + head_s, self.payload_bytes[cut]))
        return found

    def expected(self, point: ExitPoint, split: int) -> Expected:
        """Means for one threshold and one split.

        E[time] = sum over stages of P(reach) * time + sum over early exits of P(reach) * head's time; a sample reaches a stage
        when it has left at no exit before it. (SPINN, MobiCom 2020, its scheduler's latency.) Above a threshold of 1 no exit is
        asked.
        """
        end, heads = self.model.num_stages, point.threshold <= 1
        reach = reach_of(self.model, point)
        times_s = [self.run_s(self.device if i < split else self.server, i, i + 1, heads) for i in range(end)]
        mean_s = [p * t for p, t in zip(reach, times_s, strict=True)]
        costs_s = sum(mean_s[:split]), sum(mean_s[split:]), sum(times_s[:split]), sum(times_s[split:])
        if split == end:
            return Expected(point, split, *costs_s, 0.0, 0)
        return Expected(point, split, *costs_s, reach[split], self.payload_bytes[split])

    def predicted_s(self, computation: Computation, heads: bool) -> float:
        """What a finished computation takes on its idle node; 0 for another model or another node."""
        if computation.model != self.model.name or computation.node not in self._stage_s:
            return 0.0
        return self.run_s(computation.node, computation.start, computation.stop, heads)


def reach_of(model: ModelInfo, point: ExitPoint) -> list[float]:
    """P(a sample's computation reaches stage i), for i = 0..num_stages - 1."""
    return [max(0.0, 1.0 - sum(point.share.get(name, 0.0) for name, after in model.exits.items() if after < stage))
            for stage in range(model.num_stages)]


def by_accuracy(model: ModelInfo) -> list[str]:
    """Exits from the most to the least accurate; of equal ones the earlier first. Raises ValueError when one is unknown."""
    known: Mapping[str, float] = model.exit_accuracy
    missing = [name for name in model.exits if name not in known]
    if missing:
        raise ValueError(f"the catalogue states no accuracy of exit {missing[0]} of {model.name}")
    return sorted(model.exits, key=lambda name: (-known[name], model.exits[name]))
