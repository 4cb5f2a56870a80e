"""Plans worth considering, and what each is made of: seconds of compute per node, bytes per hop, chances of its exits.

Policies that choose by enumeration, the oracle, the clairvoyant and the random policy draw from the same list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.policies.knowledge import Context, ExitPoint, ModelInfo
from testbed.policies.plan import ExitRule, Plan, Step
from testbed.policies.truth import NS_PER_S, Truth

REQUEST_OVERHEAD_BYTES = 500  # HTTP head, tensor header and plan of a request, as `hops` shows them
ANSWER_BYTES = 1200  # an answer: logits, times of one node and HTTP head; each further node adds its own times
ANSWER_NODE_BYTES = 600
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """Part of a plan: `duration_s` of compute on `src` (dst is None), or `size_bytes` that travel from `src` to `dst`."""

    src: str
    dst: str | None = None
    duration_s: float = 0.0
    size_bytes: float = 0.0


@dataclass(frozen=True)
class Branch:
    """One way that a plan may go: it leaves at `exit_id` with this chance, after these pieces."""

    exit_id: str
    chance: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Candidate:
    """A plan with its branches. `accuracy`: expected on the calibration split; what a codec costs is not counted."""

    plan: Plan
    accuracy: float
    branches: tuple[Branch, ...]

    @property
    def name(self) -> str:
        """Name of the plan."""
        return self.plan.name


@dataclass
class Queues:
    """When each worker and each direction of a link is free again (ns since the start): first come, first served."""

    free_ns: dict[str | tuple[str, str], float] = field(default_factory=dict)

    def finish_ns(self, candidate: Candidate, truth: Truth, since_ns: float, *, commit: bool,
                  exit_id: str | None = None) -> float:
        """Expected instant of the answer (inf when the plan fails) of a request decided at `since_ns`.

        `commit` books what it uses: for the branch that ends at `exit_id`, else the expectation over the branches.
        """
        taken = [b for b in candidate.branches if b.exit_id == exit_id] or list(candidate.branches)
        total, weight, booked = 0.0, sum(b.chance for b in taken), dict[str | tuple[str, str], float]()
        for branch in taken:
            end, used = self._walk(branch.pieces, truth, since_ns)
            total += branch.chance / weight * end
            for resource, until in used.items():
                before = self.free_ns.get(resource, 0.0)
                booked[resource] = booked.get(resource, before) + branch.chance / weight * (until - before)
        if commit and total < float("inf"):
            self.free_ns |= booked
        return total

    def _walk(self, pieces: Sequence[Piece], truth: Truth, since_ns: float) -> tuple[float, dict[str | tuple[str, str], float]]:
        t, used = since_ns, dict[str | tuple[str, str], float]()

        def free(resource: str | tuple[str, str]) -> float:
            return used.get(resource, self.free_ns.get(resource, 0.0))

        for piece in pieces:
            if piece.dst is None:
                begin = max(t, free(piece.src))
                end = begin + piece.duration_s * NS_PER_S
                if not truth.works_at(piece.src, t, end):
                    return float("inf"), used
                t = used[piece.src] = end
                continue
            way, ahead, last = truth.way(piece.src, piece.dst), 0.0, t
            for pair in way:
                side = truth.sides[pair]
                leaves = side.done_at_ns(piece.size_bytes, t + ahead, free(pair))
                if leaves == float("inf"):
                    return float("inf"), used
                used[pair] = leaves
                last = max(last, leaves - ahead)
                ahead += side.delay_s * NS_PER_S
            t = last + ahead
        return t, used


def candidates(context: Context, *, models: Sequence[str] = (), codecs: Sequence[str] = ("raw",),
               input_codecs: Sequence[str] | None = None, thresholds: Sequence[float] = (), chains: bool = True,
               min_accuracy: float = 0.0) -> tuple[Candidate, ...]:
    """All plans over the nodes of a context, nearest the device first, without duplicates.

    Device only, each remote node only, every cut between two nodes, and with `chains` also cuts between remote nodes and
    over three nodes; the same with the model shortened to each of its exits. `models`: the context's own when empty. A codec
    other than raw is used where the catalogue says that it is smaller than float32; the input in `input_codecs`, or
    `codecs` when None. `thresholds`: each also as a plan whose
    exits are asked (largest softmax probability); those that the model's exit statistics do not have are left out. Plans below
    `min_accuracy` are left out (where it is known). Raises KeyError for a model that the context does not have.
    """
    found: dict[tuple[Step, ...], Candidate] = {}
    both = (codecs, codecs if input_codecs is None else input_codecs)

    def add(steps: tuple[Step, ...]) -> None:
        made = price(Plan(plan_name(steps, context), steps), context)
        if not made.accuracy < min_accuracy:
            found.setdefault(steps, made)

    for name in models or (context.model,):
        model = context.models[name]
        rules = [None, *(ExitRule("max_probability", point.threshold) for point in model.exit_curve
                         if any(abs(point.threshold - t) < 1e-9 for t in thresholds))]
        for steps in _placements(context, model, model.num_stages, both, chains):
            for rule in rules:
                add(tuple(replace(s, exit=rule) for s in steps))
        for after in sorted(model.exits.values())[:-1]:
            for steps in _placements(context, model, after + 1, both, chains):
                add((*steps[:-1], replace(steps[-1], exit=ExitRule("always", 0.0))))
    return tuple(found.values())


def unknown_threshold(context: Context, models: Sequence[str], thresholds: Sequence[float]) -> tuple[float, str] | None:
    """A threshold that the exit statistics of a model do not have, and in words what they have; None when all are there."""
    for threshold in thresholds:
        for name in models:
            curve = context.models[name].exit_curve
            if not any(abs(point.threshold - threshold) < 1e-9 for point in curve):
                known = ", ".join(f"{point.threshold:g}" for point in curve) or "none"
                return threshold, f"no statistics of {name}'s exits at {threshold:g}; the catalogue has {known}"
    return None


def lossy_plans(found: Sequence[Candidate]) -> tuple[Plan, ...]:
    """Plans of candidates in which something travels in a codec, without exits: what `Policy.plans` asks for."""
    whole = (c.plan for c in found if all(step.exit is None for step in c.plan.steps))
    return tuple(plan for plan in whole if any(step.codec != "raw" for step in plan.steps))


def required_accuracy(context: Context, min_accuracy: float) -> float:
    """What a plan's accuracy must reach: what is asked for, or that of the scenario's whole model where nothing is."""
    return min_accuracy or context.min_accuracy or context.models[context.model].accuracy


def plan_name(steps: Sequence[Step], context: Context) -> str:
    """`device[0:2]>edge[2:5]:int8@0.8`: tiers, stages, codecs that are not raw, the exits' threshold (`!`: all leave there)."""
    tier_of = {node: tier for tier, node in context.nodes.items()}
    parts, at = [], context.device
    for step in steps:
        codec = f":{step.codec}" if step.node != at and step.codec != "raw" else ""
        model = f"{step.model} " if step.model != context.model else ""
        parts.append(f"{model}{tier_of.get(step.node, step.node)}[{step.start}:{step.stop}]{codec}")
        at = step.node
    rule = next((s.exit for s in steps if s.exit is not None), None)
    at_exit = "" if rule is None else "!" if rule.kind == "always" else f"@{rule.threshold:g}"
    return ">".join(parts) + at_exit


def _placements(context: Context, model: ModelInfo, end: int, codecs: tuple[Sequence[str], Sequence[str]],
                chains: bool) -> Iterator[tuple[Step, ...]]:
    """Steps of every way to lay stages 0..end-1 over nodes in their order. `codecs`: of tensors, and of the input."""
    nodes = (context.device, *context.remote_nodes)
    for count in range(1, min(len(nodes), end) + 1):
        for chosen in combinations(nodes, count):
            if not chains and (count > 2 or (count == 2 and chosen[0] != context.device)):
                continue
            if any(model.name not in context.compute[node].stage_s for node in chosen if node in context.compute):
                continue
            for cuts in combinations(range(1, end), count - 1):
                borders = (0, *cuts, end)
                yield from _with_codecs(context.device, model, chosen, borders, codecs)


def _with_codecs(device: str, model: ModelInfo, nodes: Sequence[str], borders: Sequence[int],
                 codecs: tuple[Sequence[str], Sequence[str]]) -> Iterator[tuple[Step, ...]]:
    choices = []
    for node, cut in zip(nodes, borders[:-1], strict=True):
        known = codecs[0] if cut else codecs[1]
        fit = [c for c in known if c == "raw" or model.bytes_at(cut, c) < model.bytes_at(cut)] if node != device else []
        choices.append(fit or ["raw"])
    for chosen in product(*choices):
        yield tuple(Step(n, model.name, a, b, c) for n, a, b, c in zip(nodes, borders, borders[1:], chosen, strict=False))


def price(plan: Plan, context: Context) -> Candidate:
    """What any plan on one model is made of: service times of the profiles, mean payloads of the codecs, shares of the exits.

    Loading a cold model, encoding and decoding are not counted. Raises ValueError for a plan over several models, for exits
    without statistics in the catalogue, and for a node whose service times are not known.
    """
    model = context.models[plan.steps[0].model]
    if any(step.model != model.name for step in plan.steps):
        raise ValueError(f"{plan.label} runs more than one model")
    last = model.num_stages
    shares = _shares(plan, model)
    branches = []
    for exit_id, chance in shares.items():
        stop_after = model.exits[exit_id] + 1
        pieces: list[Piece] = []
        at, visited = context.device, [context.device]
        for step in plan.steps:
            if step.start >= stop_after:
                break
            if step.node != at:
                size = model.bytes_at(step.start, step.codec) + REQUEST_OVERHEAD_BYTES
                pieces.append(Piece(at, step.node, size_bytes=size))
                at = step.node
                visited.append(at)
            node = context.compute.get(step.node)
            if node is None or model.name not in node.stage_s:
                raise ValueError(f"no service times of {model.name} on {step.node}")
            stop = min(step.stop, stop_after)
            asked = tuple(name for name, after in model.exits.items() if step.start <= after < stop and (
                after == last - 1 or name == exit_id or (step.exit is not None and step.exit.kind != "always")))
            pieces.append(Piece(step.node, duration_s=node.service_s(model.name, step.start, stop, asked)))
        back = list(zip(visited[:0:-1], visited[-2::-1], strict=True))
        for i, (src, dst) in enumerate(back):
            pieces.append(Piece(src, dst, size_bytes=ANSWER_BYTES + ANSWER_NODE_BYTES * i))
        branches.append(Branch(exit_id, chance, tuple(pieces)))
    return Candidate(plan, _accuracy(plan, model), tuple(branches))


def _shares(plan: Plan, model: ModelInfo) -> dict[str, float]:
    """Chance of each exit that the plan asks; those that are not asked pass their share on to the next that is."""
    rules = [step for step in plan.steps if step.exit is not None]
    if not rules:
        return {model.final_exit: 1.0}
    if rules[0].exit is not None and rules[0].exit.kind == "always":
        inside = {after: name for name, after in model.exits.items() if rules[0].start <= after < rules[0].stop}
        return {inside[max(inside)]: 1.0}
    point = _point(rules[0].exit, model)
    shares: dict[str, float] = {}
    carried = 0.0
    for name, after in sorted(model.exits.items(), key=lambda item: item[1]):
        carried += point.share.get(name, 0.0)
        asked = after == model.num_stages - 1 or any(s.start <= after < s.stop for s in rules)
        if asked:
            shares[name] = carried
            carried = 0.0
    return {name: share for name, share in shares.items() if share > 0}


def _accuracy(plan: Plan, model: ModelInfo) -> float:
    rule = next((step.exit for step in plan.steps if step.exit is not None), None)
    if rule is not None and rule.kind == "always":
        return model.exit_accuracy.get(next(iter(_shares(plan, model))), float("nan"))
    return model.accuracy if rule is None else _point(rule, model).accuracy


def _point(rule: ExitRule | None, model: ModelInfo) -> ExitPoint:
    assert rule is not None
    if rule.kind != "max_probability" or rule.calibrated:
        raise ValueError(f"no statistics for exits by {rule.kind}{' (calibrated)' if rule.calibrated else ''}")
    for point in model.exit_curve:
        if abs(point.threshold - rule.threshold) < 1e-9:
            return point
    if rule.threshold == 0:
        first = min(model.exits, key=lambda name: model.exits[name])
        accuracy = model.exit_accuracy.get(first, float("nan"))
        return ExitPoint(0.0, {first: 1.0}, {first: accuracy}, accuracy)
    raise ValueError(f"no statistics of {model.name}'s exits at threshold {rule.threshold:g}")


def alone_s(candidate: Candidate, truth: Truth, since_ns: ArrayLike, exit_id: str | None = None) -> FloatArray:
    """Expected latency in seconds, for each instant (ns since the start), when nothing else is on links and workers.

    inf where the plan fails: a node is down, or a link never carries it. `exit_id`: of the branch that ends there.
    """
    start = np.asarray(since_ns, dtype=np.float64)
    taken = [b for b in candidate.branches if b.exit_id == exit_id] or list(candidate.branches)
    weight, total = sum(b.chance for b in taken), np.zeros(start.shape)
    for branch in taken:
        t = start
        for piece in branch.pieces:
            if piece.dst is None:
                end = t + piece.duration_s * NS_PER_S
                t = np.where(truth.works(piece.src, t, end), end, np.inf)
            else:
                finite = np.isfinite(t)
                t = np.where(finite, truth.arrival_ns(piece.src, piece.dst, piece.size_bytes, np.where(finite, t, 0.0)), np.inf)
        total = total + branch.chance / weight * (t - start)
    return np.asarray(total / NS_PER_S)
