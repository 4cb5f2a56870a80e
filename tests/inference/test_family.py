"""The shipped models are as accurate as the catalogue says, and their calibration, costs and files are as stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.inference.catalogue import Catalogue, LoadedModel, load_catalogue, load_model
from testbed.inference.data import load_dataset
from testbed.inference.evaluate import (
    accuracy,
    exit_logits,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from testbed.inference.family import refresh
from testbed.inference.staged import count_macs, stage_shapes

CATALOGUE = load_catalogue(Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml")
FIRST = 2000


@pytest.fixture(scope="module", params=list(CATALOGUE.models))
def shipped(request: pytest.FixtureRequest) -> LoadedModel:
    if CATALOGUE[request.param].dataset == "cifar10":
        request.getfixturevalue("testbed_data")  # where there are no images, the skip says how to get them
    return load_model(CATALOGUE, request.param)


def of_folder(catalogue: Catalogue) -> int:
    return sum(file.stat().st_size for file in catalogue.path.parent.iterdir())


def test_accuracy_on_2000_test_images_is_that_of_the_catalogue(shipped: LoadedModel) -> None:
    """Within one point on the same images; and the whole test split's accuracy within what 2,000 images can say of it."""
    data = load_dataset(shipped.info.dataset)
    some = replace(data, frames=data.frames[:FIRST], y=data.y[:FIRST])
    logits = exit_logits(shipped.model, some)
    for exit_info in shipped.info.exits:
        found = accuracy(logits[exit_info.name], some.y)
        stated = exit_info.accuracy if exit_info.accuracy_2000 is None else exit_info.accuracy_2000
        assert found == pytest.approx(stated, abs=0.01)
        deviation = (exit_info.accuracy * (1 - exit_info.accuracy) / len(some)) ** 0.5
        assert abs(found - exit_info.accuracy) <= 3.5 * deviation + 1e-4
        if exit_info.ece is not None:  # 10,000 images leave about a point of ECE to chance; ECE of a part differs more
            assert exit_info.ece_calibrated is not None and exit_info.ece_calibrated <= max(exit_info.ece, 0.02)
            assert expected_calibration_error(logits[exit_info.name], some.y) == pytest.approx(exit_info.ece, abs=0.03)


def test_shapes_bytes_parameters_and_multiplications_are_those_of_the_catalogue(shipped: LoadedModel) -> None:
    info = shipped.info
    assert [s.shape for s in info.stages] == stage_shapes(shipped.model)
    if info.storage == "torch-int8":
        exact = CATALOGUE[info.name.removesuffix("_int8")]
        assert info.parameters == exact.parameters and [s.macs for s in info.stages] == [s.macs for s in exact.stages]
        return
    assert info.parameters == sum(p.numel() for p in shipped.model.parameters())
    x = torch.zeros(1, *info.input_shape)
    for i, stage in enumerate(info.stages):
        assert stage.macs == count_macs(shipped.model.stages[i], x)
        x = shipped.model.run(x, i, i + 1)
        assert stage.size_bytes == x.numel() * 4 == info.bytes_at(i + 1)


def test_head_and_tail_make_the_whole_at_every_cut(shipped: LoadedModel) -> None:
    model, x = shipped.model, torch.rand(2, *shipped.info.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(x)
        for cut in range(model.num_stages + 1):
            sent = model.run(x, 0, cut).numpy().tobytes()  # as it travels
            back = torch.frombuffer(bytearray(sent), dtype=torch.float32).view(2, *shipped.info.shape_at(cut))
            assert torch.allclose(model.run(back, cut, model.num_stages), whole, atol=1e-5)


def test_the_family_is_what_it_is_meant_to_be() -> None:
    ladder = [info for name, info in CATALOGUE.models.items() if name.startswith("mobilenet")]
    assert len(ladder) >= 6
    spread = [info.exits[-1].accuracy for info in ladder]
    assert max(spread) - min(spread) >= 0.15
    paper, repo = CATALOGUE["vgg16_ddnn_paper"], CATALOGUE["vgg16_ddnn_repo"]
    assert [e.name for e in paper.exits] == ["edge", "final"] and [e.name for e in repo.exits] == ["edge", "fog", "final"]
    assert paper.exits[-1].accuracy >= 0.85 and paper.weights == repo.weights
    assert of_folder(CATALOGUE) <= 40 * 10**6
    assert all(info.seed is not None and info.recipe for info in CATALOGUE.models.values())


def test_temperature_gives_back_what_the_logits_were_multiplied_by() -> None:
    """Labels drawn from softmax(z) are calibrated at z: logits 2.5 z have temperature 2.5 and a large error before it."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, (20_000, 10)).astype(np.float32)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((len(z), 1))).argmax(1)
    temperature = fit_temperature(z * np.float32(2.5), labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    assert expected_calibration_error(z, labels) < 0.015  # 20,000 samples in 15 bins leave about 0.01
    assert expected_calibration_error(z * np.float32(2.5), labels) > 0.15
    assert expected_calibration_error(z * np.float32(2.5), labels, temperature) < 0.015


def test_calibration_error_of_hand_made_cases() -> None:
    sure = np.tile(np.array([[20.0, 0.0]], np.float32), (8, 1))  # always sure of class 0
    assert expected_calibration_error(sure, np.zeros(8, np.int64)) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(sure, np.ones(8, np.int64)) == pytest.approx(1, abs=1e-6)
    assert expected_calibration_error(sure, np.array([0, 1] * 4)) == pytest.approx(0.5, abs=1e-6)
    undecided = np.zeros((4, 4), np.float32)
    assert negative_log_likelihood(undecided, np.arange(4)) == pytest.approx(np.log(4))


def test_the_page_shows_what_the_catalogue_says() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "family.md"
    text = page.read_text(encoding="utf-8")
    assert refresh(text, CATALOGUE) == text, "run: python -m testbed.inference.family nodes/models/catalogue.yaml docs/family.md"
