"""Costs of models with exits against samples that are sent through one by one."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.inference.exits import softmax
from testbed.policies import Computation, Context
from testbed.policies.exits_math import BranchyTimes, by_accuracy, reach_of
from tests.policies.branchy import CODEC, Branchy


@pytest.mark.parametrize("seed", range(12))
def test_expected_costs_are_the_means_over_samples(seed: int) -> None:
    """Identity: sum of share * time = mean time of 300 samples, each leaving where its own logits say."""
    made = Branchy(seed)
    times = BranchyTimes(made.context, made.info, "edge1", CODEC)
    last = made.stages - 1
    for point in made.info.exit_curve:
        sure = {name: softmax(values).max(1) >= point.threshold for name, values in made.logits.items()}
        leaves = [min([made.exits[n] for n in made.exits if n != "final" and sure[n][i]], default=last) for i in range(300)]
        for split in range(made.stages + 1):
            device_s, server_s, sent, worst = np.zeros(300), np.zeros(300), np.zeros(300), 0.0
            for i, end in enumerate(leaves):
                for stage in range(end + 1):
                    on_device = stage < split
                    cost = (made.device_s if on_device else made.server_s)[stage]
                    for name, after in made.exits.items():
                        if after == stage and point.threshold <= 1:
                            cost += (made.device_head_s if on_device else made.server_head_s)[name]
                    (device_s if on_device else server_s)[i] += cost
                sent[i] = split <= end
            found = times.expected(point, split)
            assert found.device_s == pytest.approx(device_s.mean(), rel=1e-3, abs=1e-6)
            assert found.server_s == pytest.approx(server_s.mean(), rel=1e-3, abs=1e-6)
            assert found.sent_share == pytest.approx(sent.mean(), abs=5e-5)
            assert found.sent_bytes == pytest.approx(sent.mean() * (made.raw[0] if split == 0 else made.packed[min(split, last)]),
                                                     abs=1)
            if last in leaves:
                worst = (device_s + server_s)[leaves.index(last)]
                assert found.whole_device_s + found.whole_server_s == pytest.approx(worst)


def test_reach_falls_stage_by_stage_from_one_to_the_share_of_the_final_exit() -> None:
    for seed in range(6):
        made = Branchy(seed)
        for point in made.info.exit_curve:
            reach = reach_of(made.info, point)
            assert reach[0] == 1 and reach == sorted(reach, reverse=True) and len(reach) == made.stages
            assert reach[-1] == pytest.approx(point.share["final"], abs=1e-4)


def test_a_branch_takes_its_stages_and_its_own_head_wherever_it_is_cut() -> None:
    made = Branchy(3)
    branches = BranchyTimes(made.context, made.info, "edge1").branches()
    assert {(b.exit_name, b.cut) for b in branches} == {(n, c) for n, after in made.exits.items() for c in range(after + 2)}
    for b in branches:
        after = made.exits[b.exit_name]
        heads = made.device_head_s if b.cut > after else made.server_head_s
        assert b.device_s + b.server_s == pytest.approx(sum(made.device_s[:b.cut]) + sum(made.server_s[b.cut:after + 1])
                                                        + heads[b.exit_name])
        assert b.payload_bytes == (None if b.cut == after + 1 else made.raw[b.cut])
        assert (b.server_s == 0) == (b.cut == after + 1)


def test_predicted_times_of_finished_computations() -> None:
    made = Branchy(5)
    times = BranchyTimes(made.context, made.info, "edge1")
    done = Computation("edge1", "net", 0, made.stages, 0.0, 0.1)
    assert times.predicted_s(done, heads=False) == pytest.approx(sum(made.server_s))
    assert times.predicted_s(done, heads=True) == pytest.approx(sum(made.server_s) + sum(made.server_head_s.values()))
    assert times.predicted_s(Computation("cloud1", "net", 0, 1, 0, 0.1), heads=True) == 0
    assert times.predicted_s(Computation("edge1", "other", 0, 1, 0, 0.1), heads=True) == 0
    assert times.local_s("e0") == pytest.approx(sum(made.device_s[:made.exits["e0"] + 1]) + made.device_head_s["e0"])


def test_what_is_not_known_is_named() -> None:
    made = Branchy(1)
    bare = Context("device1", made.context.nodes, made.context.tiers, made.context.models, "net", 0.1, 1)
    with pytest.raises(ValueError, match="net on device1"):
        BranchyTimes(bare, made.info, "edge1")
    order = by_accuracy(made.info)
    assert sorted(order) == sorted(made.exits)
    assert [made.info.exit_accuracy[n] for n in order] == sorted(made.info.exit_accuracy.values(), reverse=True)
