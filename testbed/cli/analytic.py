"""`testbed analytic FOLDER`: token-bucket trials beside the analytic policy on the same images, and their transfers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_HEAD = ("device", "requests", "offloads", "analytic", "+-", "same", "accuracy", "analytic", "+-", "wait", "one image", "verdict")


@app.command()
def analytic(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run, such as runs/token_bucket_live, or of one "
                                           "of its trials.")],
) -> None:
    """Offload count, accuracy and waiting of token-bucket trials beside the analytic policy; ends with 1 when one disagrees."""
    from testbed.errors import InputError
    from testbed.experiment.content import Content
    from testbed.measurement.trial import find_trials, load_trial, run_folder
    from testbed.policies.token_bucket.analytic import agreements
    from testbed.schema.scenario import PolicySpec, Scenario

    good, seen = True, 0
    for path in find_trials(run_folder(folder)):
        trial = load_trial(path)
        scenario = Scenario.model_validate(trial.manifest["config"])
        asked = scenario.policies[0]
        if not isinstance(asked, PolicySpec) or asked.policy != "token-bucket":
            continue
        seen += 1
        catalogue = Content.of(scenario, Path(trial.manifest["source"])).catalogue
        rows = [_HEAD]
        for a in agreements(trial, catalogue):
            good = good and a.agrees and a.conforms
            verdict = "; ".join(["agrees" if a.agrees else "DISAGREES", "conforms" if a.conforms else "DOES NOT CONFORM"])
            rows.append((a.device, str(a.requests), str(a.offloads), str(a.analytic_offloads), f"{a.offload_error:.1f}",
                         f"{a.same_decisions:.1%}", f"{a.accuracy:.3f}", f"{a.analytic_accuracy:.3f}", f"{a.accuracy_error:.3f}",
                         f"{a.queue_s * 1e3:.1f} ms", f"{a.image_s * 1e3:.1f} ms", verdict))
        print(trial.label)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not seen:
        raise InputError("has no trial of policy token-bucket", file=folder, remedy="give the folder of such a run")
    raise SystemExit(0 if good else 1)
