"""A trial's program that touches no network: notes that it ran, waits, and leaves a manifest. For tests of the runner."""

import json
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[-1])
spec = json.loads((folder / "trial.json").read_text())
began = time.monotonic_ns()
with open(os.environ["FAKE_TRIAL_LOG"], "a") as log:
    log.write(f"began {spec['run_id']} {began}\n")
print(json.dumps({"event": "phase", "phase": "load"}), flush=True)
(folder / "requests.csv").write_text("half a table")
time.sleep(float(os.environ.get("FAKE_TRIAL_S", "0.2")))
if spec["policy"] == os.environ.get("FAKE_TRIAL_FAILS"):
    sys.exit("as asked")
(folder / "requests.csv").write_text("a,b\n1,2\n")
(folder / "manifest.json").write_text(json.dumps({"config": spec["config"], "validity": {"verdict": "VALID", "checks": []}}))
with open(os.environ["FAKE_TRIAL_LOG"], "a") as log:
    log.write(f"ended {spec['run_id']} {time.monotonic_ns()}\n")
