"""A staged model cut anywhere is the whole model; exits stand where the builder put them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from testbed.inference.catalogue import LoadedModel, load_catalogue, load_model
from testbed.inference.data import load_dataset
from testbed.inference.evaluate import accuracy, exit_logits, leave_at
from testbed.inference.staged import StagedModel, count_macs, stage_shapes

CATALOGUE = Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml"


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load_model(load_catalogue(CATALOGUE), "digits_branchy")


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_parts_of_a_cut_model_give_the_logits_of_the_whole(digits: LoadedModel, first: int, second: int) -> None:
    if second < first:
        first, second = second, first
    x = torch.from_numpy(load_dataset("digits").x[:4])
    model = digits.model
    whole = model(x)
    parts = model.run(model.run(model.run(x, 0, first), first, second), second, 5)
    assert torch.allclose(parts, whole, atol=1e-5, rtol=0)


def test_exit_logits_are_those_of_one_pass_through_all_exits(digits: LoadedModel) -> None:
    x = torch.from_numpy(load_dataset("digits").x[:4])
    at_exit = digits.model.exit_logits(2, digits.model.run(x, 0, 3))
    assert torch.allclose(at_exit, digits.model.all_exits(x)["early"], atol=1e-5)
    assert torch.equal(digits.model.exit_logits(4, digits.model(x)), digits.model(x))


def test_shipped_weights_have_the_accuracy_that_the_catalogue_states(digits: LoadedModel) -> None:
    data = load_dataset("digits")
    logits = exit_logits(digits.model, data)
    for exit_info in digits.info.exits:
        assert accuracy(logits[exit_info.name], data.y) == pytest.approx(exit_info.accuracy, abs=0.002)
    leaving = leave_at(logits, data.y, 0.8)
    assert 0.6 <= leaving["share"]["early"] <= 0.9  # a threshold of 0.8 splits the load
    assert leaving["accuracy"] >= 0.97


def test_catalogue_states_the_shapes_bytes_and_costs_of_the_model(digits: LoadedModel) -> None:
    x = torch.zeros(1, *digits.info.input_shape)
    assert [s.shape for s in digits.info.stages] == stage_shapes(digits.model)
    for i, stage in enumerate(digits.info.stages):
        assert stage.macs == count_macs(digits.model.stages[i], x)
        x = digits.model.run(x, i, i + 1)
        assert stage.size_bytes == x.numel() * 4 == digits.info.bytes_at(i + 1)


def test_macs_of_known_layers() -> None:
    assert count_macs(nn.Linear(7, 3), torch.zeros(1, 7)) == 21
    assert count_macs(nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 5, 5)) == 4 * 5 * 5 * 2 * 9


def test_wrong_ranges_and_exits_are_refused(digits: LoadedModel) -> None:
    x = torch.zeros(1, 1, 64, 64)
    for start, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(ValueError, match="not within"):
            digits.model.run(x, start, stop)
    with pytest.raises(ValueError, match="no exit after stage 0"):
        digits.model.exit_logits(0, x)
    with pytest.raises(ValueError, match="names must differ"):
        StagedModel([("a", nn.Identity()), ("a", nn.Identity())], {}, (1,))
    with pytest.raises(ValueError, match="final exit is there by itself"):
        StagedModel([("a", nn.Identity()), ("b", nn.Identity())], {1: ("x", nn.Identity())}, (1,))
