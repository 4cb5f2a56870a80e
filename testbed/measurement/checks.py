"""What each validity check measures: a value, and the words for when it exceeds its limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from testbed.measurement.components import UNACCOUNTED, components, order_violations
from testbed.measurement.records import HOPS, LINKS, LIST_SEPARATOR, MACHINE, NODES, REQUESTS, empty_table

RATE_SLACK_BPS = 50_000  # absolute tolerance of a calibrated rate: two packets per 500 ms
RTT_SLACK_SHARE = 0.05  # relative tolerance of a calibrated round trip, beside the absolute one
BUSY = 0.95  # a window in which all cores together did this much counts as saturated
MIN_BUSY_WINDOWS = 5  # below this, delivered bytes say nothing about the link
PACKET_BYTES = 1_500
OVERRUN_SHARE, OVERRUN_NS = 1.05, 1_000_000
MSS_BYTES = 1_448  # TCP payload of a full frame with time stamps
SEGMENT_HEADER_BYTES = 52  # IPv4 20, TCP with time stamps 32; links count IP bytes
GSO_BYTES = 65_536  # a segmentation-offloaded packet may be counted with a single header
CONNECTION_BYTES = 6 * SEGMENT_HEADER_BYTES  # handshake and close, per direction, at most
SIDE_TRAFFIC_BYTES_PER_S = 300  # address resolution, health probes, keep-alive
DEFAULT_STEP_NS = 10_000_000


@dataclass(frozen=True)
class Inputs:
    """The evidence: manifest, the four tables (empty when absent) and the fabric summary ({} when absent)."""

    manifest: Mapping[str, Any]
    requests: pd.DataFrame = field(default_factory=lambda: empty_table(REQUESTS))
    hops: pd.DataFrame = field(default_factory=lambda: empty_table(HOPS))
    links: pd.DataFrame = field(default_factory=lambda: empty_table(LINKS))
    nodes: pd.DataFrame = field(default_factory=lambda: empty_table(NODES))
    fabric: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> pd.DataFrame:
        """Requests of the measured phase."""
        return self.requests[self.requests["phase"].fillna("measure") == "measure"]

    @property
    def window_ns(self) -> tuple[int, int] | None:
        """First scheduled and last completed instant of the measured phase."""
        if not len(self.measured):
            return None
        ends = self.measured["completed_ns"].dropna()
        last = ends.max() if len(ends) else self.measured["scheduled_ns"].max()
        return int(self.measured["scheduled_ns"].min()), int(last)


@dataclass(frozen=True)
class Finding:
    """A measured value with the text for its failure; value None means not measured, and text says why."""

    value: float | None
    text: str


def issue_delay(inputs: Inputs, limit: float) -> Finding:
    """p99 of issued - scheduled."""
    rows = inputs.measured
    delay = (rows["issued_ns"] - rows["scheduled_ns"]).dropna().to_numpy("float64") / 1e9
    if not len(delay):
        return Finding(None, "no request has both instants")
    value = float(np.quantile(delay, 0.99, method="higher"))
    return Finding(value, f"the load generator issued requests {_ms(value)} late at p99 (limit {_ms(limit)}); "
                          "lower the load, use fewer nodes, or give the machine more cores")


def apply_lag(inputs: Inputs, limit: float) -> Finding:
    """p99 lateness of shaper updates in steps, worst link direction."""
    worst: tuple[float, str, float] | None = None
    for name, side in _sides(inputs):
        lag = side.get("apply_lag_p99_ns")
        if isinstance(lag, int | float) and side.get("updates", 1):
            steps = float(lag) / _step_ns(inputs, side)
            if worst is None or steps > worst[0]:
                worst = steps, name, float(lag)
    if worst is None:
        rows = inputs.links[inputs.links["apply_lag_ns"].notna()]
        for (link, direction), group in rows.groupby(["link", "direction"]):
            lag = float(np.quantile(group["apply_lag_ns"].to_numpy("float64"), 0.99))
            steps = lag / _step_ns(inputs, {})
            if worst is None or steps > worst[0]:
                worst = steps, f"{link} {direction}", lag
    if worst is None:
        return Finding(None, "no link replays a trace, or the shaper left no record")
    return Finding(worst[0], f"the shaper of {worst[1]} applied its trace {_ms(worst[2] / 1e9)} late at p99 "
                             f"({worst[0]:.2f} steps, limit {limit:g}); use fewer links or a longer replay_step, or "
                             "leave the machine to this run alone")


def missed_steps(inputs: Inputs, limit: float) -> Finding:
    """Share of shaper updates that were skipped, worst link direction."""
    worst: tuple[float, str] | None = None
    for name, side in _sides(inputs):
        updates, missed = side.get("updates"), side.get("missed_steps")
        if isinstance(updates, int | float) and isinstance(missed, int | float) and updates + missed > 0:
            share = float(missed) / float(updates + missed)
            if worst is None or share > worst[0]:
                worst = share, name
    if worst is None:
        return Finding(None, "no link replays a trace, or the shaper left no record")
    return Finding(worst[0], f"the shaper of {worst[1]} skipped {worst[0]:.1%} of its updates (limit {limit:.1%}); "
                             "use fewer links or a longer replay_step")


def delivered(inputs: Inputs, limit: float) -> Finding:
    """Bytes delivered against bytes that the trace allowed, over windows in which the link was surely busy.

    Between two polls a link is surely busy when it began with at least as many bytes waiting as the trace
    allowed in between: whatever arrived meanwhile, its queue cannot have run empty.
    """
    worst: tuple[float, str, float] | None = None
    for name, polls in _polls(inputs, ["tx_bytes", "allowed_bytes", "backlog_bytes"]):
        sent = np.diff(polls["tx_bytes"].to_numpy("float64"))
        allowed = np.diff(polls["allowed_bytes"].to_numpy("float64"))
        busy = (polls["backlog_bytes"].to_numpy("float64")[:-1] >= allowed) & (allowed > 0)
        if busy.sum() < MIN_BUSY_WINDOWS:
            continue
        # a run of neighbouring busy windows is uncertain by about a packet at each of its two ends
        runs = int(np.diff(np.concatenate(([0], busy.astype(int), [0]))).clip(min=0).sum())
        off = max(0.0, abs(sent[busy].sum() - allowed[busy].sum()) - 2 * PACKET_BYTES * runs**0.5)
        error = off / allowed[busy].sum()
        if worst is None or error > worst[0]:
            worst = error, name, sent[busy].sum() / allowed[busy].sum()
    if worst is None:
        return Finding(None, f"no link was surely busy for {MIN_BUSY_WINDOWS} polls, so its capacity was not put to "
                             "the test")
    return Finding(worst[0], f"{worst[1]} delivered {worst[2]:.1%} of what its trace allowed while it was busy "
                             f"(off by {worst[0]:.1%}, limit {limit:.1%}); look at the shaper's lag and at the CPU")


def delay_line(inputs: Inputs, limit: float) -> Finding:
    """p99 lateness of frames in the user-space delay line, from the start of the load on."""
    late = (inputs.fabric.get("delay_line") or {}).get("late_p99_ns")
    if not isinstance(late, int | float):
        return Finding(None, "no link uses the delay line (netem delays in the kernel), or no frame passed it under load")
    value = float(late) / 1e9
    return Finding(value, f"the delay line let frames go {_ms(value)} late at p99 (limit {_ms(limit)}); use fewer "
                          "links, more cores, or a kernel with netem")


def calibrated_rate(inputs: Inputs, limit: float) -> Finding:
    """Relative error of the measured rate beyond the absolute slack, worst link direction."""
    return _calibrated(inputs, "asked_rate_bps", "measured_rate_bps", limit)


def calibrated_rtt(inputs: Inputs, limit: float) -> Finding:
    """Absolute error of the measured round trip beyond the relative slack, worst link."""
    return _calibrated(inputs, "asked_rtt_s", "measured_rtt_s", limit)


def cpu_busy(inputs: Inputs, limit: float) -> Finding:
    """Share of windows in which the whole machine was saturated."""
    polls = _machine(inputs)
    cores = (inputs.manifest.get("host") or {}).get("cpu_count")
    if len(polls) < 3 or not cores:
        return Finding(None, "no polls of the whole machine, or its number of cores is not known")
    elapsed = np.diff(polls["t_ns"].to_numpy("float64")) / 1e9
    used = np.diff(polls["cpu_usage_s"].to_numpy("float64"))
    value = float((used[elapsed > 0] / (elapsed[elapsed > 0] * float(cores)) > BUSY).mean())
    return Finding(value, f"all {cores} cores were busy in {value:.0%} of the windows (limit {limit:.0%}); lower the "
                          "load, use outputs: memoised, or end other programs")


def cpu_steal(inputs: Inputs, limit: float) -> Finding:
    """Share of CPU time that the hypervisor gave to others."""
    polls = _machine(inputs)
    polls = polls[polls["cpu_steal_s"].notna()]
    cores = (inputs.manifest.get("host") or {}).get("cpu_count")
    if len(polls) < 2 or not cores:
        return Finding(None, "steal time was not polled")
    elapsed = float(polls["t_ns"].iloc[-1] - polls["t_ns"].iloc[0]) / 1e9 * float(cores)
    value = float(polls["cpu_steal_s"].iloc[-1] - polls["cpu_steal_s"].iloc[0]) / elapsed if elapsed > 0 else 0.0
    return Finding(value, f"the hypervisor took {value:.1%} of the CPU time (limit {limit:.1%}); run again when the "
                          "host is quieter, or on another machine")


def throttled(inputs: Inputs, limit: float) -> Finding:
    """Share of time in which a quota that the file does not name held a node back, worst node."""
    planned = {str(node.get("name")) for node in inputs.manifest.get("nodes") or [] if node.get("cpus") is not None}
    worst: tuple[float, str] | None = None
    rows = _within(inputs, inputs.nodes[inputs.nodes["cpu_throttled_s"].notna()])
    for node, polls in rows[~rows["node"].isin([MACHINE, *planned]).fillna(False)].groupby("node"):
        elapsed = float(polls["t_ns"].max() - polls["t_ns"].min()) / 1e9
        if elapsed > 0:
            share = float(polls["cpu_throttled_s"].max() - polls["cpu_throttled_s"].min()) / elapsed
            if worst is None or share > worst[0]:
                worst = share, str(node)
    if worst is None:
        return Finding(None, "no node without a planned quota was polled for throttling")
    return Finding(worst[0], f"node {worst[1]} was throttled {worst[0]:.1%} of the time though the file gives it no "
                             f"quota (limit {limit:.1%}); look for a CPU limit on the container engine or the session")


def compute_overrun(inputs: Inputs, limit: float) -> Finding:
    """Share of computations that took longer than their profile's service time."""
    rows = inputs.hops[inputs.hops["service_ns"].notna() & inputs.hops["compute_end_ns"].notna()]
    rows = rows[rows["compute_start_ns"].notna()]
    if not len(rows):
        return Finding(None, "no node has a compute profile")
    took = (rows["compute_end_ns"] - rows["compute_start_ns"]).to_numpy("float64")
    over = took > rows["service_ns"].to_numpy("float64") * OVERRUN_SHARE + OVERRUN_NS
    by_node = pd.Series(over).groupby(rows["dst_node"].to_numpy(object)).mean()
    value, node = float(by_node.max()), str(by_node.idxmax())
    return Finding(value, f"{value:.0%} of the computations on {node} took longer than its profile's service time "
                          f"(limit {limit:.0%}); lower the load, use outputs: memoised, or a slower profile")


def memo_misses(inputs: Inputs, limit: float) -> Finding:
    """Share of computations on memoised nodes, in measured requests, whose output was not stored."""
    rows = inputs.hops[inputs.hops["memo_hit"].notna() & inputs.hops["request_id"].isin(inputs.measured["request_id"])]
    if not len(rows):
        return Finding(None, "no node has memoised outputs")
    missed = int((~rows["memo_hit"].astype(bool)).sum())
    return Finding(missed / len(rows), f"{missed} of {len(rows)} outputs were not stored and had to be computed "
                                       f"({missed / len(rows):.1%}, limit {limit:.0%}); run again: the outputs are now stored")


def samples(inputs: Inputs, limit: float) -> Finding:
    """Answered requests in the measured phase."""
    rows = inputs.measured
    answered = int(rows["status"].eq("ok").fillna(False).sum())
    return Finding(float(answered), f"{answered} requests were answered, {limit:g} are needed for the percentiles "
                                    "asked; raise load.requests_per_device or repeats")


def unaccounted(inputs: Inputs, limit: float) -> Finding:
    """p99 of the part of the latency that no hop explains."""
    rows = inputs.measured
    if not len(inputs.hops) or not rows["status"].eq("ok").fillna(False).any():
        return Finding(None, "there are no hop rows of answered requests")
    tiers = {str(n["name"]): str(n.get("tier", n["name"])) for n in inputs.manifest.get("nodes") or []}
    rest = components(rows, inputs.hops, tiers)[UNACCOUNTED].to_numpy("float64")
    value = float(np.quantile(rest, 0.99, method="higher"))
    return Finding(value, f"{_ms(value)} of a request's latency at p99 is in no hop (limit {_ms(limit)}, longest "
                          f"{_ms(float(rest.max()))}); the machine was too busy between hops, or a hop is not recorded")


def violations(inputs: Inputs, limit: float) -> Finding:
    """Rows whose instants run backwards."""
    rows = inputs.requests
    early = ((rows["issued_ns"] < rows["scheduled_ns"]) | (rows["dispatched_ns"] < rows["issued_ns"])
             | (rows["completed_ns"] < rows["dispatched_ns"]) | (rows["completed_ns"] < rows["issued_ns"]))
    count = order_violations(inputs.hops) + int(early.fillna(False).sum()) + int(rows["request_id"].duplicated().sum())
    return Finding(float(count), f"{count} rows have instants that run backwards or a request id that occurs twice; "
                                 "keep the trial's directory and report a bug")


def link_bytes(inputs: Inputs, limit: float) -> Finding:
    """Kernel's byte count against messages plus headers, worst link direction that carried data.

    Headers are known only between bounds: at least one per 64 KB (offloaded segments counted once), at most
    one per 1448 bytes, and up to one acknowledgement per segment of the other direction. The value is how far
    the kernel's count lies outside these bounds, relative to what was expected.
    """
    expected = _expected_bytes(inputs)
    failed = not inputs.requests["status"].eq("ok").fillna(False).all()
    attempts = _attempted_bytes(inputs)
    worst: tuple[float, str, float, float] | None = None
    for name, polls in _polls(inputs, ["tx_bytes"]):
        if name not in expected:
            continue
        size, messages, back_size = expected[name]
        if size < 20 * MSS_BYTES:
            continue  # a handful of small messages: headers and probes dominate
        counted = float(polls["tx_bytes"].iloc[-1] - polls["tx_bytes"].iloc[0])
        elapsed = float(polls["t_ns"].iloc[-1] - polls["t_ns"].iloc[0]) / 1e9
        low = size + SEGMENT_HEADER_BYTES * size / GSO_BYTES
        segments, back = messages + size / MSS_BYTES, messages + back_size / MSS_BYTES
        high = (size + SEGMENT_HEADER_BYTES * (segments + back) + CONNECTION_BYTES * messages
                + SIDE_TRAFFIC_BYTES_PER_S * elapsed)
        if failed or name in attempts:
            low = 0.0  # what a request that failed really sent is not known
            high += attempts.get(name, 0.0)
        dropped = polls["dropped_packets"].dropna()
        if len(dropped):  # a packet that was lost was sent again
            high += PACKET_BYTES * float(dropped.iloc[-1] - dropped.iloc[0])
        off = max(0.0, low - counted, counted - high) / size
        if worst is None or off > worst[0]:
            worst = off, name, counted, size
    if worst is None:
        return Finding(None, "no link carried enough messages, or its kernel counters were not polled")
    return Finding(worst[0], f"the kernel counted {worst[2] / 1e3:.0f} kB on {worst[1]}, the messages had "
                             f"{worst[3] / 1e3:.0f} kB: {worst[0]:.1%} beyond what headers explain (limit {limit:.1%});"
                             " look for other traffic on the link, or messages that took another way")


def _calibrated(inputs: Inputs, asked_key: str, measured_key: str, limit: float) -> Finding:
    rows = (inputs.manifest.get("calibration") or {}).get("links") or []
    worst: tuple[float, str] | None = None
    rate = asked_key.endswith("_bps")
    for row in rows:
        asked, got = row.get(asked_key), row.get(measured_key)
        if not isinstance(asked, int | float) or not isinstance(got, int | float) or asked <= 0:
            continue
        off = abs(float(got) - float(asked))
        slack = RATE_SLACK_BPS if rate else RTT_SLACK_SHARE * float(asked)
        error = max(0.0, off - slack) / (float(asked) if rate else 1.0)
        where = f"{row.get('link')} {row.get('direction') or ''}".strip()
        show = (lambda x: f"{x / 1e6:.3g} Mbit/s") if rate else _ms
        text = (f"{where} was asked for {show(float(asked))} and measured {show(float(got))} "
                f"(tolerance {f'{limit:.0%}' if rate else _ms(limit)} beyond {show(slack)}); check the link's "
                "parameters, and that nothing else runs on this machine")
        if worst is None or error > worst[0]:
            worst = error, text
    if worst is None:
        return Finding(None, "links were not calibrated")
    return Finding(*worst)


def _expected_bytes(inputs: Inputs) -> dict[str, tuple[float, int, float]]:
    """`link direction` -> (message bytes, messages, message bytes of the other direction)."""
    rows = inputs.hops[inputs.hops["link"].notna() & inputs.hops["direction"].notna()]
    if not len(rows):
        return {}
    size = rows["payload_bytes"].fillna(0).astype("float64") + rows["header_bytes"].fillna(0).astype("float64")
    ends = {str(link.get("name")): (link.get("src"), link.get("dst")) for link in inputs.manifest.get("links") or []}
    ways = [_way(str(names).split(LIST_SEPARATOR), str(node), str(direction), ends)
            for names, node, direction in zip(rows["link"], rows["src_node"], rows["direction"], strict=True)]
    flat = pd.DataFrame({"way": ways, "size": size}).explode("way")
    flat["link"], flat["direction"] = flat["way"].str[0], flat["way"].str[1]
    sums = flat.groupby(["link", "direction"])["size"].agg(["sum", "count"]).reset_index()
    totals = {(str(link), str(direction)): (float(total), int(count)) for link, direction, total, count in
              zip(sums["link"], sums["direction"], sums["sum"], sums["count"], strict=True)}
    other = {"up": "down", "down": "up"}
    nothing = (0.0, 0)
    return {f"{link} {direction}": (*value, totals.get((link, other.get(direction, "")), nothing)[0])
            for (link, direction), value in totals.items()}


def _way(names: list[str], node: str, direction: str, ends: Mapping[str, tuple[Any, Any]]) -> list[tuple[str, str]]:
    """Each link of a path from `node`, with the link's own direction: a path may cross a link from its second end."""
    found = []
    for name in names:
        src, dst = ends.get(name, (None, None))
        own = "up" if node == src else "down" if node == dst else direction
        node = str(dst if own == "up" else src)
        found.append((name, own))
    return found


def _attempted_bytes(inputs: Inputs) -> dict[str, float]:
    """`link direction` -> what transfers without an answer may have put on it, sent once and once again by TCP.

    Counted for both directions: a path may cross a link from its second end.
    """
    rows = inputs.hops[inputs.hops["link"].notna() & inputs.hops["direction"].notna()]
    lost = rows["send_start_ns"].notna() & rows["recv_last_ns"].isna()
    size = rows["payload_bytes"].fillna(0).astype("float64") + rows["header_bytes"].fillna(0).astype("float64")
    counts = rows.loc[lost, "link"].str.split(LIST_SEPARATOR, regex=False).explode().value_counts()
    return {f"{link} {direction}": 2.0 * float(count) * float(size.max())
            for link, count in zip(counts.index, counts, strict=True) for direction in ("up", "down")}


def _polls(inputs: Inputs, columns: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    rows = inputs.links[inputs.links[columns].notna().all(axis=1)]
    for (link, direction), group in rows.groupby(["link", "direction"]):
        if len(group) >= 2:
            yield f"{link} {direction}", group.sort_values("t_ns", kind="stable")


def _sides(inputs: Inputs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, link in (inputs.fabric.get("links") or {}).items():
        for direction in ("up", "down"):
            side = link.get(direction) if isinstance(link, Mapping) else None
            if isinstance(side, Mapping):
                yield f"{name} {direction}", side


def _step_ns(inputs: Inputs, side: Mapping[str, Any]) -> float:
    """Replay step: the link's own, the fabric's, the scenario's, else 10 ms."""
    for holder in (side, inputs.fabric):
        if isinstance(holder.get("step_ns"), int | float):
            return float(holder["step_ns"])
    step_s = (inputs.manifest.get("config") or {}).get("replay_step")
    return float(step_s) * 1e9 if isinstance(step_s, int | float) and step_s > 0 else float(DEFAULT_STEP_NS)


def _machine(inputs: Inputs) -> pd.DataFrame:
    rows = inputs.nodes[inputs.nodes["node"].eq(MACHINE).fillna(False) & inputs.nodes["cpu_usage_s"].notna()]
    return _within(inputs, rows).sort_values("t_ns", kind="stable")


def _within(inputs: Inputs, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the measured phase only: what happens while containers start is not the trial's business."""
    window = inputs.window_ns
    return rows if window is None else rows[rows["t_ns"].between(*window).fillna(False)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
