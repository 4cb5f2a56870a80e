"""A user's own data set, as arrays or as images: what fits is read exactly, everything else is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from testbed.cli import main
from testbed.errors import InputError
from testbed.experiment.trials import plan_experiment
from testbed.inference.data import dataset_sha256, load_dataset
from testbed.workload.inputs import Inputs, write_inputs
from tests.running import QUICKSTART

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (12, 64, 64), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)  # (N, H, W, C)
LABELS = np.arange(12) % 10


def _npz(folder: Path, **arrays: object) -> str:
    np.savez(folder / "own.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "own.npz")


# ---- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [COLOUR, COLOUR.transpose(0, 3, 1, 2), (COLOUR / 255).astype(np.float32), COLOUR / 255])
def test_all_accepted_forms_give_the_same_samples(tmp_path: Path, x: np.ndarray) -> None:
    data = load_dataset(_npz(tmp_path, x=x, y=LABELS[:6]))
    assert data.shape == (3, 5, 4) and data.classes == 6 and data.y.tolist() == LABELS[:6].tolist()
    assert np.allclose(data.sample(2)[0], COLOUR[2].transpose(2, 0, 1) / 255, atol=1e-7)


def test_grey_images_have_one_channel_and_splits_their_own_arrays(tmp_path: Path) -> None:
    name = _npz(tmp_path, x_train=GREY[:8], y_train=LABELS[:8], x_test=GREY[8:], y_test=LABELS[8:])
    assert load_dataset(name, "train").frames.shape == (8, 1, 64, 64) and len(load_dataset(name)) == 4
    with pytest.raises(InputError, match="has no array x_calibration for the calibration split"):
        load_dataset(name, "calibration")


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": GREY}, "has no array y"),
    ({"y": LABELS}, "has no array x"),
    ({"x": GREY, "y": LABELS[:3]}, "y is not a class number per sample"),
    ({"x": GREY, "y": LABELS / 2}, "y is not a class number per sample"),
    ({"x": GREY, "y": LABELS - 1}, "y is not a class number per sample"),
    ({"x": GREY.astype(np.int64), "y": LABELS}, "neither uint8 nor floating point"),
    ({"x": GREY.astype(np.float32), "y": LABELS}, "values outside 0..1"),
    ({"x": np.full((12, 4, 4), np.nan), "y": LABELS}, "values outside 0..1"),
    ({"x": GREY.reshape(12, -1), "y": LABELS}, "not an array of grey or colour images"),
    ({"x": np.zeros((2, 2, 5, 5), np.uint8), "y": LABELS[:2]}, "not an array of grey or colour images"),
    ({"x": np.array([{}, {}], object), "y": LABELS[:2]}, "not an .npz file of plain arrays.*pickle"),
    ({"x": GREY[:0], "y": LABELS[:0]}, "holds no samples"),
])
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(_npz(tmp_path, **arrays))
    assert "own.npz" in str(caught.value) and caught.value.remedy


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_npz_is_an_input_error_or_still_readable(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int,
                                                           value: int) -> None:
    folder = tmp_path_factory.mktemp("npz")
    good = bytearray(Path(_npz(folder, x=COLOUR, y=LABELS[:6])).read_bytes())
    good[flip % len(good)] = value
    (folder / "own.npz").write_bytes(good[: max(1, len(good) - cut % 50)])
    try:
        load_dataset(str(folder / "own.npz"))
    except InputError as error:
        assert "own.npz" in str(error)


# ---- images ------------------------------------------------------------------------------------------------------


def _image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_of_classes_is_read_exactly(tmp_path: Path) -> None:
    for i, name in enumerate(("zebra", "ant", "ant")):
        _image(tmp_path / name / f"{i}.png", COLOUR[i])
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_dataset(f"{tmp_path}/")
    assert data.class_names == ("ant", "zebra") and data.y.tolist() == [0, 0, 1]
    assert np.array_equal(data.frames, COLOUR[[1, 2, 0]].transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match="has no train split"):
        load_dataset(str(tmp_path), "train")


def test_splits_are_folders_and_grey_stays_grey(tmp_path: Path) -> None:
    _image(tmp_path / "train" / "a" / "1.png", GREY[0])
    _image(tmp_path / "test" / "a" / "1.png", GREY[1])
    assert np.array_equal(load_dataset(str(tmp_path), "train").frames[0, 0], GREY[0])
    with pytest.raises(InputError, match="has no sub-folder calibration"):
        load_dataset(str(tmp_path), "calibration")


def test_sizes_must_agree_unless_a_size_is_asked(tmp_path: Path) -> None:
    _image(tmp_path / "a" / "1.png", np.full((8, 6, 3), 50, np.uint8))
    _image(tmp_path / "a" / "2.jpg", np.full((9, 6, 3), 50, np.uint8))
    with pytest.raises(InputError, match=r"2.jpg.*9x6 pixels; those before it are 8x6.*image_size"):
        load_dataset(str(tmp_path))
    data = load_dataset(str(tmp_path), image_size=(4, 5))
    assert data.frames.shape == (2, 3, 4, 5) and np.abs(data.frames.astype(int) - 50).max() <= 2


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_dataset(str(tmp_path))
    (tmp_path / "a" / "x.png").write_bytes(b"GIF89a nonsense")
    with pytest.raises(InputError, match=r"x.png: dataset: is not a PNG or JPEG image"):
        load_dataset(str(tmp_path))
    _image(tmp_path / "a" / "x.png", GREY[0])
    whole = (tmp_path / "a" / "x.png").read_bytes()
    (tmp_path / "a" / "x.png").write_bytes(whole[:200])  # the header is there, the pixels are not
    with pytest.raises(InputError, match=r"x.png: dataset: is not a PNG or JPEG image"):
        load_dataset(str(tmp_path))


# ---- in a scenario -----------------------------------------------------------------------------------------------


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """The quickstart beside a data set of its model's shape."""
    for name in ("topologies", "traces"):
        (tmp_path / name).symlink_to(QUICKSTART.parents[1] / name)
    (tmp_path / "scenarios").mkdir()
    _npz(tmp_path / "scenarios", x=GREY, y=LABELS)
    text = QUICKSTART.read_text().replace("dataset: digits", f"dataset: own.npz\ncatalogue: {QUICKSTART.parents[1]}/nodes/models/catalogue.yaml")
    (tmp_path / "scenarios" / "own.yaml").write_text(text)
    return tmp_path / "scenarios" / "own.yaml"


def test_a_scenario_names_it_relative_to_itself_and_hashes_its_content(scenario: Path) -> None:
    first = plan_experiment(scenario).trials[0]
    assert first.scenario.dataset == str(scenario.parent / "own.npz")
    assert first.content_sha256[first.scenario.dataset] == dataset_sha256(first.scenario.dataset)
    moved = scenario.parents[1] / "moved"
    shutil.copytree(scenario.parent, moved)
    assert plan_experiment(moved / "own.yaml").trials[0].config_hash == first.config_hash, "the path is not part of it"
    np.savez(scenario.parent / "own.npz", x=255 - GREY, y=LABELS)
    assert plan_experiment(scenario).trials[0].config_hash != first.config_hash, "the content is"


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": COLOUR, "y": LABELS[:6]}, r"has samples of 3x5x4, but model digits_branchy takes 1x64x64"),
    ({"x": GREY, "y": np.arange(12)}, r"has 12 classes, but model digits_branchy has 10"),
])
def test_a_data_set_that_does_not_fit_the_model_is_refused(scenario: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    _npz(scenario.parent, **arrays)
    with pytest.raises(InputError, match=message):
        plan_experiment(scenario)


def test_images_are_resized_to_what_the_scenario_asks(scenario: Path) -> None:
    folder = scenario.parent / "photos"
    for label in range(10):
        _image(folder / f"class{label}" / "1.png", GREY[label][:32])
    with pytest.raises(InputError, match=r"samples of 1x32x64.*image_size: \[64, 64\]"):
        plan_experiment(scenario, {"dataset": "./photos"})
    plan_experiment(scenario, {"dataset": "./photos", "image_size": 64})
    with pytest.raises(InputError, match="belongs to a folder of images"):
        plan_experiment(scenario, {"image_size": 64})
    shutil.rmtree(folder / "class3")
    with pytest.raises(InputError, match="has 9 classes, but model digits_branchy has 10"):
        plan_experiment(scenario, {"dataset": "./photos", "image_size": 64})


def test_devices_find_their_samples_and_no_others(tmp_path: Path) -> None:
    data = load_dataset(_npz(tmp_path, x=GREY, y=LABELS))
    write_inputs(tmp_path, data, [7, 2, 7, 11])
    inputs = Inputs(tmp_path)
    for index in (2, 7, 11):
        assert np.array_equal(inputs.sample(index), data.sample(index)) and inputs.label(index) == data.y[index]
    with pytest.raises(KeyError):
        inputs.sample(3)


def test_the_check_command_says_what_a_data_set_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", _npz(tmp_path, x=GREY, y=LABELS)]) == 0
    assert capsys.readouterr().out == "test: 12 samples of 1x64x64, 10 classes\n"
    assert main(["data", "check", str(tmp_path / "absent.npz")]) == 2
    assert main(["data", "check", str(tmp_path), "--image-size", "0"]) == 2
    assert main(["data", "list"]) == 0 and "digits: handwritten" in capsys.readouterr().out
