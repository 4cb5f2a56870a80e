"""Outputs are computed beforehand for exactly what plans will ask: nodes that cannot compute answer every request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.experiment import outputs
from testbed.experiment.outputs import Job, fill, fill_in_process, walks_of
from testbed.inference.catalogue import load_catalogue
from testbed.inference.codecs import codec
from testbed.inference.data import load_dataset
from testbed.inference.exits import ExitRule
from testbed.inference.memo import MemoisedModel, MemoStore
from testbed.workload.inputs import write_inputs

CATALOGUE = Path(__file__).resolve().parents[2] / "nodes" / "models" / "catalogue.yaml"
M = "digits_branchy"
SAMPLES = (3, 7, 11)


def step(node: str, start: int, stop: int, code: str = "raw", threshold: float | None = None) -> dict[str, Any]:
    rule = None if threshold is None else {"kind": "max_probability", "threshold": threshold}
    return {"node": node, "model": M, "start": start, "stop": stop, "codec": code, "exit": rule}


def job(tmp_path: Path, *plans: tuple[str, list[dict[str, Any]]], every_cut: tuple[int, ...] = ()) -> Job:
    write_inputs(tmp_path, load_dataset("digits"), SAMPLES)
    return Job(CATALOGUE, tmp_path / "outputs", tmp_path, (M,), walks_of([(d, p, SAMPLES) for d, p in plans]), every_cut)


def stored_only(tmp_path: Path) -> MemoisedModel:
    def load() -> Any:
        raise AssertionError("something was not stored")

    info = load_catalogue(CATALOGUE)[M]
    return MemoisedModel(info, MemoStore.of(info, CATALOGUE, tmp_path / "outputs"), load)


def sample(index: int) -> Any:
    return load_dataset("digits").x[index:index + 1]


def carried(x: Any, name: str) -> Any:
    encoded = codec(name).encode(x)
    return codec(name).decode(encoded.arrays, encoded.params)


def test_devices_whose_plans_differ_in_names_only_share_a_walk() -> None:
    walks = walks_of([("device1", [step("device1", 0, 3), step("edge1", 3, 5)], [1, 2]),
                      ("device2", [step("device2", 0, 3), step("edge2", 3, 5)], [2, 3]),
                      ("device3", [step("device3", 0, 3), step("device3", 3, 5)], [1])])
    assert [w.samples for w in walks] == [(1, 2, 3), (1,)]
    assert [[s.node for s in w.steps] for w in walks] == [["0", "1"], ["0", "0"]]


@pytest.mark.parametrize("code", ["raw", "int8", "fp16"])
def test_a_plan_with_a_codec_is_served_without_computing(tmp_path: Path, code: str) -> None:
    done = fill(job(tmp_path, ("device1", [step("device1", 0, 3, threshold=0.8), step("edge1", 3, 5, code)])))
    assert done["samples"] == 3 and done["computed"] == 7  # two steps each, and the frame for the node's calibration
    memo = stored_only(tmp_path)
    for index in SAMPLES:
        for threshold in (0.0, 0.8, 1.1):  # any threshold, though the plan names one
            first = memo.step(sample(index), 0, 3, ExitRule("max_probability", threshold), True)
            if first.exit_id is None:
                last = memo.step(carried(first.output, code), 3, 5, ExitRule(), True)
                assert last.exit_id == "final" and last.memo_hit
    assert memo.step(np.zeros((1, 1, 64, 64), np.float32), 0, 5, ExitRule(), True).memo_hit
    assert fill(job(tmp_path, ("device1", [step("device1", 0, 3), step("edge1", 3, 5, code)])))["computed"] == 0


def test_a_frame_that_is_encoded_twice_on_its_way_is_followed(tmp_path: Path) -> None:
    """Weak then strong: the second step begins anew with what arrived at the first, encoded again."""
    fill(job(tmp_path, ("device1", [step("edge1", 0, 5, "int8", threshold=0.9), step("cloud1", 0, 5, "int8")])))
    memo = stored_only(tmp_path)
    for index in SAMPLES:
        at_edge = carried(sample(index), "int8")
        memo.step(at_edge, 0, 5, ExitRule("max_probability", 1.1), False)
        assert memo.step(carried(at_edge, "int8"), 0, 5, ExitRule(), True).memo_hit


def test_a_policy_that_decides_later_may_cut_anywhere(tmp_path: Path) -> None:
    fill(job(tmp_path, every_cut=SAMPLES))
    memo = stored_only(tmp_path)
    for index in SAMPLES:
        for first in range(1, 5):
            for second in range(first + 1, 6):
                head = memo.step(sample(index), 0, first, ExitRule(), True)
                middle = memo.step(head.output, first, second, ExitRule(), True)
                if second < 5:
                    assert memo.step(middle.output, second, 5, ExitRule(), True).exit_id == "final"


def test_a_broken_store_is_replaced_and_filled(tmp_path: Path) -> None:
    work = job(tmp_path, ("device1", [step("device1", 0, 5)]))
    path = stored_only(tmp_path).store.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 1000)
    assert fill(work)["computed"] == 4 and path.with_suffix(".broken").exists()
    assert stored_only(tmp_path).step(sample(3), 0, 5, ExitRule(), True).memo_hit


def test_too_much_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(tmp_path, ("device1", [step("device1", 0, 1), step("edge1", 1, 5)]))
    assert work.size_bytes(load_catalogue(CATALOGUE)) == 3 * (65536 + 40)
    monkeypatch.setattr(outputs, "LIMIT_BYTES", 100_000)
    with pytest.raises(InputError, match="memoised outputs would take"):
        fill(work)
    assert not (tmp_path / "outputs").exists()


def test_as_a_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = job(tmp_path, ("device1", [step("device1", 0, 5)]))
    assert Job.read(_written(tmp_path, work)) == work
    result = fill_in_process(work, tmp_path)
    assert result["computed"] == 4 and result["stores"][0]["size_bytes"] > 0
    for line in capfd.readouterr().out.splitlines():
        assert json.loads(line)["event"] == "outputs"


def _written(tmp_path: Path, work: Job) -> Path:
    (tmp_path / "job.json").write_text(json.dumps(work.to_json()))
    return tmp_path / "job.json"
