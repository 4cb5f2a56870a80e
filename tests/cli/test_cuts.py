"""`testbed models cuts`: the documented model files, the table as CSV, a catalogue model's graph, and wrong words."""

import csv
import re
from pathlib import Path

import pytest

from testbed.cli import main
from tests.running import ROOT

CATALOGUE = ROOT / "nodes" / "models" / "catalogue.yaml"


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python files of docs/models.md, each under the name in its first line."""
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cuts(*words: str | Path) -> int:
    return main(["models", "cuts", *map(str, words)])


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_documented_module_is_cut_at_every_node(documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = documented / "cuts.csv"
    assert cuts("my_model.py:build", "--dataset", "digits", "--csv", table) == 0
    shown = capsys.readouterr().out
    found = rows(table)
    assert [r["after"] for r in found] == ["input", "stem", "relu", "body", "add", "relu_1", "mean", "head"]
    side = 8 * 16 * 16 * 4
    assert [int(r["size_bytes"]) for r in found] == [64 * 64 * 4, side, side, 2 * side, side, side, 8 * 4, 10 * 4]
    assert found[3]["live"] == "relu 8x16x16 + body 8x16x16", "the skip connection is live beside the main path"
    total = 16 * 16 * 8 * 9 + 16 * 16 * 8 * 8 * 9 + 8 * 10
    assert all(int(r["macs_before"]) + int(r["macs_after"]) == total for r in found)
    assert all(float(r["time_before_s"]) + float(r["time_after_s"]) > 0 for r in found)
    for row in found:
        assert re.search(rf"^ {row['cut']} +{row['after']} .*{int(row['size_bytes']):,}", shown, re.MULTILINE), shown


def test_the_documented_stages_by_hand_are_listed_and_the_module_inside_is_refused(
        documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts("my_stages.py:build", "--input", "1x64x64") == 0
    shown = capsys.readouterr().out
    assert "exit early" in shown and "gated 8x16x16" in shown, shown
    text = (documented / "my_stages.py").read_text()
    (documented / "gated.py").write_text(text.replace("return StagedModel", "return nn.Sequential(stem, Gated(), tail)\n    StagedModel"))
    assert cuts("gated.py:build", "--dataset", "digits") == 2
    refused = capsys.readouterr().err
    assert "cannot be traced" in refused and "StagedModel" in refused and refused.strip().count("\n") == 0, refused


def test_the_graph_of_a_catalogue_model_marks_its_stages(tmp_path: Path) -> None:
    """At a stage's boundary the graph's cut has the catalogue's bytes and costs."""
    staged, graph = tmp_path / "staged.csv", tmp_path / "graph.csv"
    for words in (["--csv", staged], ["--graph", "--csv", graph]):
        assert cuts("digits_branchy", "--catalogue", CATALOGUE, *words) == 0
    of_stage = {row["note"].removeprefix("stage cut "): row for row in rows(graph) if row["note"]}
    boundaries = rows(staged)[1:]
    assert list(of_stage) == [row["cut"] for row in boundaries]
    for row in boundaries:
        for column in ("size_bytes", "macs_before", "macs_after"):
            assert of_stage[row["cut"]][column] == row[column], (row["cut"], column)


@pytest.mark.parametrize(("words", "says"), [
    (["nobody"], "no such model"),
    (["gone.py:build", "--input", "1x2x3"], "no such model file"),
    (["my_model.py:build"], "--dataset digits or --input"),
    (["my_model.py:build", "--input", "1xtwo"], "is not a shape"),
    (["my_model.py:build", "--input", "3x64x64"], "fails on 2 samples of 3x64x64"),
    (["my_model.py:build", "--dataset", "nothing"], "no such data set"),
    (["digits_branchy", "--csv", "no/folder/x.csv"], "cannot be written"),
    (["mobilenet_012s2_int8", "--graph"], "computes in 8 bits"),
])
def test_wrong_words(documented: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts(*words, "--catalogue", CATALOGUE) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0, error
