"""The report of a run: one HTML file that needs no network, with the verdict first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from testbed.measurement.atomic import plain, write_text_atomic
from testbed.measurement.attainment_section import attainment_section
from testbed.measurement.figures import static_pictures
from testbed.measurement.prediction_section import prediction_section
from testbed.measurement.regret_section import regret_section
from testbed.measurement.report_data import report_data
from testbed.measurement.summary import Group, group_trials
from testbed.measurement.trial import load_run

REPORT = "report.html"
_TEMPLATES = "testbed.measurement"


def render_report(run_dir: str | Path, *, trials: Sequence[str | Path] | None = None,
                  groups: Sequence[Group] | None = None) -> Path:
    """Write `<run>/report.html` from its trials (all by default); returns its path.

    `groups` spares the evaluation when the caller has it already. Data of the figures are thinned to what a
    screen can show, so the file stays at a few megabytes however long the run was.
    """
    evaluated = list(groups) if groups is not None else group_trials(load_run(run_dir, trials))
    return write_text_atomic(Path(run_dir) / REPORT, report_html(evaluated))


def report_html(groups: Sequence[Group], *, static: bool = True) -> str:
    """Return the report as text; `static` adds pictures for browsers without scripts."""
    data = report_data(groups)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    template = environment.from_string(_asset("report.html.j2"))
    by_policy = [(group.policy, group.sweep_point, group.trials) for group in groups]
    return template.render(
        prediction=prediction_section(by_policy), attainment=attainment_section(by_policy),
        regret=regret_section(groups),
        data=data, css=_asset("report.css"), scripts=_asset("charts.js") + _asset("report.js"),
        payload=_script_json(data["figures"]),
        static=static_pictures(data["figures"]) if static else {}, now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _asset(name: str) -> str:
    return (resources.files(_TEMPLATES) / "templates" / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no `</script>` and no HTML comment can occur in it."""
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
