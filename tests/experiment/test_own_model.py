"""A stranger's model file, which imports nothing of ours, in a scenario: planned, refused when wrong, and really cut."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from testbed.errors import InputError
from testbed.experiment.content import Content
from testbed.experiment.trials import plan_experiment
from testbed.inference.catalogue import load_catalogue
from testbed.inference.data import load_dataset
from testbed.schema.files import load_scenario
from tests.running import ROOT, command, logs, trial_folders

MODEL = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv(x))  # the skip connection


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 5, stride=4)
        self.block = Block(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.block(self.stem(x)).amax((2, 3)))


def build():
    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net
'''
SCENARIO = {
    "name": "stranger", "model": "net.py:build", "dataset": "digits", "catalogue": str(ROOT / "nodes/models/catalogue.yaml"),
    "topology": {"tiers": [{"name": "device", "runtime": "process"}, {"name": "edge", "runtime": "process"}],
                 "links": [{"between": ["device", "edge"], "both": {"rate": "100mbit", "delay": "1ms"}}]},
    "policies": [{"name": "cut", "plan": "split", "at": 0}],
    "load": {"requests_per_device": 3, "warmup_requests": 1, "rate_per_s": 10, "arrivals": "periodic"},
    "calibration": {"mode": "off"},
}
# numbers that cross each cut: behind the block's convolution the stem's output is live beside it, until they are added
FRAME, MAP = 64 * 64, 6 * 15 * 15
NUMBERS = {0: FRAME, 1: MAP, 2: 2 * MAP, 3: MAP, 4: MAP, 5: 6, 6: 10}
LAST = max(NUMBERS)


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "stranger.yaml").write_text(yaml.safe_dump(SCENARIO))
    return tmp_path / "stranger.yaml"


@pytest.mark.net
def test_a_strangers_model_is_cut_at_every_edge_and_run_over_the_network(scenario: Path) -> None:
    """At each cut: the predictions of the whole module in plain torch, and the cut's bytes on the link."""
    runs = scenario.parent / "runs"
    done = command("run", scenario, "--runs", runs, "--set", f"policies.cut.at={','.join(map(str, NUMBERS))}", timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr + logs(runs)
    space: dict[str, object] = {"__name__": "stranger"}
    exec(MODEL, space)
    torch.manual_seed(0)
    net = space["build"]().eval()  # type: ignore[operator]
    frames = torch.from_numpy(load_dataset("digits").x.copy())
    headers, seen, entries = {}, [], []
    for folder in trial_folders(runs):
        manifest = json.loads((folder / "manifest.json").read_text())
        cut = manifest["sweep_point"]["policies.cut.at"]
        entries.append(manifest["own_model"]["stages"])
        requests, hops = pd.read_csv(folder / "requests.csv"), pd.read_csv(folder / "hops.csv")
        assert len(requests) == 4 and (requests["status"] == "ok").all(), requests["error_type"]
        with torch.inference_mode():
            expected = net(frames[requests["sample_index"].tolist()]).argmax(1)
        assert requests["prediction"].tolist() == expected.tolist(), cut
        up = hops[(hops["src_node"] == "device1") & (hops["dst_node"] == "edge1")]
        seen.append(cut)
        if cut == LAST:  # everything ran on the device
            assert up.empty
            continue
        assert len(up) == 4
        headers[cut] = up["payload_bytes"] - 4 * NUMBERS[cut]
        assert requests["split_point"].fillna(0).eq(cut).all()
        computed = hops[hops["compute_end_ns"].notna()]
        assert set(computed["stage"]) == ({f"0:{cut}", f"{cut}:{LAST}"} if cut else {f"0:{LAST}"})
    assert sorted(seen) == list(NUMBERS)
    sizes = pd.concat(headers.values())
    assert sizes.between(200, 700).all() and sizes.max() - sizes.min() < 30, "the message's header, and nothing else"
    assert all(times == entries[0] for times in entries), "all trials use the same reference times"


def test_planning_measures_once_and_the_hash_follows_the_content_not_the_place(scenario: Path, tmp_path: Path) -> None:
    first = plan_experiment(scenario).trials[0]
    (kept,) = (tmp_path / "cache" / "testbed" / "models").iterdir()
    written_ns = kept.stat().st_mtime_ns
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("net.py", "stranger.yaml"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    moved = plan_experiment(elsewhere / "stranger.yaml").trials[0]
    assert moved.config_hash == first.config_hash and kept.stat().st_mtime_ns == written_ns
    assert moved.own_model.stages == first.own_model.stages, "the times of the first measurement"
    assert [s.size_bytes for s in first.own_model.stages] == [4 * n for n in list(NUMBERS.values())[1:]]
    (elsewhere / "net.py").write_text(MODEL.replace("mul_(3)", "mul_(2)"))
    assert plan_experiment(elsewhere / "stranger.yaml").trials[0].config_hash != first.config_hash


def test_a_cut_may_be_named_after_the_node_behind_it(scenario: Path) -> None:
    trials = plan_experiment(scenario, sweep={"policies.cut.at": ["block_conv", 3, "head"]}).trials
    assert [t.policy.at for t in trials] == ["block_conv", 3, "head"]
    with pytest.raises(InputError, match="no such split point"):
        plan_experiment(scenario, {"policies.cut.at": LAST + 1})


def test_stages_by_hand_with_an_exit(scenario: Path) -> None:
    (scenario.parent / "net.py").write_text(MODEL + '''
from testbed.inference.staged import StagedModel


def staged():
    net = build()
    tail = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), net.head)
    early = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    return StagedModel([("stem", net.stem), ("block", net.block), ("tail", tail)], {0: ("early", early)}, (1, 64, 64))
''')
    trial, = plan_experiment(scenario, {"model": "net.py:staged", "policies": [
        {"name": "exit", "plan": "early-exit", "threshold": 0.5, "head": "device", "tail": "edge"}]}).trials
    assert [e.name for e in trial.own_model.exits] == ["early", "final"]
    assert trial.own_model.stages[1].macs == 15 * 15 * 6 * 6 * 9
    curve = trial.own_model.exit_curve
    assert curve is not None and curve.share["early"][0] == 1 and curve.share["final"][-1] == 1
    told = Content.of(trial.scenario, trial.source, trial.own_model).models["net.py:staged"]
    values = [4096, 6 * 15 * 15, 6 * 15 * 15, 10]
    assert [told.bytes_at(cut, "int8") for cut in range(4)] == values == [told.bytes_at(cut, "int8+lz4") for cut in range(4)]
    assert [told.bytes_at(cut, "fp16") for cut in range(4)] == [2 * n for n in values] and told.bytes_at(0, "uint8") == 4096
    assert told.bytes_at(1, "uint8") == 4 * values[1]


REPLACED = "def build():\n    net = Net()"


@pytest.mark.parametrize(("old", "new", "says"), [
    ("", "", "net.py:bild"),
    ("nn.Linear(6, 10)", "nn.Linear(6, 7)", "has 7 outputs at its exit final, but digits has 10 classes"),
    ("nn.Conv2d(1, 6", "nn.Conv2d(3, 6", "fails on 2 samples of 1x64x64"),
    ("def forward(self, x):\n        return self.head", "def forward(self, x):\n        if x.max() > 2: return x\n        return self.head",
     "cannot be traced"),
    (REPLACED, "def build():\n    raise OSError('no weights here')", "build() fails: OSError: no weights here"),
    (REPLACED, "def build():\n    return 3\n    net = Net()", "build() returns a int"),
    (REPLACED, "import os\n\ndef build():\n    net = Net()\n    net.register_buffer('b', torch.tensor(list(os.urandom(9))))",
     "does not give the same weights twice"),
    ("import torch\n", "import torch\nimport no_such_package\n", "No module named 'no_such_package'"),
    ("import torch\n", "import torch(\n", "SyntaxError"),
])
def test_what_is_wrong_is_refused_in_one_line_when_planned(scenario: Path, old: str, new: str, says: str) -> None:
    file = scenario.parent / "net.py"
    assert old in MODEL
    file.write_text(MODEL.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        plan_experiment(scenario, {} if old else {"model": "net.py:bild"})
    text = str(caught.value)
    assert says in text and str(file) in text and "\n" not in text and "model" in text and caught.value.remedy, text


def test_a_model_file_that_is_not_there(scenario: Path) -> None:
    with pytest.raises(InputError, match="no such model file"):
        plan_experiment(scenario, {"model": "gone.py:build"})


def test_a_node_refuses_a_file_that_has_changed_since(scenario: Path, tmp_path: Path) -> None:
    from testbed.experiment.content import Content
    from testbed.inference.catalogue import load_model

    trial = plan_experiment(scenario).trials[0]
    written = Content.of(trial.scenario, scenario, trial.own_model).catalogue_file(tmp_path)
    catalogue = load_catalogue(written)
    assert load_model(catalogue, "net.py:build").model.num_stages == LAST
    assert load_model(catalogue, "digits_branchy").info.weights == str(ROOT / "nodes/models/digits_branchy.safetensors")
    (scenario.parent / "net.py").write_text(MODEL + "# another\n")
    with pytest.raises(InputError, match="not what it was when the run was planned"):
        load_model(catalogue, "net.py:build")


def test_policies_know_the_graph_of_a_strangers_model(scenario: Path) -> None:
    content = Content.of(load_scenario(scenario), scenario)
    model = content.models["net.py:build"]
    edges = {("input", "stem"), ("stem", "block_conv"), ("stem", "add"), ("block_conv", "add"), ("add", "relu"), ("relu", "amax"),
             ("amax", "head")}
    names = ("input", *model.stage_names)
    assert {(names[a + 1], names[b + 1]) for a, b in model.edges} == edges
    assert model.vertex_bytes == tuple(4 * n for n in (MAP, MAP, MAP, MAP, 6, 10))
    assert model.output_bytes == tuple(4 * NUMBERS[cut] for cut in range(1, LAST + 1))
    assert content.models["digits_branchy"].edges == ()  # a chain of stages
