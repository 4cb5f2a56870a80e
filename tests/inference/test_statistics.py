"""What the catalogue tells policies of a model: exit curves and payload bytes, recomputed, and in their identities."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.cli import main
from testbed.errors import InputError
from testbed.experiment.content import Content
from testbed.inference.catalogue import load_catalogue, load_model
from testbed.inference.codecs import CODECS
from testbed.inference.data import load_dataset
from testbed.inference.describe import WIRE_CODECS, WIRE_SAMPLES, wire_bytes
from testbed.inference.evaluate import CURVE_THRESHOLDS, exit_curve, exit_logits
from testbed.inference.exits import ExitRule
from testbed.schema.files import load_scenario
from tests.running import QUICKSTART, ROOT

CATALOGUE = load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml")
DIGITS = CATALOGUE["digits_branchy"]
WITH_EXITS = [info for info in CATALOGUE.models.values() if len(info.exits) > 1]


@pytest.mark.parametrize("info", CATALOGUE.models.values(), ids=list(CATALOGUE.models))
def test_every_model_has_its_statistics_and_fixed_sizes_are_those_of_the_shapes(info) -> None:  # type: ignore[no-untyped-def]
    assert (info.exit_curve is not None) == (len(info.exits) > 1) and set(info.wire_bytes) == set(WIRE_CODECS)
    for name, sizes in info.wire_bytes.items():
        for cut, size in enumerate(sizes):
            if size is None:
                assert (cut > 0 and CODECS[name].kind == "image") or CODECS[name].misfit((1, *info.shape_at(cut)))
            elif (fixed := CODECS[name].size_bytes((1, *info.shape_at(cut)))) is not None:
                assert size == fixed
    assert info.wire_bytes["raw"] == tuple(info.bytes_at(cut) for cut in range(info.num_stages + 1))


@pytest.mark.parametrize("info", WITH_EXITS, ids=[info.name for info in WITH_EXITS])
def test_the_curves_are_consistent(info) -> None:  # type: ignore[no-untyped-def]
    curve = info.exit_curve
    assert curve.threshold == CURVE_THRESHOLDS and curve.samples == len(load_split(info.dataset))
    first, final = info.exits[0].name, info.exits[-1].name
    assert curve.share[first][0] == 1 and curve.share[final][-1] == 1
    assert list(curve.share[first]) == sorted(curve.share[first], reverse=True)
    for i in range(len(curve.threshold)):
        parts = [(curve.share[e.name][i], curve.exit_accuracy[e.name][i]) for e in info.exits]
        assert all((accuracy is None) == (share == 0) for share, accuracy in parts)
        assert sum(share * (accuracy or 0) for share, accuracy in parts) == pytest.approx(curve.accuracy[i], abs=1e-4)
    # another split than the one of the stated accuracies, and so close to them but not the same
    assert curve.accuracy[-1] == pytest.approx(info.exits[-1].accuracy, abs=0.02)


def load_split(name: str):  # type: ignore[no-untyped-def]
    try:
        return load_dataset(name, "calibration")
    except InputError as error:
        pytest.skip(str(error))


def test_a_curve_recomputed_sample_by_sample_with_the_rule_of_nodes() -> None:
    model, data = load_model(CATALOGUE, "digits_branchy").model, load_dataset("digits", "calibration")
    logits = exit_logits(model, data)
    assert exit_curve(logits, data.y)["share"] == {k: list(v) for k, v in DIGITS.exit_curve.share.items()}  # type: ignore[union-attr]
    i = CURVE_THRESHOLDS.index(0.8)
    early = np.array([ExitRule("max_probability", 0.8).fires(logits["early"][n:n + 1]) for n in range(len(data))])
    answer = np.where(early, logits["early"].argmax(1), logits["final"].argmax(1))
    curve = DIGITS.exit_curve
    assert curve is not None
    assert curve.share["early"][i] == pytest.approx(early.mean(), abs=1e-5)
    assert curve.accuracy[i] == pytest.approx((answer == data.y).mean(), abs=1e-5)
    assert curve.exit_accuracy["early"][i] == pytest.approx((answer == data.y)[early].mean(), abs=1e-5)


def test_bytes_recomputed_on_some_samples() -> None:
    """Payloads of 20 samples, encoded one by one here, against the function; and near the catalogue's mean of 200."""
    model, data = load_model(CATALOGUE, "digits_branchy").model, load_dataset("digits", "calibration")
    x = data.x[:20]
    found = wire_bytes(model, x, ("int8+lz4", "webp"))
    assert found["webp"][1:] == [None] * model.num_stages and found["webp"][0] is not None
    with torch.inference_mode():
        for cut in (0, 2):
            sizes = [sum(a.nbytes for a in CODECS["int8+lz4"].encode(model.run(torch.from_numpy(x[n:n + 1]), 0, cut).numpy()).arrays)
                     for n in range(20)]
            assert found["int8+lz4"][cut] == round(float(np.mean(sizes)))
            assert DIGITS.wire_bytes["int8+lz4"][cut] == pytest.approx(np.mean(sizes), rel=0.1)
    assert 20 < WIRE_SAMPLES <= len(data)


def test_policies_are_told(tmp_path: Path) -> None:
    scenario = load_scenario(QUICKSTART)
    told = Content.of(scenario, QUICKSTART).models["digits_branchy"]
    curve = DIGITS.exit_curve
    assert curve is not None and [p.threshold for p in told.exit_curve] == list(curve.threshold)
    assert told.exit_curve[-1].exit_accuracy == {"final": curve.accuracy[-1]} and told.exit_curve[-1].share["early"] == 0
    assert told.bytes_at(3, "int8+lz4") == DIGITS.wire_bytes["int8+lz4"][3]
    assert told.bytes_at(0, "jpeg") < told.bytes_at(0, "uint8") < told.bytes_at(0) == 16_384
    assert told.bytes_at(3, "jpeg") == told.bytes_at(3), "what a codec cannot carry never looks cheap"
    assert told.bytes_at(1, "bottleneck:digits_branchy@1") == 512 and told.bytes_at(2, "bottleneck:digits_branchy@1") == told.bytes_at(2)


def test_the_command_writes_what_was_there_before_and_nothing_else(tmp_path: Path) -> None:
    for file in ("catalogue.yaml", "digits_branchy.safetensors"):
        shutil.copy(ROOT / "nodes" / "models" / file, tmp_path)
    path = tmp_path / "catalogue.yaml"
    text = path.read_text()
    path.write_text(text.replace("early: [1.0, 1.0, 0.99,", "early: [1.0, 1.0, 0.98999,", 1))
    assert path.read_text() != text
    assert main(["models", "statistics", "digits_branchy", "--catalogue", str(path)]) == 0
    assert path.read_text() == text
    assert main(["models", "statistics", "digits_branchy", "absent", "--catalogue", str(path)]) == 2 and path.read_text() == text


@pytest.mark.parametrize(("old", "new", "message"), [
    ("early: [1.0, 1.0, 0.99,", "early: [1.0, 0.99,", "different lengths"),
    ("early: [1.0, 1.0, 0.99,", "early: [1.0, 1.0, 0.5,", "does not add up"),
    ("threshold: [0.0, 0.3, 0.4,", "threshold: [0.3, 0.0, 0.4,", "does not rise"),
    ("raw: [16384, 65536, ", "raw: [65536, ", "wire_bytes.raw"), ("        early: [1.0", "        soon: [1.0", "exits are not those")])
def test_broken_statistics_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "nodes" / "models" / "catalogue.yaml").read_text()
    assert old in text
    (tmp_path / "catalogue.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_catalogue(tmp_path / "catalogue.yaml")
