"""A trial that is sabotaged from inside, in one way that is named: run in place of `testbed.experiment.trial`."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

from testbed.emulation.fabric import LinkFabric
from testbed.experiment import trial


def slow_shaper() -> None:
    """Stop the shaper's process for 60 ms, again and again, once the load has begun."""
    original = LinkFabric.start_replay
    over = threading.Event()

    def start_replay(self: LinkFabric, start_ns: int) -> None:
        original(self, start_ns)
        pid = self.helper_pids["replay"]

        def disturb() -> None:
            while not over.is_set():
                for number, pause_s in ((signal.SIGSTOP, 0.06), (signal.SIGCONT, 0.04)):
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        return
                    time.sleep(pause_s)

        threading.Thread(target=disturb, daemon=True).start()

    original_stop = LinkFabric.stop

    def stop(self: LinkFabric) -> dict[str, object]:
        if not over.is_set():
            over.set()
            time.sleep(0.2)  # the last pair of signals ends with CONT
        return original_stop(self)

    LinkFabric.start_replay, LinkFabric.stop = start_replay, stop  # type: ignore[method-assign]


def busy_cpu() -> None:
    """Twice as many busy loops as there are cores, of the same priority as everything else."""
    for _ in range(2 * (os.cpu_count() or 1)):
        subprocess.Popen([sys.executable, "-c", "while True: pass"])


def wrong_rate() -> None:
    """Build every fixed rate 10% too low."""
    original = LinkFabric.connect

    def connect(self, name, a, b, up, down, backend="auto"):  # type: ignore[no-untyped-def]
        up, down = (replace(s, rate_bps=round(s.rate_bps * 0.9)) if s.rate_bps else s for s in (up, down))
        return original(self, name, a, b, up, down, backend)

    LinkFabric.connect = connect  # type: ignore[method-assign]


if __name__ == "__main__":
    {"slow_shaper": slow_shaper, "busy_cpu": busy_cpu, "wrong_rate": wrong_rate}[sys.argv[1]]()
    sys.exit(trial.main(sys.argv[2:]))
