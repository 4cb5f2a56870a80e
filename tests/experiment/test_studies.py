"""The study seam: a toy study through `testbed run`: checked, run once, kept, shown; bad input is refused before a folder is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import Field

from testbed.cli import main
from testbed.errors import EmulationError, InputError
from testbed.experiment import studies
from testbed.experiment.studies import Kind, plan_study, run_study
from testbed.measurement.study import Finding, StudyOutcome
from testbed.schema.study import Study

CALLS: list[int] = []


class ToyStudy(Study):
    """Squares of the numbers up to n."""

    n: int = Field(3, ge=1)
    weights: list[float] = Field([1.0])
    catalogue: str | None = None

    def files(self) -> tuple[Path, ...]:
        return () if self.catalogue is None else (Path(self.catalogue),)


def toy(spec: ToyStudy, progress: Callable[[float, str], None]) -> StudyOutcome:
    CALLS.append(spec.n)
    progress(0.5, "squaring")
    if spec.n == 13:
        raise RuntimeError("thirteen")
    table = pd.DataFrame({"n": range(spec.n), "square": [k * k / 3 for k in range(spec.n)]})
    more = pd.DataFrame({"word": ["a", None]})

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(table["n"], table["square"], "C1")
        axes.set_xlabel("n")

    return StudyOutcome({"squares": table, "words": more}, {"curve": draw, "again": draw},
                        [Finding("squares grow", float(table["square"].iloc[-1]), "up", True),
                         Finding("<b>cubes</b> shrink", "they grow", "down", False), Finding("who knows", 1.5, "", None)],
                        {"squares": "Thirds of squares."}, {"policy.bin": b"\x00\x01"})


@pytest.fixture()
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(studies.KINDS, "toy", Kind(f"{__name__}:ToyStudy", f"{__name__}:toy"))
    monkeypatch.setattr(studies, "_load", lambda name: globals()[name.rpartition(":")[2]])
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    path = tmp_path / "toy.yaml"
    path.write_text("# Toy. Expect: squares.\nname: toys\ndescription: squares of numbers\nstudy: toy\nn: 4\n")
    yield path


def test_a_study_leaves_tables_figures_a_manifest_and_a_page(file: Path) -> None:
    result = run_study(file, {"n": 5})
    assert result.folder.parent == Path("runs/toys") and not result.skipped
    names = {p.name for p in result.folder.iterdir()} - {"lock"}
    assert names == {"squares.csv", "words.csv", "curve.svg", "curve.png", "again.svg", "again.png", "policy.bin",
                     "manifest.json", "report.html", "status.json"}
    assert list(pd.read_csv(result.folder / "squares.csv")["square"]) == [k * k / 3 for k in range(5)]
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["config"]["n"] == 5 and manifest["config_hash"] == result.folder.name and manifest["seed"] == 1
    assert {"python", "numpy"} <= set(manifest["versions"])


def test_the_page_is_offline_says_findings_first_and_escapes(file: Path) -> None:
    text = run_study(file).report.read_text()

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.fetched: list[str] = []
            self.ids: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
            self.ids += [v for k, v in attrs if k == "id" and v]

    page = Page()
    page.feed(text)
    assert page.fetched == ["data:,"], "nothing is loaded"
    assert len(page.ids) == len(set(page.ids)), "two figures do not share an id"
    assert text.index('id="findings"') < text.index('id="figure-curve"') < text.index('id="table-squares"')
    assert "&lt;b&gt;cubes" in text and "<b>cubes" not in text and "1 of 2" in text
    assert "var(--s1)" in text and "#d55e00" not in text.split("<svg", 1)[1], "figures follow the colours of the page"


def test_a_finished_study_is_read_and_not_run_again_unless_fresh(file: Path) -> None:
    first, second = run_study(file), run_study(file)
    assert CALLS == [4] and second.skipped and second.folder == first.folder
    assert second.findings == first.findings
    pd.testing.assert_frame_equal(second.tables["squares"], first.tables["squares"])
    third = run_study(file, fresh=True)
    assert CALLS == [4, 4] and third.folder == Path("runs/toys.2") / first.folder.name
    (third.folder / "words.csv").write_text("cut short")
    assert not run_study(file).skipped, "a file that was cut short is made again"


def test_a_study_that_fails_is_no_result(file: Path) -> None:
    with pytest.raises(RuntimeError, match="thirteen"):
        run_study(file, {"n": 13})
    folder = plan_study(file, {"n": 13}).folder(Path("runs"))
    assert not folder.is_complete and folder.status()["state"] == "failed"


def test_the_hash_follows_keys_version_and_content_not_words_or_place(file: Path, tmp_path: Path) -> None:
    before = plan_study(file).config_hash
    assert plan_study(file, {"description": "other words"}).config_hash == before
    assert plan_study(file, {"seed": 2}).config_hash != before
    hashes = {}
    for place, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / place).write_text(content)
        hashes[place] = plan_study(file, {"catalogue": place}).config_hash
    assert hashes["a"] == hashes["b"] != hashes["c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyStudy, "version", 2)
        assert plan_study(file).config_hash != before


@pytest.mark.parametrize(("words", "says"), [
    (["--set", "n=0"], "n: "), (["--set", "m=1"], "unknown key"), (["--set", "study=toi"], "use one of"),
    (["--set", "n=1,2"], "sweep"), (["--jobs", "2"], "--jobs"), (["--set", "catalogue=none.yaml"], "cannot be read"),
])
def test_bad_input_is_one_line_and_exit_code_2(file: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["run", str(file), *words]) == 2
    text = capsys.readouterr().err
    assert says in text and len(text.splitlines()) == 1 and "toy.yaml" in text
    assert not Path("runs").exists() and not CALLS


def test_the_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file)]) == 0
    assert "valid study of kind toy" in capsys.readouterr().out
    assert main(["run", str(file), "--dry-run", "--set", "weights=[1, 2]"]) == 0
    out = capsys.readouterr().out
    assert "n: 4" in out and "weights: [1.0, 2.0]" in out and not Path("runs").exists()
    assert main(["run", str(file)]) == 0
    out = capsys.readouterr().out
    assert "not seen" in out and "squares grow" in out and "report: runs/toys" in out
    assert main(["schema", "toy"]) == 0
    assert "weights" in json.loads(capsys.readouterr().out)["properties"]


def test_a_folder_in_use_is_refused(file: Path) -> None:
    planned = plan_study(file)
    with planned.folder(Path("runs")).lock(), pytest.raises(EmulationError, match="another"):
        run_study(file)


def test_every_kind_can_be_loaded() -> None:
    for name, kind in studies.KINDS.items():
        schema = kind.load_schema()
        assert issubclass(schema, Study) and callable(kind.load_function()), name


def test_a_file_that_is_no_study_is_refused(file: Path) -> None:
    file.write_text("name: x\n")
    with pytest.raises(InputError, match="study"):
        plan_study(file)
