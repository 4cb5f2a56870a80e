"""The catalogue: weights are verified, and everything wrong is an error with file, key and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.inference.catalogue import load_catalogue, load_model

SHIPPED = Path(__file__).resolve().parents[2] / "nodes" / "models"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for file in SHIPPED.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    return tmp_path / "catalogue.yaml"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("schema_version: 1", "schema_version: 2", "schema_version: is not a catalogue of version 1"),
    ("seed: 1", "sede: 1", "models.digits_branchy"),
    ("classes: 10", "classes: ten", "models.digits_branchy.classes"),
    ("after: 4", "after: 3", "the last exit is not after the last stage"),
    ("builder: testbed.inference.zoo.digits:build", "builder: testbed.inference.zoo.nope:build", "builder cannot be loaded"),
    ("builder: testbed.inference.zoo.digits:build", "builder: none.py:build", "builder cannot be loaded"),
    ("weights: digits_branchy.safetensors", "weights: away.safetensors", "weights cannot be read"),
    ("name: early, after: 2", "name: early, after: 1", "stages or exits are not those of the catalogue"),
])
def test_wrong_entries(copy: Path, old: str, new: str, message: str) -> None:
    edit(copy, old, new)
    with pytest.raises(InputError, match=message) as caught:
        load_model(load_catalogue(copy), "digits_branchy")
    assert caught.value.remedy and caught.value.file


def test_changed_weights_are_refused(copy: Path) -> None:
    weights = copy.parent / "digits_branchy.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="not those that the catalogue names"):
        load_model(load_catalogue(copy), "digits_branchy")


def test_a_pickle_is_refused_even_with_the_right_hash(copy: Path) -> None:
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(copy.parent / "evil"), "w")  # type: ignore[return-value]

    data = pickle.dumps(Evil())
    (copy.parent / "digits_branchy.safetensors").write_bytes(data)
    edit(copy, load_catalogue(copy)["digits_branchy"].sha256, hashlib.sha256(data).hexdigest())
    with pytest.raises(InputError, match="weights do not fit"):
        load_model(load_catalogue(copy), "digits_branchy")
    assert not (copy.parent / "evil").exists()


def test_unknown_model_and_cut_name_what_exists() -> None:
    catalogue = load_catalogue(SHIPPED / "catalogue.yaml")
    with pytest.raises(InputError, match="use one of digits_branchy"):
        catalogue["lenet"]
    info = catalogue["digits_branchy"]
    assert [info.cut(c) for c in (0, 5, "3", "mid")] == [0, 5, 3, 2]
    for wrong in (6, -1, "nose"):
        with pytest.raises(InputError, match="no such cut"):
            info.cut(wrong)


def test_a_builder_in_a_file_beside_the_catalogue(copy: Path) -> None:
    (copy.parent / "mine.py").write_text("from testbed.inference.zoo.digits import build\n")
    edit(copy, "testbed.inference.zoo.digits:build", "mine.py:build")
    assert load_model(load_catalogue(copy), "digits_branchy").model.num_stages == 5
