"""`testbed models codecs`: what it lists and measures is what the codecs do."""

from __future__ import annotations

import re

import pytest

from testbed.cli import main


def rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[list[str]]:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["models", "codecs", *words]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\d+ +\S", line)]


def test_measured_at_cuts_with_a_dash_where_a_codec_is_not_made_for_the_tensor(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["raw", "int8-channel", "jpeg-10", "uint8", "bottleneck:digits_branchy@1"]
    found = rows(capsys, monkeypatch, "--model", "digits_branchy", "--cut", "0", "--cut", "1", "--samples", "2",
                 *(word for name in names for word in ("--codec", name)))
    table = {(int(row[0]), row[1]): row[2:] for row in found}
    assert set(table) == {(cut, name) for cut in (0, 1) for name in names}
    dashes = {key for key, cells in table.items() if cells == ["-"] * 5}
    assert dashes == {(0, names[4]), (1, "jpeg-10"), (1, "uint8")}
    assert table[0, "raw"][:3] == ["16,384", "1.0", "0"] and table[0, "uint8"][:2] == ["4,096", "4.0"]
    assert table[1, "int8-channel"][:2] == [f"{65_536 // 4 + 4 * 16:,}", "4.0"]
    assert table[1, names[4]][:2] == ["512", "128.0"]
    assert all(float(cell) >= 0 for key, cells in table.items() if key not in dashes for cell in cells[2:])


@pytest.mark.parametrize(("words", "said"), [
    (["--codec", "mp3"], "no such codec"), (["--cut", "1"], "belongs to --model"),
    (["--model", "digits_branchy", "--cut", "6"], "no such cut"), (["--model", "nope"], "no such model")])
def test_wrong_words_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "codecs", *words]) == 2
    assert said in capsys.readouterr().err
