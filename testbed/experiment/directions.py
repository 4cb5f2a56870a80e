"""From the links of a topology file to what the emulation builds: traces opened, offsets drawn, calibration targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from testbed.emulation.direction import DirectionSpec, GilbertElliott, QueueLimit
from testbed.emulation.network import Network
from testbed.experiment.calibrate import LinkTarget
from testbed.experiment.content import direction_trace
from testbed.schema.scenario import Scenario
from testbed.schema.topology import Direction

Specs = Mapping[tuple[str, str], DirectionSpec]
BRIDGE_RTT_S = 0.0001  # hosts, switches and namespaces of this machine; far below every tolerance


def direction_specs(scenario: Scenario, seed: Callable[[str, int], int], devices: Sequence[str]) -> Specs:
    """What every direction of every node link does. Raises InputError for a bad trace or log.

    `trace_offset: random` rotates the traces of each link by an offset of its own (seeded, the same for all policies
    and for both directions), so that devices on the same trace do not move in lockstep.
    """
    specs: dict[tuple[str, str], DirectionSpec] = {}
    for index, (link, a, b) in enumerate(scenario.topology.node_links()):
        for which in ("up", "down"):
            spec = _spec(link.direction(which))
            if spec.trace is not None and scenario.trace_offset == "random":
                share = seed("trace-offset", index) / 2**31
                spec = spec.changed(trace_offset_ns=spec.trace_offset_ns + int(share * spec.trace.duration_ns))
            specs[f"{a}-{b}", which] = spec
    return specs


def _spec(direction: Direction) -> DirectionSpec:
    loss, queue = direction.loss, direction.queue
    chain = None if loss is None or loss.p is None or loss.r is None else GilbertElliott(
        loss.p, loss.r, loss.loss_bad, loss.loss_good)
    spec = DirectionSpec(
        rate_bps=direction.rate, burst_bytes=direction.burst, trace=direction_trace(direction),
        trace_offset_ns=int(direction.trace_offset * 1e9), at_end=direction.at_end, delay_s=direction.delay,
        jitter_s=direction.jitter, jitter_distribution=direction.jitter_distribution,
        loss=(loss.rate or 0.0) if loss is not None and chain is None else 0.0,
        loss_correlation=loss.correlation if loss is not None and chain is None else 0.0, gilbert_elliott=chain,
        reorder=direction.reorder, duplicate=direction.duplicate,
        queue=None if queue is None else QueueLimit(bytes=queue.bytes, packets=queue.packets, seconds=queue.time))
    if direction.jitter_log is not None:
        from testbed.traces.rtt import load_rtt_log

        spec = spec.with_rtt_log([float(v) for v in load_rtt_log(direction.jitter_log)])
    return spec


def calibration_target(name: str, network: Network, specs: Specs) -> LinkTarget:
    """How the link should measure while it is idle: before the replay starts, the fabric holds a trace at its mean.

    A ping is smaller than the bucket of any rate, so that it meets the delays only.
    """
    a, _, b = name.partition("-")
    up, down = specs[name, "up"], specs[name, "down"]
    return LinkTarget(name, a, b, network.addresses[a], network.addresses[b], up.mean_rate_bps, down.mean_rate_bps,
                      up.delay_s + down.delay_s + BRIDGE_RTT_S)
