"""Cutting a chain of stages once between the device and a server: predicted cost of every cut, and the plan of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from testbed.inference.codecs import is_codec_name
from testbed.inference.codecs.learned import PREFIX
from testbed.policies.knowledge import Context, ModelInfo
from testbed.policies.plan import Plan, Step


def latencies_s(device_s: Sequence[float], server_s: Sequence[float], transfer_s: Sequence[float], k: float = 1.0) -> list[float]:
    """Predicted latency of every cut j = 0..N of N stages: device time of 1..j + transfer_s[j] + k * server time of the rest.

    `transfer_s` has N + 1 times, there and back; that of cut N is 0. (Neurosurgeon, ASPLOS 2017, its latency objective.)
    """
    before = [0.0, *accumulate(device_s)]
    behind = [*reversed(list(accumulate(reversed(server_s), initial=0.0)))]
    return [d + t + k * s for d, t, s in zip(before, transfer_s, behind, strict=True)]


def energies_j(device_s: Sequence[float], sending_s: Sequence[float], compute_w: float, uplink_w: float) -> list[float]:
    """Predicted energy of the device for every cut j = 0..N: compute_w * device time + uplink_w * time of sending."""
    return [compute_w * d + uplink_w * t for d, t in zip([0.0, *accumulate(device_s)], sending_s, strict=True)]


def best(costs: Sequence[float]) -> int:
    """The cut of least cost; of equal ones the last, which asks least of the network."""
    lowest = min(costs)
    return max(j for j, cost in enumerate(costs) if cost == lowest)


def payloads(model: ModelInfo, codec: str = "raw", input_codec: str = "raw") -> list[int]:
    """Bytes that cross each cut 0..N: the input in `input_codec`, tensors in `codec`, nothing after the last stage."""
    between = [model.bytes_at(cut, codec) for cut in range(1, model.num_stages)]
    return [model.bytes_at(0, input_codec), *between, 0]


def cut_plan(name: str, context: Context, model: ModelInfo, cut: int, server: str, codec: str = "raw",
             input_codec: str = "raw") -> Plan:
    """Stages 0..cut-1 on the device, the others on `server`; one step when the cut is 0 or N."""
    steps = [Step(context.device, model.name, 0, cut)] if cut else []
    if cut < model.num_stages:
        steps.append(Step(server, model.name, cut, model.num_stages, codec if cut else input_codec))
    return Plan(name, tuple(steps))


def server_of(context: Context, node: str | None) -> str:
    """The remote node of this name or tier; the nearest when absent. Raises ValueError naming those that exist."""
    remote = context.remote_nodes
    if not remote:
        raise ValueError("there is no node but the device; add a tier and a link to it")
    if node is None:
        return remote[0]
    found = context.nodes.get(node, node)
    if found not in remote:
        raise ValueError(f"node: {node!r} is not a remote node or tier; use one of "
                         f"{', '.join(t for t in context.tiers if context.nodes[t] in remote)}")
    return found


def model_of(context: Context, model: str | None) -> ModelInfo:
    """The model of this name; the scenario's when absent. Raises ValueError."""
    name = context.model if model is None else model
    if name not in context.models:
        raise ValueError(f"model: there is no {name!r} in the catalogue")
    return context.models[name]


def checked_codecs(*codecs: str) -> None:
    """Raise ValueError for a name that is no codec, or one that fits a single cut only."""
    for codec in codecs:
        if not is_codec_name(codec):
            raise ValueError(f"codec: there is no {codec!r}; `testbed models codecs` shows them")
        if codec.startswith(PREFIX):
            raise ValueError(f"codec: {codec!r} was trained for one cut, and this policy moves the cut")
