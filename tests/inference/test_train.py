"""Training by a recipe: repeatable, resumable, phases train only their part, and folded batch normalisation is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.inference import publish
from testbed.inference.catalogue import load_catalogue, load_model
from testbed.inference.data import Dataset, load_dataset
from testbed.inference.recipes import RECIPES, Phase, Recipe
from testbed.inference.staged import StagedModel, count_macs
from testbed.inference.train import fold_batch_norms, train
from testbed.inference.weights import pack, unpack
from testbed.inference.zoo import digits, mobilenet, resnet, vgg


def few(samples: int) -> Dataset:
    data = load_dataset("digits", "train")
    return replace(data, frames=data.frames[:samples], y=data.y[:samples])


ONE = Phase(((0, 1),), {"early": 0.75, "final": 1.0}, batch_size=16, learning_rate=3e-3, optimiser="adamw")
TINY = replace(RECIPES["digits_branchy"], phases=(ONE,))


def quiet(done: float, of: float, text: str) -> None:
    return


def same(one: StagedModel, two: StagedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_training_twice_with_one_seed_gives_the_same_weights() -> None:
    one, two, other = (train(digits.build, digits.build, few(48), TINY, seed, quiet) for seed in (3, 3, 4))
    assert same(one, two) and not same(one, other)


def test_an_interrupted_training_goes_on_and_ends_as_it_would_have(tmp_path: Path) -> None:
    two_epochs = replace(TINY, phases=(replace(ONE, sizes=((0, 2),)), replace(ONE, sizes=((0, 2),), trains="exits",
                                                                           loss_weights={"early": 1.0})))
    whole = train(digits.build, digits.build, few(48), two_epochs, 3, quiet)
    for at in (1, 2, 3):  # epochs after which it is cut off: inside the first phase, between them, inside the second
        checkpoint = tmp_path / f"{at}.pt"
        seen = []

        def stop(done: float, of: float, text: str, at: int = at, seen: list[float] = seen) -> None:
            seen.append(done)
            if done > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(digits.build, digits.build, few(48), two_epochs, 3, stop, checkpoint)
        again: list[float] = []

        def note(done: float, of: float, text: str, again: list[float] = again) -> None:
            again.append(done)

        resumed = train(digits.build, digits.build, few(48), two_epochs, 3, note, checkpoint)
        assert min(again) > at  # the finished epochs were not done again
        assert same(resumed, whole)


def test_a_checkpoint_of_another_recipe_is_not_taken(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.pt"
    train(digits.build, digits.build, few(48), TINY, 3, quiet, checkpoint)
    other = replace(TINY, phases=(replace(ONE, learning_rate=1e-4),))
    assert same(train(digits.build, digits.build, few(48), other, 3, quiet, checkpoint),
                train(digits.build, digits.build, few(48), other, 3, quiet))


def test_the_phase_of_the_exits_leaves_the_trunk_as_it_is() -> None:
    torch.manual_seed(0)
    model = digits.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    only_exits = replace(TINY, phases=(replace(ONE, trains="exits", loss_weights={"early": 1.0}),))
    trained = train(lambda: model, lambda: model, few(48), only_exits, 3, quiet)
    changed = {k for k, v in trained.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(name.startswith("heads.") for name in changed)


def test_folded_batch_normalisation_computes_the_same() -> None:
    torch.manual_seed(0)
    trained = vgg.build_training()
    trained.train()
    trained(torch.rand(8, 3, 32, 32))  # running statistics that are not those of a new layer
    trained.eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        want = trained.all_exits(x)
        got = fold_batch_norms(trained, vgg.build_repo()).all_exits(x)
    for name, logits in want.items():
        assert torch.allclose(got[name], logits, atol=1e-5), name


@pytest.mark.parametrize("storage, tolerance", [("fp32", 0.0), ("fp16", 2.0**-11), ("int8", 0.5 / 127)])
def test_stored_weights_come_back_within_the_error_of_their_storage(storage: str, tolerance: float) -> None:
    state = resnet.build().state_dict()
    back = unpack(pack(state, storage))  # type: ignore[arg-type]
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        if tensor.dim() < 2:
            assert torch.equal(back[name], tensor)
        else:  # relative to the largest weight of the output channel, with the rounding of the float32 scale itself
            peak = tensor.flatten(1).abs().amax(1).view(-1, *[1] * (tensor.dim() - 1))
            assert bool(((back[name] - tensor).abs() <= peak * tolerance * 1.001 + 1e-9).all()), name


def macs(model: StagedModel) -> int:
    return count_macs(model.eval(), torch.zeros(1, *model.input_shape))


def test_vgg16_has_the_shapes_parameters_and_multiplications_of_the_published_model() -> None:
    paper, repo = vgg.build_paper(), vgg.build_repo()
    shapes = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1), (10,)]
    x = torch.zeros(1, 3, 32, 32)
    for i, shape in enumerate(shapes):
        x = repo.run(x, i, i + 1)
        assert tuple(x.shape[1:]) == shape
    convolutions = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8),
                    (256, 512, 4), (512, 512, 4), (512, 512, 4), *[(512, 512, 2)] * 3]
    dense = [(512, 1024), (1024, 512), (512, 256), (256, 128), (128, 10)]
    edge, fog = [(16384, 128), (128, 10)], [(8192, 256), (256, 128), (128, 10)]
    trunk_parameters = sum(i * o * 9 + o for i, o, _ in convolutions) + sum(i * o + o for i, o in dense)
    trunk_macs = sum(i * o * 9 * side**2 for i, o, side in convolutions) + sum(i * o for i, o in dense)
    assert macs(paper) == macs(repo) == trunk_macs
    assert sum(p.numel() for p in paper.parameters()) == trunk_parameters + sum(i * o + o for i, o in edge)
    assert sum(p.numel() for p in repo.parameters()) == trunk_parameters + sum(i * o + o for i, o in edge + fog)
    assert paper.exits == {0: "edge", 5: "final"} and repo.exits == {0: "edge", 1: "fog", 5: "final"}


def test_resnet20_has_the_parameters_of_its_layers() -> None:
    trunk = 3 * 16 * 9 + 2 * 16  # stem
    for inputs, outputs in [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2:
        trunk += inputs * outputs * 9 + outputs * outputs * 9 + 4 * outputs
        trunk += inputs * outputs + 2 * outputs if inputs != outputs else 0
    trunk += 64 * 10 + 10
    heads = sum(inputs * 64 * 9 + 2 * 64 + 64 * 10 + 10 for inputs in (16, 32))
    assert sum(p.numel() for p in resnet.build().parameters()) == trunk + heads


def test_the_ladder_rises_in_parameters_and_multiplications() -> None:
    models = [mobilenet.builder_of(name)() for name in mobilenet.LADDER]
    cost = [macs(m) for m in models]
    assert cost == sorted(cost) and cost[-1] > 50 * cost[0]
    # depthwise-separable: a layer costs 9 per pixel and channel, and channels times channels (MobileNets, section 3.1)
    low = models[-1].stages[1]
    assert count_macs(low, torch.zeros(1, 64, 32, 32)) == 16 * 16 * (64 * 9 + 64 * 128 + 128 * 9 + 128 * 128)


def test_publishing_writes_entries_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of weights for two entries, and the int8 form beside the float32 one, from random weights."""
    rng = np.random.default_rng(0)
    data = {s: Dataset("cifar10", s, rng.random((n, 3, 32, 32), np.float32), rng.integers(0, 10, n), 10)  # type: ignore[arg-type]
            for s, n in (("train", 32), ("calibration", 16), ("test", 16))}
    monkeypatch.setattr(publish, "load_dataset", lambda name, split="test": data[split])
    catalogue = tmp_path / "catalogue.yaml"
    short = replace(RECIPES["vgg16_ddnn_repo"], phases=(), fold=False, training_builder=None)
    publish.train_to_catalogue("vgg16_ddnn_repo", catalogue, machine="test", recipe=short)
    small = Recipe("cifar10", "testbed.inference.zoo.mobilenet:mobilenet_025s2", (),
                   int8=("mobilenet_025s2_int8", "testbed.inference.zoo.mobilenet:mobilenet_025s2_int8"))
    result = publish.train_to_catalogue("mobilenet_025s2", catalogue, machine="test", recipe=small)
    found = load_catalogue(catalogue)
    paper, repo = load_model(found, "vgg16_ddnn_paper"), load_model(found, "vgg16_ddnn_repo")
    assert paper.info.weights == repo.info.weights and paper.info.exits[0].name == "edge"
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(paper.model.all_exits(x)["edge"], repo.model.all_exits(x)["edge"])
    exact, narrow = load_model(found, "mobilenet_025s2"), load_model(found, "mobilenet_025s2_int8")
    assert narrow.info.storage == "torch-int8" and narrow.info.parameters == exact.info.parameters
    close = (narrow.model(x) - exact.model(x)).abs().max() / exact.model(x).abs().max()
    assert 0 < close < 0.1  # it is quantised, and it is the same function nearly
    assert set(result.accuracy) == {"mobilenet_025s2", "mobilenet_025s2_int8"}
