"""An inference delivery network as arrays: nodes, models, capacities, budgets, request types and their ranked options.

Model: Si Salem et al., Towards Inference Delivery Networks (arXiv 2105.02510; ToN 32(1), 2024), formulas re-derived here.
Letters in shapes: V nodes, M models (copies count), R request types, J longest path, K options of a request type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from testbed.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Sharing = Literal["proportional", "none"]
UNLIMITED = 1e18  # requests per slot; stands for an infinite capacity, so that 0 times it is 0


@dataclass(frozen=True, eq=False)
class Options:
    """For every request type, all (node, model) that can serve it, cheapest first; arrays (R, K), padded at the end.

    A padded option has no capacity and the cost of the last real one. Ties are in the order of the path.
    """

    flat: IntArray  # node * M + model
    cost_ms: FloatArray  # gamma: latency + alpha * inaccuracy
    latency_ms: FloatArray  # round trips to the node + delay of the model there
    inaccuracy: FloatArray  # 100 - accuracy, in points
    position: IntArray  # where on the path, 0 = where the request enters
    limit: FloatArray  # L(v, m), requests per slot
    passing: IntArray  # node * number of tasks + task: which demand competes for this model
    valid: BoolArray


@dataclass(frozen=True, eq=False)
class Problem:
    """Nodes, models, paths and costs of an inference delivery network. Raises InputError when they do not fit together.

    A request type is (task, path); the last node of its path is a repository: it holds, for ever, at least one model of the
    task with unlimited capacity. Serving at p_j with model m costs path_ms[j] + delay_ms + alpha_ms * (100 - accuracy).
    """

    nodes: tuple[str, ...]  # V names
    tier: IntArray  # (V,) index into tiers
    tiers: tuple[str, ...]
    models: tuple[str, ...]  # M names
    task: IntArray  # (M,) the task that the model serves
    accuracy: FloatArray  # (M,) percentage points, 0 to 100
    size_bytes: FloatArray  # (V, M) memory that the model takes
    delay_ms: FloatArray  # (V, M) of one inference
    capacity: FloatArray  # (V, M) requests per slot; inf = unlimited
    budget_bytes: FloatArray  # (V,) memory of the node
    pinned: BoolArray  # (V, M) omega, the minimal allocation: what repositories hold permanently
    type_task: IntArray  # (R,)
    path: IntArray  # (R, J) nodes from where requests enter to the repository; -1 after the end
    path_ms: FloatArray  # (R, J) round trip from the entry to this node
    alpha_ms: float = 1.0  # ms per point of accuracy
    sharing: Sharing = "proportional"

    def __post_init__(self) -> None:
        v, m = len(self.nodes), len(self.models)
        for name, shape in (("tier", (v,)), ("task", (m,)), ("accuracy", (m,)), ("size_bytes", (v, m)), ("delay_ms", (v, m)),
                            ("capacity", (v, m)), ("budget_bytes", (v,)), ("pinned", (v, m)),
                            ("path", (len(self.type_task), self.path.shape[-1])), ("path_ms", self.path.shape)):
            if getattr(self, name).shape != shape:
                raise InputError("has the wrong shape", key=name, value=getattr(self, name).shape, remedy=f"give {shape}")
        if not (self.size_bytes > 0).all() or (self.budget_bytes < 0).any() or (self.capacity < 0).any():
            raise InputError("sizes must be positive, budgets and capacities at least zero", key="problem",
                             remedy="check size_bytes, budget_bytes and capacity")
        if self.alpha_ms < 0:
            raise InputError("is negative", key="alpha_ms", value=self.alpha_ms, remedy="give ms per point of accuracy")
        short = (self.size_bytes * self.pinned).sum(axis=1) > self.budget_bytes * (1 + 1e-9)
        if short.any():
            raise InputError("is smaller than what the repository holds permanently", key="budget_bytes",
                             value=self.nodes[int(np.argmax(short))], remedy="raise it, or pin fewer models")
        last = self.path[np.arange(len(self.path)), (self.path >= 0).sum(axis=1) - 1]  # (R,)
        backed = (self.pinned & np.isinf(self.capacity))[last] & (self.task[None, :] == self.type_task[:, None])
        if not backed.any(axis=1).all():
            raise InputError("ends at a node without a permanent model of unlimited capacity for its task", key="path",
                             value=int(np.argmin(backed.any(axis=1))), remedy="end every path at a repository")

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return int(self.task.max()) + 1

    @property
    def num_types(self) -> int:
        """R, the number of request types."""
        return len(self.type_task)

    @cached_property
    def free_bytes(self) -> FloatArray:
        """(V,) budget left beside the permanent models."""
        free: FloatArray = self.budget_bytes - (self.size_bytes * self.pinned).sum(axis=1)
        return free

    @cached_property
    def choosable(self) -> BoolArray:
        """(V, M) models that a node may add: not permanent there, and not larger than what is left."""
        result: BoolArray = ~self.pinned & (self.size_bytes <= self.free_bytes[:, None] * (1 + 1e-9))
        return result

    @cached_property
    def hops(self) -> IntArray:
        """(R,) links of the path."""
        links: IntArray = (self.path >= 0).sum(axis=1) - 1
        return links

    @cached_property
    def options(self) -> Options:
        """All (node, model) of every request type, ranked by cost."""
        per_task = [np.flatnonzero(self.task == i) for i in range(self.num_tasks)]
        width = max(len(ms) for ms in per_task)
        models = np.full((self.num_tasks, width), -1)
        for i, ms in enumerate(per_task):
            models[i, :len(ms)] = ms
        shape = (len(self.path), self.path.shape[1], width)
        node = np.broadcast_to(self.path[:, :, None], shape).reshape(len(self.path), -1)
        model = np.broadcast_to(models[self.type_task][:, None, :], shape).reshape(len(self.path), -1)
        position = np.broadcast_to(np.arange(shape[1])[None, :, None], shape).reshape(len(self.path), -1)
        trip_ms = np.broadcast_to(self.path_ms[:, :, None], shape).reshape(len(self.path), -1)
        valid = (node >= 0) & (model >= 0)
        v, m = np.where(valid, node, 0), np.where(valid, model, 0)
        latency = np.where(valid, trip_ms + self.delay_ms[v, m], np.inf)
        inaccuracy = 100.0 - self.accuracy[m]
        cost = latency + self.alpha_ms * inaccuracy
        order = np.argsort(cost, axis=1, kind="stable")
        v, m, valid, position = (np.take_along_axis(a, order, axis=1) for a in (v, m, valid, position))
        latency, inaccuracy, cost = (np.take_along_axis(a, order, axis=1) for a in (latency, inaccuracy, cost))
        worst = np.max(np.where(valid, cost, -np.inf), axis=1, keepdims=True)
        limit = np.where(valid, np.minimum(self.capacity[v, m], UNLIMITED), 0.0)
        return Options(v * len(self.models) + m, np.where(valid, cost, worst), np.where(valid, latency, 0.0),
                       np.where(valid, inaccuracy, 0.0), position, limit, v * self.num_tasks + self.type_task[:, None], valid)

    @cached_property
    def _passing(self) -> tuple[IntArray, IntArray]:
        """Request type and node * tasks + task of every stop of every path, both (stops,)."""
        kind, stop = np.nonzero(self.path >= 0)
        return kind, self.path[kind, stop] * self.num_tasks + self.type_task[kind]

    def passing(self, demand: FloatArray) -> FloatArray:
        """Requests (V,) of the slot's `demand` (R,) whose path leads over each node."""
        kind, key = self._passing
        return np.asarray(np.bincount(key // self.num_tasks, weights=demand[kind], minlength=len(self.nodes)), dtype=np.float64)

    def potential(self, demand: FloatArray) -> FloatArray:
        """Potential available capacity l (R, K) of every option in a slot with `demand` (R,) requests, deployed or not.

        l <= min(L, r). `proportional`: request types of one task that pass a node share each of its models in proportion to
        their demand, so that together they never get more than L. `none`: each gets min(L, r), as if it were alone.
        """
        options = self.options
        if self.sharing == "none":
            return np.minimum(options.limit, demand[:, None])
        kind, key = self._passing
        load = np.bincount(key, weights=demand[kind], minlength=len(self.nodes) * self.num_tasks)
        per_request = 1.0 / np.maximum(load, 1e-300)
        limited = np.minimum(options.limit * np.minimum(per_request[options.passing], 1e250), 1.0)
        result: FloatArray = limited * demand[:, None] * options.valid
        return result
