"""The program of a serving host: `python -m testbed.serving.node --config FILE.json [--die-with-stdin]`.

Configuration (JSON): `name`, `tier`, `host`, `port` (0: any), `peers` {node: "address:port"}, `tiers` {node: tier},
`tier_order` [tier], `catalogue` (path), `models` [name], `codecs` [name] (used once before the node is ready; all when
absent), `profiles` (folder), `compute` (profile's name or file, or `real`), `outputs` (folder of memoised outputs, to
be looked up instead of computed), `residency` (see serving/residency.py), `telemetry` (CSV to write), `ready` (JSON file
written when the models are loaded and warm), `max_body_bytes`, `body_timeout_s`. Only `name` and `catalogue` are required.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.errors import InputError, TestbedError
from testbed.inference.catalogue import load_catalogue
from testbed.inference.codecs import Registry, standard_names
from testbed.inference.compute import REAL, load_profile
from testbed.serving.background import freeze_garbage
from testbed.serving.client import NodeClient
from testbed.serving.coding import Coder
from testbed.serving.server import NodeServer
from testbed.serving.telemetry import memory_bytes, write_telemetry
from testbed.serving.worker import Worker, make_worker

_LOG = logging.getLogger("testbed.node")
_KEYS = {"name", "tier", "host", "port", "peers", "tiers", "tier_order", "catalogue", "models", "codecs", "profiles",
         "compute", "outputs", "residency", "telemetry", "ready", "max_body_bytes", "body_timeout_s"}


def main(argv: list[str] | None = None) -> int:
    """Entry point: serve until SIGTERM, SIGINT or, when asked, the end of standard input."""
    parser = argparse.ArgumentParser(description="Serve the models of one host of the testbed.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--die-with-stdin", action="store_true", help="end when standard input ends")
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_serve(_read(options.config), options.die_with_stdin))
    except TestbedError as error:
        _LOG.error("%s", error)
        return error.exit_code
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path, remedy="give a JSON file") from None
    if not isinstance(config, dict) or not {"name", "catalogue"} <= set(config):
        raise InputError("is not a node's configuration", file=path, remedy="give at least name and catalogue")
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise InputError("unknown key", file=path, key=unknown[0], remedy=f"the keys are {', '.join(sorted(_KEYS))}")
    return config


async def _serve(config: Mapping[str, Any], die_with_stdin: bool) -> None:
    name = config["name"]
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if die_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    begin = time.monotonic()
    client = NodeClient(name, config.get("peers", {}), config.get("tiers", {}), config.get("tier_order", []))
    profile = load_profile(config["compute"], config.get("profiles", ".")) if "compute" in config else REAL
    catalogue = load_catalogue(config["catalogue"])
    names = config.get("models", list(catalogue.models))
    worker = make_worker(catalogue, names, profile, config.get("outputs"), config.get("residency"))
    limits = {k: config[k] for k in ("max_body_bytes", "body_timeout_s") if k in config}
    codecs = Registry(catalogue.path)
    server = NodeServer(name, worker, client, **limits, coder=Coder(codecs, profile))
    try:
        port = await server.start(config.get("host", "0.0.0.0"), config.get("port", 8000))
    except OSError as error:
        raise InputError(f"cannot listen: {error.strerror}", key="port", value=config.get("port", 8000),
                         remedy="choose a free port") from None
    await worker.warm_up()
    codecs.warm_up(config.get("codecs", [*standard_names(), *codecs.learned_for(names)]))
    times = await _model_times(worker)
    worker.settle()
    telemetry = None
    if "telemetry" in config:
        telemetry = asyncio.create_task(write_telemetry(
            Path(config["telemetry"]), name, lambda: (worker.queue_depth, server.inflight)))
    freeze_garbage()
    server.ready = True
    facts = {"node": name, "port": port, "pid": os.getpid(), "models": list(names), "compute": profile.name,
             "start_s": round(time.monotonic() - begin, 3), "memory_bytes": memory_bytes(),
             "model_time_s": times}
    if "ready" in config:
        _write_atomic(Path(config["ready"]), json.dumps(facts))
    print(json.dumps(facts), flush=True)
    _LOG.info("%s ready on port %d with %s, compute %s", name, port, ", ".join(names) or "no model", profile.name)
    await stop.wait()
    _LOG.info("%s stops; %d computations held to the profile, %d took longer than it (worst by %.1f ms)", name,
              worker.held, worker.overruns, worker.overrun_max_ns / 1e6)
    await server.stop()
    await client.close()
    worker.close()
    if telemetry is not None:
        telemetry.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telemetry


async def _model_times(worker: Worker, runs: int = 5) -> dict[str, dict[str, float | None]]:
    """Service time asked for and median time measured of every whole model: the node's calibration."""
    import numpy as np

    times: dict[str, dict[str, float | None]] = {}
    for name, info in worker.infos.items():
        x = np.zeros((1, *info.input_shape), np.float32)
        took = []
        for _ in range(runs):
            result = await worker.execute(name, 0, info.num_stages, x)
            took.append((result.compute_end_ns - result.compute_start_ns) / 1e9)
        times[name] = {"asked": worker.profile.service_time_s(info, 0, info.num_stages, (info.num_stages - 1,)),
                       "measured": sorted(took)[runs // 2]}
    worker.held = worker.overruns = worker.overrun_max_ns = 0
    return times


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop.set)
    time.sleep(5)
    os._exit(70)  # the parent is gone and the loop is stuck: do not outlive the trial


def _write_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
