"""DDNN over the network: thresholds 0 and above 1 do exactly as specified, and an escalation sends 21 times the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from testbed.inference.catalogue import load_catalogue, load_model
from testbed.inference.data import load_dataset
from testbed.inference.exits import max_probability
from testbed.measurement.trial import Trial, load_trial
from tests.running import ROOT, run_short, trial_folders

pytestmark = pytest.mark.net

PLAN = "plan: early-exit, head: edge, tail: cloud, input_codec: uint8"
POLICIES = [f"{{name: exit-0, threshold: 0, {PLAN}}}", f"{{name: exit-0.8, threshold: 0.8, {PLAN}}}",
            f"{{name: exit-1.01, threshold: 1.01, {PLAN}}}", f"{{name: int8, threshold: 1.01, {PLAN}, codec: int8}}",
            f"{{name: learned, threshold: 1.01, {PLAN}, codec: 'bottleneck:vgg16_ddnn_paper@1.wide'}}",
            "{name: cloud-only, plan: cloud-only, input_codec: uint8}"]
TENSOR_BYTES, IMAGE_BYTES = 64 * 16 * 16 * 4, 3 * 32 * 32


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, testbed_data: Path) -> dict[str, Trial]:
    runs = tmp_path_factory.mktemp("runs")
    run_short(runs, "--set", f"policies=[{', '.join(POLICIES)}]", "--set", "calibration.mode='off'",
              "--set", "load.requests_per_device=22", scenario=ROOT / "scenarios" / "early_exit.yaml")
    found = [load_trial(folder) for folder in trial_folders(runs)]
    return {str(trial.requests["policy"].iloc[0]): trial for trial in found}


def escalations(trial: Trial) -> pd.DataFrame:
    hops = trial.hops
    return hops[(hops["kind"] == "transfer") & (hops["src_node"] == "edge1") & (hops["dst_node"] == "cloud1")]


def test_the_same_images_go_to_every_plan(trials: dict[str, Trial]) -> None:
    samples = {tuple(t.requests.sort_values("request_id")["sample_index"]) for t in trials.values()}
    assert len(trials) == len(POLICIES) and len(samples) == 1
    assert all((t.requests["status"] == "ok").all() for t in trials.values())


def test_at_threshold_0_everything_leaves_at_the_edge(trials: dict[str, Trial]) -> None:
    trial = trials["exit-0"]
    assert set(trial.requests["exit_id"]) == {"edge"} and set(trial.requests["final_node"]) == {"edge1"}
    assert escalations(trial).empty


def test_above_1_nothing_leaves_early_and_the_answers_are_those_of_the_uncut_model(trials: dict[str, Trial]) -> None:
    above, cloud = (trials[n].requests.set_index("request_id").sort_index() for n in ("exit-1.01", "cloud-only"))
    assert set(above["exit_id"]) == {"final"} and len(escalations(trials["exit-1.01"])) == len(above)
    assert above["prediction"].tolist() == cloud["prediction"].tolist()
    assert above["exit_confidence"].tolist() == cloud["exit_confidence"].tolist()  # to the last digit that is written
    model = load_model(load_catalogue(ROOT / "nodes" / "models" / "catalogue.yaml"), "vgg16_ddnn_paper").model
    data = load_dataset("cifar10")
    torch.set_num_threads(1)
    for _, row in above.iterrows():
        x = torch.from_numpy(data.sample(int(row["sample_index"])))
        with torch.inference_mode():
            whole = model(x)
            cut = model.run(model.run(x, 0, 1), 1, model.num_stages)
        assert torch.equal(cut, whole)  # bit for bit
        assert int(whole.argmax()) == row["prediction"]
        assert max_probability(whole.numpy()) == pytest.approx(row["exit_confidence"], abs=1e-6)


def test_at_08_each_image_leaves_where_its_confidence_says(trials: dict[str, Trial]) -> None:
    """The run's shares and accuracies obey share x early + (1 - share) x escalated, with the uncut model's answers."""
    at, never, always = (trials[n].requests.set_index("request_id").sort_index() for n in ("exit-0.8", "exit-1.01", "exit-0"))
    early = always["exit_confidence"].astype(float) >= 0.8
    assert (at["exit_id"] == np.where(early, "edge", "final")).all() and 0 < early.mean() < 1
    assert (at["prediction"] == np.where(early, always["prediction"], never["prediction"])).all()
    right = at["correct"].astype(float)
    assert right.mean() == pytest.approx(early.mean() * right[early].mean() + (1 - early.mean()) * right[~early].mean())


def test_an_escalation_sends_21_times_the_image_and_codecs_remove_it(trials: dict[str, Trial]) -> None:
    raw, narrow, learned = (escalations(trials[n])["payload_bytes"].astype(float) for n in ("exit-1.01", "int8", "learned"))
    image = trials["cloud-only"].hops
    image_up = image[(image["kind"] == "transfer") & (image["dst_node"] == "cloud1")]["payload_bytes"].astype(float)
    header = 1000  # JSON header of a message: 300 to 700 bytes
    for sent, content in ((raw, TENSOR_BYTES), (narrow, TENSOR_BYTES // 4), (learned, 2048), (image_up, IMAGE_BYTES)):
        assert (sent > content).all() and (sent < content + header).all()
    assert round(TENSOR_BYTES / IMAGE_BYTES) == 21
    assert (raw - image_up.mean()).mean() == pytest.approx(TENSOR_BYTES - IMAGE_BYTES, abs=header)
    assert learned.mean() < image_up.mean()  # fewer bytes than the image itself
