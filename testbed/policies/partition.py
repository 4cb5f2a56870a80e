"""Splitting a DAG of layers between an edge device and the cloud: least sum of stages, least largest stage (DADS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from testbed.policies.knowledge import ModelInfo
from testbed.policies.mincut import FlowNetwork

_PER_S = 10**12  # capacities are whole picoseconds, so that a cut is exact
_SHRINK = 2.0  # DSH: the grid's step is divided by this
_FIRST_STEP = 2.0  # DSH: step of the first grid, in powers of two
_REACH = 1  # DSH: grid points on each side of the centre, per weight
_MAX_ROUNDS = 6


@dataclass(frozen=True)
class Stages:
    """Time that one request occupies the edge, the uplink and the cloud, in seconds."""

    edge_s: float
    sending_s: float
    cloud_s: float

    @property
    def total_s(self) -> float:
        """Time of one request on its own."""
        return self.edge_s + self.sending_s + self.cloud_s

    @property
    def longest_s(self) -> float:
        """Least time between requests that the pipeline of the three can sustain."""
        return max(self.edge_s, self.sending_s, self.cloud_s)


@dataclass(frozen=True)
class Partition:
    """A DAG of n vertices to be split. `edges`: (a, b) when b reads what a made, a < b, a = -1 for the input, which is on the
    edge. Costs per vertex in seconds: `edge_s`, `cloud_s`; `sending_s` has n + 1, the input's first: paid once when a vertex on
    the edge (or the input) has a successor in the cloud.
    """

    edges: tuple[tuple[int, int], ...]
    edge_s: tuple[float, ...]
    cloud_s: tuple[float, ...]
    sending_s: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of vertices."""
        return len(self.edge_s)

    @cached_property
    def successors(self) -> dict[int, tuple[int, ...]]:
        """Vertices that read what a vertex (-1: the input) made."""
        found: dict[int, list[int]] = {v: [] for v in range(-1, self.n)}
        for a, b in self.edges:
            found[a].append(b)
        return {v: tuple(to) for v, to in found.items()}

    def stages(self, edge_side: frozenset[int]) -> Stages:
        """Times of the three stages when these vertices run on the edge and all others in the cloud."""
        sent = [v for v, following in self.successors.items()
                if (v == -1 or v in edge_side) and any(w not in edge_side for w in following)]
        return Stages(sum((self.edge_s[v] for v in edge_side), 0.0), sum((self.sending_s[v + 1] for v in sent), 0.0),
                      sum((self.cloud_s[v] for v in range(self.n) if v not in edge_side), 0.0))

    def is_closed(self, edge_side: frozenset[int]) -> bool:
        """Whether no vertex of the edge side reads what the cloud made."""
        return all(a == -1 or a in edge_side for a, b in self.edges if b in edge_side)

    def prefix(self, cut: int) -> frozenset[int]:
        """The first `cut` vertices, in the order of execution."""
        return frozenset(range(cut))

    def best_prefix(self, longest: bool) -> int:
        """The cut of the order of execution with the least sum, or the least largest stage; of equal ones the last."""
        costs = [self._cost(self.stages(self.prefix(cut)), longest) for cut in range(self.n + 1)]
        return max(range(self.n + 1), key=lambda cut: (-costs[cut][0], -costs[cut][1], cut))

    @staticmethod
    def _cost(stages: Stages, longest: bool) -> tuple[float, float]:
        return (stages.longest_s, stages.total_s) if longest else (stages.total_s, stages.longest_s)

    def light(self, alpha: float = 1.0, gamma: float = 1.0) -> frozenset[int]:
        """DADS's DSL: the edge side of least alpha * edge + sending + gamma * cloud time, by a minimum cut.

        Arcs: edge -> v of the cloud's time, v -> cloud of the edge's; v -> successor of the sending time, which for several
        successors stands on an arc to a vertex of its own, so that it is paid once. The published construction (INFOCOM 2019)
        lets an edge vertex read from the cloud; the arc successor -> v of infinite capacity forbids that, and the input is the
        edge's terminal.
        """
        send = [round(s * _PER_S) for s in self.sending_s]
        on_edge = [round(alpha * s * _PER_S) for s in self.edge_s]
        in_cloud = [round(gamma * s * _PER_S) for s in self.cloud_s]
        infinite = sum(send) + sum(on_edge) + sum(in_cloud) + 1
        edge, cloud, first_own = self.n, self.n + 1, self.n + 2
        network = FlowNetwork(first_own + self.n + 1)
        for v in range(-1, self.n):
            tail = edge if v == -1 else v
            if v >= 0:
                network.add_arc(edge, v, in_cloud[v])
                network.add_arc(v, cloud, on_edge[v])
            following = self.successors[v]
            own = first_own + v + 1
            if len(following) > 1:
                network.add_arc(tail, own, send[v + 1])
            for w in following:
                if len(following) > 1:
                    network.add_arc(own, w, infinite)
                else:
                    network.add_arc(tail, w, send[v + 1])
                if v >= 0:
                    network.add_arc(w, v, infinite)
        return frozenset(v for v in network.min_cut(edge, cloud)[1] if v < self.n)

    def heavy(self, tolerance: float = 0.01) -> frozenset[int]:
        """DADS's DSH: an edge side with a small largest stage (least is NP-hard), at most three times the least.

        Minimum cuts of alpha * edge + sending + gamma * cloud over a grid of weights around (1, 1); then finer grids around the
        best one, until a grid improves the largest stage by less than `tolerance`. The bound holds because (1, 1) is in the first
        grid: its sum is at most that of the best partition, which is at most three times its largest stage. The paper gives grid
        and shrinking; that the grid lies in powers of two is our choice.
        """
        best_set = self.light()
        best, centre, step = self._cost(self.stages(best_set), True), (0.0, 0.0), _FIRST_STEP
        tried: set[tuple[float, float]] = {centre}
        for _ in range(_MAX_ROUNDS):
            before, middle = best[0], centre
            for i in range(-_REACH, _REACH + 1):
                for j in range(-_REACH, _REACH + 1):
                    at = (middle[0] + i * step, middle[1] + j * step)
                    if at in tried:
                        continue
                    tried.add(at)
                    found = self.light(2.0 ** at[0], 2.0 ** at[1])
                    cost = self._cost(self.stages(found), True)
                    if cost < best:
                        best, best_set, centre = cost, found, at
            if step < _FIRST_STEP and before - best[0] < tolerance * before:
                break
            step /= _SHRINK
        return best_set


def partition_of(model: ModelInfo, edge_s: Sequence[float], cloud_s: Sequence[float], payload_bytes: Sequence[int],
                 bps: float) -> Partition:
    """The model's stages as a DAG: its own edges, or a chain.

    `payload_bytes`: what the input and each stage's output (n + 1) take on the wire; `bps`: rate of the uplink.
    """
    edges = model.edges or tuple((v - 1, v) for v in range(model.num_stages))
    return Partition(edges, tuple(edge_s), tuple(cloud_s), tuple(8 * size / bps for size in payload_bytes))


def vertex_payloads(model: ModelInfo, codec: str = "raw", input_codec: str = "raw") -> list[int]:
    """Bytes of the input and of each stage's own output in a codec; in a graph the codec's ratio is that of the cut there."""
    found = [model.bytes_at(0, input_codec)]
    for v in range(model.num_stages):
        at_cut = model.bytes_at(v + 1, codec)
        found.append(round(model.vertex_bytes[v] * at_cut / model.output_bytes[v]) if model.vertex_bytes else at_cut)
    return found
