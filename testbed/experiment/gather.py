"""After the load: merge what every process wrote, describe the links, judge, and write the manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.emulation.fabric import LinkFabric
from testbed.emulation.link import DirectionSpec
from testbed.emulation.network import Network
from testbed.experiment.reroutes import follow_reroutes
from testbed.measurement.atomic import write_json_atomic, write_text_atomic
from testbed.measurement.records import HOPS, LINKS, NODES, REQUESTS, merge_tables, read_table, write_table
from testbed.measurement.summary import summarise_trial
from testbed.measurement.validity import judge_trial
from testbed.schema.scenario import Scenario
from testbed.schema.topology import Topology


def finish(folder: Path, manifest: dict[str, Any], fabric: Mapping[str, Any], machine_rows: Sequence[Mapping[str, Any]],
           devices: Sequence[str]) -> str:
    """Write all tables and the manifest of a trial; returns the verdict."""
    work = folder / "work"
    merge_tables([work / f"{d}.requests.csv" for d in devices], folder / "requests.csv", REQUESTS,
                 sort_by=("scheduled_ns", "request_id"))
    merge_tables([work / f"{d}.hops.csv" for d in devices], folder / "hops.csv", HOPS)
    if manifest.get("sdn"):
        topology = Topology.model_validate(manifest["config"]["topology"])
        hops = follow_reroutes(read_table(folder / "hops.csv", HOPS), topology, manifest["sdn"]["reroutes"])
        write_table(folder / "hops.csv", HOPS, hops)
    _nodes(folder, work, machine_rows, manifest["run_id"])
    _links(folder, manifest["run_id"], manifest["clock"]["start_ns"])
    decisions = merge_decisions([(work / f"{d}.decisions.jsonl").read_text().splitlines() for d in devices])
    write_text_atomic(folder / "decisions.jsonl", "".join(f"{line}\n" for line in decisions))
    write_json_atomic(folder / "fabric.json", fabric)
    (folder / "links.json").unlink(missing_ok=True)  # the fabric's own copy of the same
    write_json_atomic(folder / "manifest.json", {**manifest, "validity": {"verdict": "INVALID", "checks": []}})
    validity = judge_trial(folder)
    write_json_atomic(folder / "manifest.json", {**manifest, "validity": validity.to_dict()})
    summarise_trial(folder)
    shutil.rmtree(work)
    return validity.verdict


def merge_decisions(logs: Sequence[Sequence[str]]) -> list[str]:
    """Lines of several devices' decision logs by time; the lines of a device stay in its order of calls.

    An outcome may be told to the policy after a decision that is younger than the answer.
    """
    timed = []
    for lines in logs:
        reached_ns = 0
        for line in lines:
            reached_ns = max(reached_ns, json.loads(line)["t_ns"])
            timed.append((reached_ns, line))
    return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


def _nodes(folder: Path, work: Path, machine_rows: Sequence[Mapping[str, Any]], run_id: str) -> None:
    """Usage polled from outside, and queue lengths that the programs wrote themselves, in one table."""
    inside = [read_table(path, NODES) for path in sorted(work.glob("*.nodes.csv"))]
    for frame in inside:  # the engine's counters say it for the whole container; keep the program's queue only
        frame[["cpu_usage_s", "cpu_throttled_s", "memory_bytes"]] = pd.NA
    outside = pd.DataFrame(list(machine_rows), columns=list(NODES.names))
    frames = [f for f in (outside, *inside) if len(f)]
    table = pd.concat([f.astype(object) for f in frames], ignore_index=True).sort_values("t_ns", kind="stable")
    table["run_id"] = run_id
    write_table(folder / "nodes.csv", NODES, table)


def _links(folder: Path, run_id: str, start_ns: int) -> None:
    """The load's own rows, each direction beginning with its last poll before the start: calibration is not load."""
    path = folder / "links.csv"
    table = read_table(path, LINKS).sort_values("t_ns", kind="stable")
    before = table[table["t_ns"] < start_ns].drop_duplicates(["link", "direction"], keep="last")
    table = pd.concat([before, table[table["t_ns"] >= start_ns]], ignore_index=True)
    table["run_id"] = run_id
    write_table(path, LINKS, table)


def links(scenario: Scenario, network: Network, fabric: LinkFabric,
          specs: Mapping[tuple[str, str], DirectionSpec]) -> list[dict[str, Any]]:
    """The links as they were built, for the manifest."""
    rows = []
    for link, a, b in scenario.topology.node_links():
        name = f"{a}-{b}"
        row: dict[str, Any] = {"name": name, "src": a, "dst": b, "backend": network.links[name].backend}
        for which in ("up", "down"):
            spec, asked = specs[name, which], link.direction(which)
            trace = None if spec.trace is None else {
                "path": "+".join(asked.trace or ()), "sha256": spec.trace.sha256, "offset_ns": spec.trace_offset_ns,
                "duration_ns": spec.trace.duration_ns, "mean_rate_bps": spec.trace.mean_rate_bps,
                "scale": asked.trace_scale}
            row[which] = {"rate_bps": spec.rate_bps, "bucket_bytes": spec.bucket_bytes, "trace": trace, "delay_s": spec.delay_s,
                          "jitter_s": spec.jitter_s,
                          "loss": asked.loss.model_dump(mode="json") if asked.loss else None,
                          "queue": asked.queue.model_dump(mode="json", exclude_none=True) if asked.queue else None,
                          "step_s": scenario.replay_step}
        rows.append(row)
    return rows
