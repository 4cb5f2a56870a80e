"""The report is one file that needs no network; the terminal table fits; figures and the command redraw a run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from rich.console import Console

from testbed.cli import main
from testbed.measurement import format as fmt
from testbed.measurement.figure_data import MAX_DOTS, figure_data, sweep_points
from testbed.measurement.figures import save_figures
from testbed.measurement.limits import NAMES
from testbed.measurement.report import render_report, report_html
from testbed.measurement.summary import group_trials, summarise_run
from testbed.measurement.terminal import terminal_table
from testbed.measurement.trial import load_run, load_trial

from .fake_run import edit_json, make_run, make_trial

POLICIES = ("device-only", "edge-only", "cloud-only", "split", "early-exit")


class Page(HTMLParser):
    """Collects what a page would fetch, its ids, its text and its embedded data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.ids: set[str] = set()
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._raw = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetches += [found[k] for k in ("src", "href", "data", "srcset") if found.get(k)]
        self.ids.add(found.get("id") or "")
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        (self.scripts if self._raw else self.words).append(data)


@pytest.fixture(scope="module")
def page(pristine_run) -> Page:
    return Page(report_html(group_trials(load_run(pristine_run)), static=False))


def test_offline(pristine_run, page):
    assert page.fetches == ["data:,"]  # the empty icon, so that browsers do not ask for one
    text = report_html(group_trials(load_run(pristine_run)))
    assert text.count("<noscript><div") == 5  # every figure but single requests and the sweep also stands still
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "@import" not in text and "url(http" not in text and "fetch(" not in text


def test_verdict_first_then_everything_else(page):
    words = " ".join(" ".join(page.words).split())
    order = ["VALID", "Every check", "Results per plan", "Latency distribution", "Where the time went",
             "Accuracy, latency and bytes", "Exits and deadlines", "Bandwidth and latency over time", "Single requests", "Calibration",
             "How it was made", "Glossary"]
    places = [words.index(title) for title in order]
    assert places == sorted(places)
    assert all(policy in words for policy in POLICIES)
    assert all(name in words for name in ("podman 4.3.1", "raspberry-pi-4", "6.1.0", *NAMES))


def test_scripts_find_their_elements_and_data(page):
    data = json.loads(page.scripts[1])
    assert [s["label"] for s in data["series"]] == list(POLICIES)
    wanted = set(re.findall(r'(?:getElementById|(?<!List\.)\badd)\("([a-z-]+)"', page.scripts[2]))
    wanted -= {"points"}  # only with a sweep
    assert wanted and wanted <= page.ids


def test_hostile_names_stay_text(tmp_path):
    trial = make_trial(tmp_path / "x" / "0", "split", requests_per_device=12)
    evil = "</script><script>alert(1)</script>"
    edit_json(trial / "manifest.json", lambda m: m.update(policy=evil, scenario=evil))
    page = Page(report_html(group_trials([load_trial(trial)]), static=False))
    assert len(page.scripts) == 3  # style, data, program: none was added
    assert json.loads(page.scripts[1])["series"][0]["label"] == evil


def test_figures_data_agree_with_the_tables(pristine_run):
    groups = group_trials(load_run(pristine_run), intervals=False)
    data = figure_data(groups)
    for group, cdf, parts in zip(groups, data["cdf"], data["breakdown"], strict=True):
        assert cdf["y"][-1] == 1 and cdf["x"] == sorted(cdf["x"])
        assert cdf["x"][-1] == pytest.approx(group.value("latency_max") * 1e3, abs=1e-3)
        assert sum(parts) == pytest.approx(group.value("latency_mean") * 1e3)
    timeline = data["timelines"][1]
    link = timeline["links"][0]
    assert link["name"] == "device1-edge1" and len(link["up"]["rate"]) == len(link["up"]["t"]) - 1
    polls = load_trial(groups[1].trials[0].path).links
    side = polls[(polls["link"] == "device1-edge1") & (polls["direction"] == "up") & polls["tx_bytes"].notna()]
    step = link["up"]["t"][1] - link["up"]["t"][0]
    assert sum(link["up"]["sent"]) * step * 1e6 / 8 == pytest.approx(side["tx_bytes"].iloc[-1], rel=0.02)


def test_thinning_keeps_the_slowest(tmp_path):
    trial = load_trial(make_trial(tmp_path / "x" / "0", "edge-only", requests_per_device=900, rate_per_s=40.0))
    data = figure_data(group_trials([trial], intervals=False))
    dots = data["timelines"][0]["requests"]
    assert len(dots["t"]) <= 2 * MAX_DOTS and len(data["cdf"][0]["x"]) <= 360
    assert max(dots["ms"]) == pytest.approx(data["cdf"][0]["x"][-1], abs=1e-3)


def test_one_policy_without_hops_links_or_fabric_still_gives_a_report(trial):
    for name in ("hops.csv", "links.csv", "nodes.csv", "fabric.json"):
        (trial / name).unlink()
    words = " ".join(Page(render_report(trial).read_text()).words)
    assert "not measured: there are no hop rows" in words


def test_invalid_runs_say_why_at_the_top(run):
    def late(summary):
        summary["links"]["device1-edge1"]["up"]["apply_lag_p99_ns"] = 9_000_000

    edit_json(run / "cfg20" / "0" / "fabric.json", late)
    words = " ".join(" ".join(Page(render_report(run).read_text()).words).split())
    assert words.index("INVALID") < words.index("cloud-only, repeat 0: the shaper of device1-edge1 up") < \
        words.index("Results per plan")


def lines_of(run, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for part in terminal_table(run, width=width, report=run / "report.html"):
            console.print(part)
        return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_terminal_table_fits_and_loses_no_figure(pristine_run, width):
    lines = lines_of(pristine_run, width)
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    text = "\n".join(lines)
    assert all(policy in text for policy in POLICIES)
    assert "VALID" in text and "podman 4.3.1" in text and "tap" in text and "report.html" in text.replace("\n", "")
    assert ("up/req" in text) == (width >= 100) and ("exit1" in text) == (width >= 100)


def test_terminal_table_shows_failures_and_reasons(tmp_path):
    run = make_run(tmp_path, requests_per_device=20, policies=("split",))
    make_trial(run / "cfg00" / "0", "split", requests_per_device=20, failing=4)
    text = " ".join(" ".join(lines_of(run, 100)).split())
    assert "28/36" not in text and re.search(r"\d+/36", text)
    assert "INVALID" in text and "requests were answered, 90 are needed" in text


def test_command_redraws(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["report", str(run), "--figures"]) == 0
    out = capsys.readouterr().out
    assert "early-exit" in out and "VALID" in out and "18 files" in out
    assert {p.name for p in run.iterdir()} >= {"report.html", "table.csv", "summary.csv", "run.json", "figures"}


def test_command_names_what_is_wrong(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no such run directory" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished trial" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    assert "manifest.json: not JSON" in capsys.readouterr().err


def test_judge_again_uses_the_checks_of_today(run, capsys):
    for manifest in run.glob("*/*/manifest.json"):
        edit_json(manifest, lambda m: m.update(validity={"verdict": "INVALID", "checks": []}))
    main(["report", str(run)])
    assert "INVALID" in capsys.readouterr().out
    main(["report", str(run), "--judge"])
    assert "INVALID" not in capsys.readouterr().out


def test_figures_are_the_same_file_for_the_same_run(run):
    first = {p.name: p.read_bytes() for p in save_figures(run) if p.suffix == ".svg"}
    assert len(first) == 9 and all(b"<svg" in content for content in first.values())
    assert {p.name: p.read_bytes() for p in save_figures(run) if p.suffix == ".svg"} == first


@pytest.mark.parametrize(("value", "unit", "text"), [
    (0.0471, "s", "47.1 ms"), (1.234, "s", "1.23 s"), (8.2e-5, "s", "82.0 µs"), (0.0, "s", "0 ms"),
    (0.953, "share", "95.3%"), (1.0, "share", "100%"), (16910, "bytes", "16.9 kB"), (430, "bytes", "430 B"),
    (4.2e6, "bit/s", "4.20 Mbit/s"), (72.0, "requests", "72 requests"), (None, "s", "-"),
])
def test_formats(value, unit, text):
    assert fmt.quantity(value, unit) == text


def test_summary_of_a_run_is_what_the_report_shows(pristine_run, page):
    words = " ".join(page.words)
    table = summarise_run(pristine_run)
    assert all(fmt.seconds(value) in words for value in table["latency_p95_s"])


def test_a_plan_that_a_swept_key_does_not_touch_belongs_to_every_point(tmp_path):
    make_trial(tmp_path / "a" / "0", "device-only", requests_per_device=20)
    for i, threshold in enumerate((0.5, 0.8)):
        make_trial(tmp_path / f"b{i}" / "0", "early-exit", requests_per_device=20, sweep_point={"policies.early-exit.threshold": threshold})
    data = figure_data(group_trials(load_run(tmp_path), intervals=False))
    assert data["points"] == ["threshold=0.5", "threshold=0.8"]
    assert {s["label"]: s["points"] for s in data["series"]}["device-only"] == [0, 1]
    assert sorted(s["points"] for s in data["series"] if s["policy"] == "early-exit") == [[0], [1]]
    assert data["sweep"]["key"] == "threshold" and sorted(data["sweep"]["x"], key=str) == [0.5, 0.8, None]


def test_points_of_two_keys_take_in_what_agrees_in_one():
    rate, both = {"load.rate_per_s": 2}, {"load.rate_per_s": 2, "policies.split.at": [1, 2]}
    other = {"load.rate_per_s": 4, "policies.split.at": [1, 2]}
    labels, members = sweep_points([SimpleNamespace(sweep_point=point) for point in (rate, both, other, both)])
    assert labels == ["rate_per_s=2, at=[1, 2]", "rate_per_s=4, at=[1, 2]"] and members == [[0], [0], [1], [0]]
    assert sweep_points([SimpleNamespace(sweep_point={})] * 2) == ([""], [[0], [0]])
