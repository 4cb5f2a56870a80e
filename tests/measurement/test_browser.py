"""The pages in a real browser: opened offline from the disk, drawn without a word on the console, as wide as a phone."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.measurement.comparison import compare
from testbed.measurement.comparison_view import comparison_html
from testbed.measurement.report import render_report
from testbed.measurement.summary import group_trials
from testbed.measurement.trial import load_run

from .fake_run import make_run, make_trial

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: no page was opened in a browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=4000")
CONSOLE = re.compile(r"CONSOLE[:(]\d*.*")


def opened(page: Path, profile: Path, *more: str) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and the lines of its console."""
    done = subprocess.run([str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *more, "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if CONSOLE.search(line)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    points = ({"trace_scale": 0.5}, {"trace_scale": 1.0})
    run = make_run(tmp_path_factory.mktemp("sweep"), requests_per_device=50, policies=("edge-only", "early-exit"), sweep=points)
    make_trial(run / "untouched" / "0", "device-only", requests_per_device=50)  # by the swept key
    return run


def test_report_of_a_sweep_is_drawn_offline_without_errors(sweep, tmp_path):
    # a host resolver that knows nobody: whatever the page asked the network for would be an error on the console
    document, console = opened(render_report(sweep), tmp_path, "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=390,844")
    assert console == []
    for place in ("cdf", "breakdown", "tradeoff", "exits", "timeline", "waterfall", "sweep"):
        assert re.search(rf'<div id="{place}" class="chart">.*?<svg[^>]*viewBox', document, re.DOTALL), place
    assert "slowest: " in document and 'aria-label="zoom in"' in document
    buttons = re.search(r'<div id="points".*?</div>', document, re.DOTALL)
    assert buttons and re.findall(r">([^<]*)</button>", buttons[0]) == ["all points", "trace_scale=0.5", "trace_scale=1.0"]


def test_a_broken_page_would_be_noticed(sweep, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(render_report(sweep).read_text().replace('id="waterfall"', 'id="elsewhere"').replace("redrawAll();\n  addEvent",
                                                                                                       "nothing();\n  addEvent"))
    _, console = opened(page, tmp_path / "profile")
    assert any("nothing is not defined" in line for line in console)


def test_report_fits_a_phone(sweep, tmp_path):
    # a window cannot be narrower than 500 px, a frame can; `srcdoc` lets the page around it look inside
    page = tmp_path / "phone.html"
    script = ("let d = document.querySelector('iframe').contentDocument; document.title = d.documentElement.scrollWidth + ' of ' + "
              "d.documentElement.clientWidth + ', ' + d.querySelectorAll('svg[viewBox]').length")
    page.write_text(f'<iframe style="width:390px;height:800px;border:0" srcdoc="{html.escape(render_report(sweep).read_text())}"></iframe>'
                    f'<script>onload = () => setTimeout(() => {{ {script} }}, 1000)</script>')
    document, console = opened(page, tmp_path / "profile")
    found = re.search(r"<title>(\d+) of (\d+), (\d+)</title>", document)
    assert console == [] and found, (console, document[:300])
    assert found[1] == found[2] and int(found[2]) <= 390 and int(found[3]) >= 6, found[0]  # nothing sticks out sideways, and the figures were drawn


def test_comparison_page_fits_a_phone(sweep, tmp_path):
    both = [g for g in group_trials(load_run(sweep), intervals=False) if g.sweep_point == {"trace_scale": 1.0}]
    page = tmp_path / "c.html"
    script = "<script>document.title = String(document.documentElement.scrollWidth - document.documentElement.clientWidth)</script>"
    page.write_text(comparison_html([compare(both[0], both[1])]).replace("</body>", f"{script}</body>"))
    document, console = opened(page, tmp_path / "profile", "--window-size=500,844")
    assert console == [] and "<title>0</title>" in document  # nothing sticks out sideways
