"""The placement study through the seam: tables that agree with each other, findings, own policies, refused input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testbed.errors import InputError
from testbed.experiment.studies import StudyResult, plan_study, run_study
from testbed.placement.spec import PlacementStudy
from testbed.placement.study import interval
from testbed.schema.files import load_as
from tests.running import ROOT

SMALL = """# small
name: small
study: placement
network:
  - {name: edge, nodes: 3, rtt: 10ms, memory: 1500MB}
  - {name: metro, nodes: 1, rtt: 40ms, memory: 2GB, accelerator: upper}
  - {name: cloud, nodes: 1, memory: unlimited, accelerator: upper}
tasks: 4
copies: 2
rate_per_s: 300
slots: 24
repeats: 3
shift: {every: 12, by: 2}
policies:
  - infida
  - {name: infida-b4, policy: infida, options: {refresh: 4}}
  - olag
  - sg
  - {name: mine, policy: "mine.py:Nothing"}
"""
MINE = """from testbed.placement import Placement
import numpy as np


class Nothing(Placement):
    def first(self):
        return np.zeros(self.problem.pinned.shape, dtype=bool)

    def update(self, slot):
        return self.first()
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("placement")
    (folder / "mine.py").write_text(MINE)
    (folder / "small.yaml").write_text(SMALL)
    return run_study(folder / "small.yaml", runs=folder / "runs")


def test_tables_agree(result: StudyResult) -> None:
    summary, slots = result.tables["summary"].set_index("policy"), result.tables["slots"]
    assert list(summary.index) == ["infida", "infida-b4", "olag", "sg", "mine"]
    for policy, row in summary.iterrows():
        mine = slots[slots["policy"] == policy]
        assert mine["gain_ms"].mean() == pytest.approx(row["ntag_ms"])
        assert mine["gain_ms"].tail(6).mean() == pytest.approx(row["late_ntag_ms"])
    assert summary.loc["mine", "ntag_ms"] == pytest.approx(0) and summary.loc["sg", "fetches_per_slot"] == 0
    assert summary.loc["infida", "ntag_ms"] > 0
    gaps = result.tables["differences"].set_index("against")["ntag_difference_ms"]
    assert gaps["olag"] == pytest.approx(summary.loc["infida", "ntag_ms"] - summary.loc["olag", "ntag_ms"])
    shares = result.tables["tiers"].groupby("policy")["served_share"].sum()
    np.testing.assert_allclose(shares, 1.0)
    details = result.tables["details"].set_index("policy")
    assert np.isnan(details.loc["sg", "late_fraction_gain_ms"]) and details.loc["infida", "late_fraction_gain_ms"] > 0
    assert details.loc["infida", "messages_per_slot"] == 2 * 2 * 3 * 4  # up and down, two links, three entries, four tasks
    assert details.loc["sg", "messages_per_slot"] == 0
    assert (result.tables["recovery"]["shifts"] == 3).all()


def test_findings_say_what_was_judged(result: StudyResult) -> None:
    text = [f.text for f in result.findings]
    assert any("above that of olag" in t for t in text) and any("at most 1/B" in t for t in text)
    assert any("after a shift" in t for t in text) and any("1 - 1/e" in t for t in text)
    assert result.report.is_file() and (result.folder / "gain.svg").is_file()


@pytest.mark.parametrize(("change", "message"), [
    ({"policies": [{"name": "a", "policy": "magic"}]}, "no placement 'magic'"),
    ({"policies": ["sg", "sg"]}, "same name"),
    ({"alphas_ms": [1, 1]}, "stands twice"),
    ({"shift": {"every": 20, "by": 1}}, "too late"),
    ({"network": [{"name": "edge", "nodes": 2, "memory": "1GB"}]}, "last tier"),
    ({"network": "III"}, "use one of 'I' or 'II'"),
    ({"network": [{"name": "edge", "nodes": 1}]}, r"network\[0\].memory: is missing"),
    ({"polices": []}, "unknown key"),
])
def test_bad_files_are_refused_before_anything_runs(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "small.yaml").write_text(SMALL)
    with pytest.raises(InputError, match=message):
        plan_study(tmp_path / "small.yaml", change)


@pytest.mark.parametrize(("policy", "message"), [
    ({"name": "a", "policy": "infida", "options": {"eta": -1}}, "eta must be positive"),
    ({"name": "a", "policy": "infida", "options": {"etta": 1}}, "etta"),
    ({"name": "a", "policy": "sg", "options": {"magic": 1}}, "magic"),
    ({"name": "a", "policy": "mine.py:Something"}, "no class Something"),
])
def test_bad_options_are_refused_before_anything_runs(tmp_path: Path, policy: dict[str, object], message: str) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "small.yaml").write_text(SMALL)
    with pytest.raises(InputError, match=message):
        plan_study(tmp_path / "small.yaml", {"policies": [policy]})


@pytest.mark.parametrize("name", ["idn_analytic", "idn_shift_analytic", "idn_scarce_analytic", "idn_alpha_analytic"])
def test_shipped_studies_are_read(name: str) -> None:
    spec = load_as(ROOT / "scenarios" / f"{name}.yaml", PlacementStudy)
    assert spec.name == name and spec.repeats >= 5


def test_interval_is_students() -> None:
    # 1..5: mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.776445
    low_high = interval([1, 2, 3, 4, 5])
    assert low_high.mean == 3 and low_high.high - 3 == pytest.approx(2.776445 * np.sqrt(0.5), rel=1e-6)
    assert pd.isna(interval([1.0]).low)
