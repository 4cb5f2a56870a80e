"""Learned bottlenecks: the code is packed without loss, training leaves the model alone, resumes, and keeps the accuracy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.cli import main
from testbed.errors import InputError
from testbed.inference.bottleneck import BottleneckNet, BottleneckRecipe, accuracy, train, train_to_catalogue
from testbed.inference.catalogue import LoadedModel, load_catalogue, load_model
from testbed.inference.codecs import Registry
from testbed.inference.codecs.learned import Bottleneck, BottleneckInfo, code_shape, packed_bytes
from testbed.inference.data import Dataset, load_dataset
from tests.running import command

SHIPPED = Path(__file__).resolve().parents[2] / "nodes" / "models"
TINY = BottleneckRecipe(channels=4, stride=2, epochs=3, reconstruction_epochs=1, samples=32, batch_size=16)


def info_of(shape: tuple[int, int, int], channels: int, stride: int, bits: int) -> BottleneckInfo:
    size = packed_bytes(math.prod(code_shape(shape, channels, stride)), bits)
    return BottleneckInfo.model_validate({
        "key": "m@1", "model": "m", "cut": 1, "shape": shape, "channels": channels, "stride": stride, "bits": bits,
        "relu": False, "weights": "none", "sha256": "0" * 64, "model_sha256": "0" * 64, "seed": 0, "recipe": {},
        "parameters": {}, "macs": {}, "size_bytes": size, "ratio": 1.0, "accuracy": {"final": 1}, "accuracy_without": {"final": 1}})


@given(st.integers(1, 5), st.integers(4, 9), st.integers(4, 9), st.integers(1, 3), st.integers(1, 4), st.integers(1, 8),
       st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_code_travels_without_loss_in_the_stated_bytes(c: int, h: int, w: int, channels: int, stride: int, bits: int,
                                                           n: int) -> None:
    """decode(encode(x)) is restore(codes(x)) exactly, for every shape, stride and number of bits."""
    torch.manual_seed(c * h * w)
    net = BottleneckNet((c, h, w), channels, stride, bits, relu=False).eval()
    info = info_of((c, h, w), channels, stride, bits)
    one = Bottleneck(info, Path("none"), net)
    x = torch.randn(n, c, h, w)
    encoded = one.encode(x.numpy())
    with torch.inference_mode():
        codes = net.codes(x)
        assert tuple(codes.shape[1:]) == info.code_shape and codes.min() >= 0 and codes.max() <= 2**bits - 1
        expected = net.restore(codes).numpy()
        assert np.allclose(net(x).numpy(), expected, atol=1e-5)  # what training sees is what travels
    assert encoded.size_bytes == n * math.ceil(codes[0].numel() * bits / 8) == one.size_bytes(x.shape)
    assert expected.shape == tuple(x.shape) and np.array_equal(one.decode(encoded.arrays, encoded.params), expected)


def test_what_does_not_fit_is_refused() -> None:
    one = Bottleneck(info_of((3, 8, 8), 2, 2, 4), Path("none"), BottleneckNet((3, 8, 8), 2, 2, 4, False).eval())
    for shape in ((1, 3, 8, 9), (3, 8, 8), (1, 4, 8, 8)):
        with pytest.raises(ValueError, match="is for tensors of shape"):
            one.encode(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        one.encode(np.full((1, 3, 8, 8), np.nan, np.float32))
    for packed in (np.zeros((1, 15), np.uint8), np.zeros(16, np.uint8), np.zeros((0, 16), np.uint8), np.zeros((1, 16), np.int8)):
        with pytest.raises(ValueError, match=r"bytes for a sample|expects one"):
            one.decode([packed], {})
    with pytest.raises(ValueError, match="too large"):  # 1.6 MB that would become 77 MB
        one.decode([np.zeros((100_000, 16), np.uint8)], {})


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(load_catalogue(SHIPPED / "catalogue.yaml"), "digits_branchy")


@pytest.fixture(scope="module")
def few() -> Dataset:
    whole = load_dataset("digits", "train")
    return Dataset("digits", "train", whole.x[:64], whole.y[:64], 10)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(loaded: LoadedModel, few: Dataset, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop_after(epochs: int) -> Callable[[float, str], None]:
        def progress(done: float, text: str) -> None:
            if done > epochs:
                raise Interrupted
        return progress

    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    whole, relu = train(loaded, 4, few, TINY, 7)
    with pytest.raises(Interrupted):
        train(loaded, 4, few, TINY, 7, stop_after(1), tmp_path / "state")
    done: list[float] = []
    resumed, _ = train(loaded, 4, few, TINY, 7, lambda at, text: done.append(at), tmp_path / "state")
    assert done == [2, 3]  # the first epoch was not done again (the second had no state yet)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in before.items())  # the model stayed as it was
    assert relu is True  # that tensor is the output of a ReLU
    other, _ = train(loaded, 4, few, TINY, 8, checkpoint=tmp_path / "state")  # another seed: the state is not this one's
    assert not torch.equal(other.encoder[0].weight, whole.encoder[0].weight)
    (tmp_path / "state").write_bytes(b"not a state")
    with pytest.raises(InputError, match="is not a state of this training"):
        train(loaded, 4, few, TINY, 7, checkpoint=tmp_path / "state")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue into which the command has written a bottleneck of digits_branchy at cut 3: 8 KiB in 512 bytes."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return trained_in(folder)


def trained_in(folder: Path) -> Path:
    shutil.copy(SHIPPED / "digits_branchy.safetensors", folder)
    document = yaml.safe_load((SHIPPED / "catalogue.yaml").read_text())
    models = {"digits_branchy": document["models"]["digits_branchy"]}
    (folder / "catalogue.yaml").write_text("# A comment.\n" + yaml.safe_dump({"schema_version": 1, "models": models}))
    done = command("models", "train-bottleneck", "digits_branchy", "--cut", "3", "--catalogue", folder / "catalogue.yaml",
                   "--channels", "8", "--stride", "1", "--epochs", "6", "--reconstruction-epochs", "5", "--samples", "320",
                   "--learning-rate", "0.03", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "512 bytes for a sample, 16 times fewer" in done.stdout
    return folder / "catalogue.yaml"


def test_it_keeps_the_accuracy_in_a_sixteenth_of_the_bytes(trained: Path, loaded: LoadedModel) -> None:
    learned = Registry(trained).learned("bottleneck:digits_branchy@3")
    assert learned.info.size_bytes == 512 and learned.info.ratio == 16 and learned.size_bytes((1, 32, 8, 8)) == 512
    measured = accuracy(loaded, 3, load_dataset("digits", "test"), learned)
    assert measured == pytest.approx(learned.info.accuracy, abs=0.005)
    assert measured["final"] >= 0.95
    assert learned.info.accuracy_without["final"] == pytest.approx(loaded.info.exits[-1].accuracy, abs=0.003)
    assert trained.read_text().startswith("# A comment.\n")
    assert load_catalogue(trained).models["digits_branchy"].sha256 == loaded.info.sha256
    assert not list((trained.parent / "cache").rglob("*.pt"))  # the state of the training, which is done


def test_the_shipped_one_loses_at_most_two_points(loaded: LoadedModel) -> None:
    learned = Registry(SHIPPED / "catalogue.yaml").learned("bottleneck:digits_branchy@1")
    assert learned.info.size_bytes * 100 < 4 * math.prod(learned.info.shape)
    measured = accuracy(loaded, 1, load_dataset("digits", "test"), learned)
    assert measured == pytest.approx(learned.info.accuracy, abs=0.005)
    assert measured["final"] >= learned.info.accuracy_without["final"] - 0.02


def test_wrong_files_are_refused(trained: Path, tmp_path: Path) -> None:
    def changed(edit: Callable[[dict[str, object]], object], weights: bytes | None = None) -> Registry:
        shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
        document = yaml.safe_load(trained.read_text())
        edit(document)
        (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump(document))
        if weights is not None:
            (tmp_path / "bottleneck_digits_branchy@3.safetensors").write_bytes(weights)
        return Registry(tmp_path / "catalogue.yaml")

    key, name = "digits_branchy@3", "bottleneck:digits_branchy@3"
    with pytest.raises(InputError, match="not those that the catalogue names"):
        changed(lambda d: None, b"\x80\x04").learned(name).sha256()
    with pytest.raises(InputError, match="was trained for other weights of digits_branchy"):
        changed(lambda d: d["models"]["digits_branchy"].update(sha256="1" * 64)).learned(name).sha256()  # type: ignore[index]
    with pytest.raises(InputError, match="not the bytes of this shape"):
        changed(lambda d: d["bottlenecks"][key].update(size_bytes=511)).learned(name)  # type: ignore[index]
    with pytest.raises(InputError, match=r"bottlenecks\.digits_branchy@3\.bits"):
        changed(lambda d: d["bottlenecks"][key].update(bits=9)).learned(name)  # type: ignore[index]
    with pytest.raises(InputError, match=r"no such learned codec.*the catalogue has bottleneck:digits_branchy@3"):
        changed(lambda d: None).learned("bottleneck:digits_branchy@2")


@pytest.mark.parametrize(("words", "said"), [
    (["nope", "--cut", "1"], "no such model"), (["digits_branchy", "--cut", "5"], "no such cut before its last stage"),
    (["digits_branchy", "--cut", "3", "--stride", "9"], "larger than the tensor's side"),
    (["digits_branchy", "--cut", "3", "--epochs", "2", "--reconstruction-epochs", "2"], "no epoch for the cross-entropy"),
    (["digits_branchy", "--cut", "3", "--variant", "A B"], "not a short name")], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_the_command_refuses_what_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "train-bottleneck", *words, "--catalogue", str(SHIPPED / "catalogue.yaml")]) == 2
    assert said in capsys.readouterr().err


def test_a_variant_is_a_codec_beside_the_first(trained: Path, tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("testbed.inference.bottleneck.load_dataset", lambda name, split: few)
    entry = train_to_catalogue(load_catalogue(tmp_path / "catalogue.yaml"), "digits_branchy", 3, variant="small",
                               recipe=BottleneckRecipe(channels=3, stride=2, bits=3, epochs=1, reconstruction_epochs=1))
    registry = Registry(tmp_path / "catalogue.yaml")
    assert entry.size_bytes == math.ceil(3 * 4 * 4 * 3 / 8) == 18
    assert registry.learned_for(["digits_branchy"]) == ["bottleneck:digits_branchy@3", "bottleneck:digits_branchy@3.small"]
    registry.warm_up(["bottleneck:digits_branchy@3.small+lz4"])
    with pytest.raises(InputError, match="no such codec"):
        registry.warm_up(["bottleneck:digits_branchy@3.large"])
