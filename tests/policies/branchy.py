"""Random models with exits, and what a device knows of them, for tests of policies that choose exits."""

from __future__ import annotations

import numpy as np

from testbed.inference.evaluate import CURVE_THRESHOLDS, exit_curve
from testbed.policies import Context, ExitPoint, ModelInfo, NodeInfo

CODEC = "int8+lz4"


class Branchy:
    """A model of 2 to 6 stages with 1 to 3 early exits, logits of 300 samples at every exit, and times on two nodes."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.stages = int(rng.integers(2, 7))
        early = np.sort(rng.choice(self.stages - 1, size=int(rng.integers(1, min(3, self.stages - 1) + 1)), replace=False))
        self.exits = {f"e{i}": int(after) for i, after in enumerate(early)} | {"final": self.stages - 1}
        self.labels = rng.integers(0, 5, 300)
        self.logits = {name: (rng.normal(0, 1, (300, 5)) + strength * np.eye(5)[self.labels]).astype(np.float32)
                       for name, strength in zip(self.exits, np.linspace(1, 4, len(self.exits)), strict=True)}
        self.device_s, self.server_s = rng.uniform(1e-3, 0.03, self.stages), rng.uniform(1e-4, 5e-3, self.stages)
        self.device_head_s = {name: float(rng.uniform(1e-4, 3e-3)) for name in self.exits if name != "final"} | {"final": 0.0}
        self.server_head_s = {name: t / 5 for name, t in self.device_head_s.items()}
        self.raw = [int(n) for n in rng.integers(100, 60_000, self.stages + 1)]
        self.packed = [n // 5 for n in self.raw]
        column = exit_curve(self.logits, self.labels, CURVE_THRESHOLDS)
        curve = tuple(ExitPoint(t, {n: c[i] for n, c in column["share"].items()},
                                {n: c[i] for n, c in column["exit_accuracy"].items() if c[i] is not None}, column["accuracy"][i])
                      for i, t in enumerate(CURVE_THRESHOLDS))
        self.info = ModelInfo("net", tuple(f"s{i}" for i in range(self.stages)), self.exits, self.raw[0], tuple(self.raw[1:]),
                              exit_accuracy={n: float((v.argmax(1) == self.labels).mean()) for n, v in self.logits.items()},
                              exit_curve=curve, wire_bytes={CODEC: tuple(self.packed)})
        nodes = {"device1": NodeInfo("device1", "device", {"net": tuple(self.device_s)}, {"net": self.device_head_s}),
                 "edge1": NodeInfo("edge1", "edge", {"net": tuple(self.server_s)}, {"net": self.server_head_s})}
        self.context = Context("device1", {"device": "device1", "edge": "edge1"}, ("device", "edge"), {"net": self.info}, "net",
                               0.1, 1, nodes)
