"""Layer regressions: known laws are found again, errors are held out, features are those of the layers, files are checked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from testbed.errors import InputError
from testbed.inference.catalogue import builder, load_catalogue
from testbed.inference.layer_sweep import MAX_MACS, MAX_WEIGHTS, draw_cases, fit_all
from testbed.inference.regressors import (
    KINDS,
    Layer,
    Regressor,
    Regressors,
    Sample,
    describe_layer,
    fit,
    layers_of,
    load_regressors,
)
from testbed.inference.staged import StagedModel, count_macs
from tests.running import ROOT

torch.set_num_threads(1)
CATALOGUE = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")


def drawn(kind: str, law: object, n: int = 80, noise: float = 0.0) -> list[Sample]:
    draw = np.random.default_rng(1)
    samples = []
    for _ in range(n):
        features = {name: float(10 ** draw.uniform(1, 6)) for name in KINDS[kind]}
        samples.append(Sample(Layer(kind, features), law(features) * float(np.exp(draw.normal(0, noise)))))  # type: ignore[operator]
    return samples


def test_a_linear_law_is_found_again() -> None:
    found = fit(drawn("linear", lambda f: 1e-5 + 2e-10 * f["weights"] + 3e-11 * f["inputs"]))
    assert found.form == "linear" and found.p90_error < 1e-3
    assert found.intercept == pytest.approx(1e-5, rel=1e-3)
    assert found.weights == {"weights": pytest.approx(2e-10, rel=1e-3), "inputs": pytest.approx(3e-11, rel=1e-2),
                             "outputs": pytest.approx(0, abs=1e-13)}


def test_a_logarithmic_law_is_found_again() -> None:
    found = fit(drawn("pooling", lambda f: 1e-9 * (1 + f["inputs"]) ** 0.7 * (1 + f["outputs"]) ** 0.4))
    assert found.form == "logarithmic" and found.p90_error < 0.01
    assert found.weights == {"inputs": pytest.approx(0.7, abs=0.01), "outputs": pytest.approx(0.4, abs=0.01)}


def test_the_reported_error_is_that_of_layers_never_seen() -> None:
    # noise of 30% cannot be learnt: the median of |exp(N(0, .3)) - 1| against a right law is about 0.2
    found = fit(drawn("linear", lambda f: 1e-5 + 2e-10 * f["weights"], n=400, noise=0.3))
    assert found.samples == 400 and found.held_out == 120
    assert 0.14 < found.median_error < 0.28 and found.p90_error > found.median_error


def test_predictions_are_never_negative_and_never_fall_as_a_linear_layer_grows() -> None:
    assert Regressor("linear", -1.0, {"inputs": 0.1}).predict_s({"inputs": 2.0}) == 0.0
    found = fit(drawn("activation", lambda f: 1e-5 + 1e-10 * f["inputs"], noise=0.5))
    times = [found.predict_s({"inputs": float(10**e)}) for e in range(8)]
    assert min(times) >= 0 and times == sorted(times)


@pytest.mark.parametrize("samples", [
    drawn("linear", lambda f: 1.0, n=9), [*drawn("linear", lambda f: 1.0), *drawn("pooling", lambda f: 1.0)],
    drawn("linear", lambda f: 0.0), []])
def test_what_cannot_be_fitted_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="needs 10"):
        fit(samples)


@pytest.mark.parametrize("name", ["digits_branchy", "resnet20_branchy", "mobilenet_025", "vgg16_ddnn_paper"])
def test_features_of_a_models_layers_add_up_to_its_multiply_accumulates_and_weights(name: str) -> None:
    info = CATALOGUE[name]
    model = builder(info.builder, CATALOGUE.path)().eval()
    stages = layers_of(model)
    x = torch.zeros(1, *model.input_shape)
    for index, layers in enumerate(stages):
        module = model.stages[index]
        macs = sum(f.get("macs", f["weights"] if layer.kind == "linear" else 0) for layer in layers for f in [layer.features])
        assert macs == count_macs(module, x) == info.stages[index].macs
        weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
        assert sum(layer.features.get("weights", 0) for layer in layers) == weights
        with torch.inference_mode():
            x = module(x)
    assert len(stages) == info.num_stages


def test_layers_that_only_reshape_take_nothing_and_unknown_ones_are_named() -> None:
    x = torch.zeros(2, 4, 8, 8)
    assert describe_layer(nn.Flatten(), x, x.flatten(1)) is None
    assert describe_layer(nn.MaxPool2d(2), x, x[:, :, :4, :4]) == Layer("pooling", {"inputs": 256.0, "outputs": 64.0})
    model = StagedModel([("up", nn.Upsample(scale_factor=2))], {}, (4, 8, 8))
    with pytest.raises(ValueError, match="Upsample"):
        layers_of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_draws_the_same_layers_of_its_type_within_its_bounds(kind: str) -> None:
    cases, again = draw_cases(kind, 15, 3), draw_cases(kind, 15, 3)
    assert [c.layer for c in cases] == [c.layer for c in again] and {c.layer.kind for c in cases} == {kind}
    assert len({str(c.layer) for c in cases}) > 8
    for case in cases:
        assert count_macs(case.module, case.x) == case.layer.features.get("macs", case.layer.features.get("weights", 0))
        assert case.layer.features.get("macs", 0) <= MAX_MACS and case.layer.features.get("weights", 0) <= MAX_WEIGHTS


@pytest.fixture(scope="module")
def measured() -> Regressors:
    layers = fit_all(passes=3, count=12)
    return Regressors("here", "a test", layers, {"net": (0.1, 0.2)})


def test_a_sweep_of_this_machine_tells_large_layers_from_small_ones(measured: Regressors) -> None:
    assert set(measured.layers) == set(KINDS)

    def conv(channels: int, side: int) -> float:
        x = torch.zeros(1, channels, side, side)
        layer = describe_layer(nn.Conv2d(channels, channels, 3, 1, 1), x, x)
        assert layer is not None
        return measured.predict_s([layer])

    assert 0 < conv(8, 8) < conv(128, 32)
    assert measured.predict_s([]) == 0


def test_a_file_gives_back_what_was_written(measured: Regressors, tmp_path: Path) -> None:
    measured.write(tmp_path / "layers.json")
    assert load_regressors(tmp_path / "layers.json") == measured


@pytest.mark.parametrize(("text", "says"), [
    ("[]", "not a file of layer regressions"), ("{", "not a file"), ('{"layers": {}}', "machine|missing|Missing|required"),
    ('{"layers": {"cake": {"form": "linear", "intercept": 0, "weights": {}}}, "machine": "m", "source": "s", "schema_version": 1}', "layer type"),
    ('{"layers": {}, "machine": "m", "source": "s", "schema_version": 7}', "1"),
])
def test_a_file_that_is_none_is_refused_with_its_name(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    file.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        load_regressors(file)
    assert caught.value.file == file
