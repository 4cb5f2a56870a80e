"""What policies do in the periods that one (rate, depth) goes through: high and low metric, fast and slow arrivals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import uniform_filter1d

from testbed.policies.token_bucket.engine import Cell, Comparison

WINDOW = 21  # arrivals around the arrival, itself included


def periods(comparison: Comparison, cell: Cell) -> pd.DataFrame:
    """One row per policy and period: arrivals, offloaded images, their share, mean metric and mean loss saved.

    High metric: the mean metric of the WINDOW arrivals around an arrival is above the median of all such means. Fast: the
    time to the next arrival is the shorter of the two.
    """
    stream = comparison.test
    around = uniform_filter1d(stream.metric, WINDOW, axis=1, mode="nearest")
    kinds: dict[str, npt.NDArray[np.bool_]] = {}
    metric_kinds = {"high metric": around > np.median(around), "low metric": around <= np.median(around)} \
        if comparison.source.correlated else {"": np.ones(around.shape, bool)}
    interval = np.broadcast_to(stream.interval, around.shape)
    rate_kinds = {"fast": interval == interval.min(), "slow": interval > interval.min()} \
        if len(comparison.spec.arrivals.intervals) == 2 else {"": np.ones(around.shape, bool)}
    for rate_name, rate_mask in rate_kinds.items():
        for metric_name, metric_mask in metric_kinds.items():
            kinds[", ".join(filter(None, (rate_name, metric_name)))] = rate_mask & metric_mask
    rows = []
    for name in ("naive", "mdp", "dqn"):
        if name not in cell.offload:
            continue
        for kind, mask in kinds.items():
            chosen = cell.offload[name] & mask
            count, sent = int(mask.sum()), int(chosen.sum())
            rows.append({"r": cell.rate, "b": cell.depth, "period": kind, "policy": name, "arrivals": count, "offloaded": sent,
                         "offloaded_share": sent / max(1, count),
                         "mean_metric": float(stream.metric[chosen].mean()) if sent else np.nan,
                         "mean_saved": float(stream.reward[chosen].mean()) if sent else np.nan})
    return pd.DataFrame(rows)
