"""Predicted and measured: the latency that compute, bytes, rate and delay give, beside the one that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.measurement import format as fmt
from testbed.measurement.atomic import write_text_atomic
from testbed.measurement.records import LIST_SEPARATOR, latency_s
from testbed.measurement.trial import Trial
from testbed.measurement.wire import wire_bytes

PREDICTION = "prediction.csv"
AGREES_SHARE, AGREES_S = 0.10, 0.005  # a prediction holds within the larger of these
COLUMNS = ("policy", "point", "requests", "predicted_s", "measured_s", "residual_s", "residual_share", "compute_s",
           "transmission_s", "delay_s", "agrees", "why_not")

Groups = Iterable[tuple[str, Mapping[str, Any], Sequence[Trial]]]  # policy, sweep point, trials


def transfer_s(message_bytes: float, sides: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(transmission, propagation) in seconds of one message over directions of links, one after the other.

    Transmission: wire bytes over the slowest rate. A link's token bucket (`bucket_bytes`: one packet and 2 ms of the rate)
    is full after a pause and passes that much at once, so it is taken off, and the other links of the way add nothing.
    Propagation: the sum of the one-way delays. Nothing else: no slow start, no queue, no retransmission.
    """
    transmission = max((max(0.0, wire_bytes(message_bytes) - float(side.get("bucket_bytes") or 0)) * 8 / float(side["rate_bps"])
                        for side in sides if side.get("rate_bps")), default=0.0)
    return transmission, sum(float(side.get("delay_s") or 0.0) for side in sides)


def predict(trial: Trial) -> tuple[pd.DataFrame, str]:
    """One row per measured request (answered, without a fallback or a second attempt), and why there is none.

    Columns: request_id, compute_s, transmission_s, delay_s, predicted_s, measured_s. Compute is the service time that the
    profile stated for the stages that ran, so `real` compute cannot be predicted; nor can a link that replays a trace.
    """
    empty = pd.DataFrame(columns=["request_id", "compute_s", "transmission_s", "delay_s", "predicted_s", "measured_s"])
    table = trial.requests
    requests = table[table["phase"].fillna("measure").eq("measure") & table["status"].eq("ok").fillna(False)
                     & table["error_type"].isna() & table["backup"].isna()]
    hops = trial.hops[trial.hops["request_id"].isin(requests["request_id"])]
    computes, transfers = (hops[hops["kind"] == kind] for kind in ("compute", "transfer"))
    if not len(requests):
        return empty, "no request was answered"
    if computes["service_ns"].isna().any():
        return empty, "compute is real, not a profile's"
    links = {str(link["name"]): link for link in trial.manifest.get("links") or []}
    total = pd.DataFrame({"compute_s": computes.groupby("request_id")["service_ns"].sum() / 1e9}).astype("float64")
    ways: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    rows = []
    if transfers["payload_bytes"].isna().any():
        return empty, "transfers failed"
    sizes = transfers["payload_bytes"].to_numpy("float64") + transfers["header_bytes"].fillna(0).to_numpy("float64")
    for size, hop in zip(sizes, transfers.itertuples(), strict=True):
        key = (str(hop.src_node), str(hop.dst_node), str(hop.link))
        if key not in ways:
            found, why = _way(*key, links)
            if why:
                return empty, why
            ways[key] = found
        rows.append((hop.request_id, *transfer_s(float(size), ways[key])))
    moved = pd.DataFrame(rows, columns=["request_id", "transmission_s", "delay_s"]).groupby("request_id").sum()
    frame = requests[["request_id"]].assign(measured_s=latency_s(requests))
    frame = frame.join(total, on="request_id").join(moved, on="request_id")
    parts = ["compute_s", "transmission_s", "delay_s"]
    frame[parts] = frame[parts].astype("float64").fillna(0.0)
    return frame.assign(predicted_s=frame[parts].sum(axis=1))[empty.columns], ""


def _way(src: str, dst: str, names: str, links: Mapping[str, Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The directions that a message crosses, or why its time cannot be predicted."""
    at, sides = src, []
    for name in names.split(LIST_SEPARATOR):
        link = links.get(name)
        if link is None or at not in (link.get("src"), link.get("dst")):
            return [], f"the way from {src} to {dst} is not known"
        up = link.get("src") == at
        side = link.get("up" if up else "down") or {}
        at = str(link.get("dst" if up else "src"))
        if side.get("trace"):
            return [], f"link {name} replays a trace"
        if side.get("jitter_s") or side.get("loss"):
            return [], f"link {name} has jitter or loss"
        sides.append(side)
    return (sides, "") if at == dst else ([], f"the way from {src} to {dst} is not known")


def prediction_table(groups: Groups) -> pd.DataFrame:
    """One row per policy and sweep point (repeats pooled), columns COLUMNS: medians over requests, in seconds.

    `residual_s` is the median of measured - predicted, `residual_share` that over the predicted median. `agrees` when the
    residual is within 10% of the prediction or within 5 ms; None where nothing could be predicted, with `why_not`.
    """
    rows = []
    for policy, point, trials in groups:
        parts = [predict(trial) for trial in trials]
        frames = [frame for frame, _ in parts if len(frame)]
        row: dict[str, Any] = {name: None for name in COLUMNS}
        row |= {"policy": policy, "point": ", ".join(f"{k.rsplit('.', 1)[-1]}={fmt.swept(v)}" for k, v in point.items())}
        if not frames:
            rows.append(row | {"requests": 0, "why_not": next((why for _, why in parts if why), "no request")})
            continue
        frame = pd.concat(frames, ignore_index=True)
        residual = float((frame["measured_s"] - frame["predicted_s"]).median())
        medians = {name: float(frame[name].median())
                   for name in ("predicted_s", "measured_s", "compute_s", "transmission_s", "delay_s")}
        share = residual / medians["predicted_s"] if medians["predicted_s"] else np.nan
        rows.append(row | medians | {"requests": len(frame), "residual_s": residual, "residual_share": share, "why_not": "",
                                     "agrees": abs(residual) <= max(AGREES_S, AGREES_SHARE * medians["predicted_s"])})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_prediction(run_dir: Path, groups: Groups) -> pd.DataFrame:
    """Write `prediction.csv` of a run (nothing where no plan could be predicted); returns the table."""
    table = prediction_table(groups)
    if table["predicted_s"].notna().any():
        written = table.assign(agrees=table["agrees"].map({True: "true", False: "false"}))
        write_text_atomic(run_dir / PREDICTION, written.to_csv(index=False, lineterminator="\n"))
    return table
