"""Run a scenario's sweep with trials that touch no network: `python fake_sweep.py SCENARIO RUNS JOBS`."""

import sys
from pathlib import Path

from testbed.experiment.runner import run_experiment
from testbed.experiment.trials import plan_experiment

FAKE = [sys.executable, str(Path(__file__).with_name("fake_trial.py"))]

if __name__ == "__main__":
    results = run_experiment(plan_experiment(sys.argv[1]), Path(sys.argv[2]), jobs=int(sys.argv[3]), program=FAKE)
    print(sum(r.skipped for r in results), "skipped")
