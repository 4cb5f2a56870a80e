"""What the links of a trial carried, from its scenario: traces, offsets, delays, planned events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.emulation.direction import DirectionSpec
from testbed.experiment.directions import direction_specs
from testbed.experiment.trials import devices_of
from testbed.measurement.trial import MANIFEST, read_json
from testbed.policies.truth import Capacity, Span, Truth, spans_until
from testbed.schema.scenario import Event, Scenario
from testbed.workload.arrivals import generator

TAIL_S = 30.0  # that the replayed capacity reaches beyond the end of the load
LONGEST_S = 3600.0  # of a load for which it is written out; beyond, a trace counts with its mean rate


def truth_of(scenario: Scenario, repeat: int, start_ns: int) -> Truth:
    """The truth of one repeat. Raises InputError for a bad trace or log.

    Events happen when the scenario says. A restarted program is taken to work at once; a paused one not at all. What a
    link with a rate event carries before and after is its own rate or trace.
    """
    topology = scenario.topology

    def seed(purpose: str, index: int = 0) -> int:
        return int(generator(scenario.seed, repeat, purpose, index).integers(2**31))

    specs = direction_specs(scenario, seed, devices_of(scenario))
    horizon_s = load_limit_s(scenario) + TAIL_S
    spans = _link_spans(scenario, horizon_s * 1e9)
    replayed = [key for key, spec in specs.items() if spec.trace is not None]
    step_ns = round(scenario.replay_step * 1e9)
    sides = {}
    for _, a, b in topology.node_links():
        for which, pair in (("up", (a, b)), ("down", (b, a))):
            key = (f"{a}-{b}", which)
            phase_ns = replayed.index(key) * step_ns // len(replayed) if key in replayed else 0  # as emulation.replay
            sides[pair] = _capacity(specs[key], horizon_s, step_ns, phase_ns).changed(spans.get(key, ()))
    names = topology.node_names
    ways = {(a, b): tuple(way) for a in names for b in names if a != b and (way := topology.path(a, b))}
    return Truth(start_ns, sides, ways, _outages(scenario.events))


def load_limit_s(scenario: Scenario) -> float:
    """Seconds within which the load ends, with room for late arrivals."""
    load = scenario.load
    count = load.requests_per_device + load.warmup_requests
    return min(count * load.timeout if load.arrivals == "closed" else 2 * count / load.rate_per_s + load.timeout, LONGEST_S)


def truth_of_manifest(manifest: Mapping[str, Any]) -> Truth:
    """The truth of a finished trial; its traces must still be where the scenario names them. Raises InputError."""
    scenario = Scenario.model_validate(manifest["config"])
    return truth_of(scenario, int(manifest.get("repeat") or 0), int(manifest["clock"]["start_ns"]))


def truth_of_trial(folder: Path) -> Truth:
    """`truth_of_manifest` of a trial's folder."""
    return truth_of_manifest(read_json(folder / MANIFEST))


def _capacity(spec: DirectionSpec, horizon_s: float, step_ns: int, phase_ns: int) -> Capacity:
    if spec.trace is not None:
        return Capacity.of_trace(spec.trace, horizon_s, spec.trace_offset_ns, spec.delay_s, loop=spec.at_end == "loop",
                                 step_ns=step_ns, phase_ns=phase_ns)
    return Capacity.of_rate(spec.rate_bps, spec.delay_s, spec.bucket_bytes or 0)


def _link_spans(scenario: Scenario, end_ns: float) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(link, direction) -> spans with another rate: rate events first, then those in which the link is down."""
    topology = scenario.topology
    rates: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    switches: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for event in scenario.events:
        at, until = event.at * 1e9, end_ns if event.duration is None else (event.at + event.duration) * 1e9
        directions = ("up", "down") if event.direction == "both" else (event.direction,)
        if event.kind == "rate":
            for which in directions:
                rates.setdefault((event.link or "", which), []).append((at, until, float(event.rate or 0)))
            continue
        links: Sequence[str] = ()
        if event.kind in ("link_down", "link_up", "handover"):
            links = [event.link or ""]
        elif event.kind in ("partition", "heal"):
            inside = next(t.nodes for t in topology.tiers if t.name == event.tier)
            directions = ("up", "down")
            links = [f"{a}-{b}" for _, a, b in topology.node_links() if (a in inside) != (b in inside)]
        down = event.kind not in ("link_up", "heal")
        for link in links:
            for which in directions:
                own = switches.setdefault((link, which), [])
                own.append((at, down))
                if down and event.duration is not None:
                    own.append((until, False))
    for key, changes in switches.items():
        rates.setdefault(key, []).extend((a, b, 0.0) for a, b in spans_until(changes, end_ns))
    return rates


def _outages(events: Sequence[Event]) -> dict[str, tuple[Span, ...]]:
    changes: dict[str, list[tuple[float, bool]]] = {}
    stops: Callable[[str], bool] = ("node_crash", "node_pause").__contains__
    for event in events:
        if event.node is None or not (stops(event.kind) or event.kind in ("node_restart", "node_resume")):
            continue
        own = changes.setdefault(event.node, [])
        own.append((event.at * 1e9, stops(event.kind)))
        if stops(event.kind) and event.duration is not None:
            own.append(((event.at + event.duration) * 1e9, False))
    return {node: spans_until(own) for node, own in changes.items()}
