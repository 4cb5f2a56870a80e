"""MDInference and ModiPick as policies: what fits the rest of the deadline, the duplicate's start, comparators, ModiPick's draw."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest

from testbed.errors import InputError
from testbed.policies import (
    Computation,
    Context,
    ModelInfo,
    NodeInfo,
    Observation,
    Outcome,
    Plan,
    Step,
    Transfer,
    make_policy,
)
from testbed.policies.mdinference import MDInference
from testbed.policies.modipick import ModiPick
from testbed.schema.scenario import PolicySpec

CLOUD = {"a": (0.5, 0.01), "b": (0.7, 0.03), "c": (0.8, 0.06), "d": (0.9, 0.2)}  # accuracy, seconds in the cloud
MODELS = {name: ModelInfo(name, ("all",), {"final": 0}, 10_000, (40,), exit_accuracy={"final": accuracy})
          for name, (accuracy, _) in CLOUD.items()}
CONTEXT = Context(
    "device1", {"device": "device1", "cloud": "cloud1"}, ("device", "cloud"), MODELS, "a", 1.0, 7,
    {"device1": NodeInfo("device1", "device", {name: (10 * s,) for name, (_, s) in CLOUD.items()}),
     "cloud1": NodeInfo("cloud1", "cloud", {name: (s,) for name, (_, s) in CLOUD.items()})})
REMOTE = {"cloud": list(CLOUD)}
COUNT = itertools.count()


def ask(chooser: MDInference, deadline_s: float, elapsed_s: float = 0.0) -> Plan:
    return chooser.decide(Observation(0, f"r{next(COUNT)}", deadline_s=deadline_s, elapsed_s=elapsed_s))


def teach(chooser: MDInference, upload_s: float | None = None, times: Sequence[tuple[str, float]] = ()) -> None:
    sent = () if upload_s is None else (Transfer("device1", "cloud1", 10_000, upload_s),)
    done = tuple(Computation("cloud1", model, 0, 1, 0.0, s) for model, s in times)
    chooser.observe(Outcome("r", Plan("p", (Step("cloud1", "a", 0, 1),)), "ok", 0.1, "final", 1.0, "cloud1",
                            transfers=sent, computations=done))


def test_the_most_accurate_model_that_fits_the_deadline_less_twice_the_upload() -> None:
    chooser = MDInference(CONTEXT, REMOTE)
    teach(chooser, upload_s=0.05)
    for budget_s in (0.02, 0.11, 0.1101, 0.13, 0.1301, 0.16, 0.1601, 0.3, 0.3001, 1.0):
        fitting = [m for m, (_, s) in CLOUD.items() if s < budget_s - 0.1]
        plan = ask(chooser, budget_s + 0.2, elapsed_s=0.2)
        assert plan.steps == (Step("cloud1", max(fitting, default="a"), 0, 1),), budget_s


def test_sigma_and_gamma_shut_out_models_whose_time_is_uncertain() -> None:
    for gamma, expected in ((0.0, "c"), (1.0, "b"), (4.0, "a")):
        chooser = MDInference(CONTEXT, REMOTE, gamma=gamma)
        teach(chooser, upload_s=0.01, times=[("c", 0.03), ("c", 0.09), ("b", 0.01), ("b", 0.05)])  # sigmas 0.03, 0.02
        assert ask(chooser, 0.1).steps[0].model == expected


def test_weighted_history_forgets() -> None:
    old_and_new = [("c", 0.3)] * 5 + [("c", 0.05)] * 20
    forgets, remembers = MDInference(CONTEXT, REMOTE, alpha=0.5), MDInference(CONTEXT, REMOTE)
    for chooser, expected in ((forgets, "c"), (remembers, "b")):
        teach(chooser, upload_s=0.01, times=old_and_new)
        assert ask(chooser, 0.1).steps[0].model == expected


def test_the_duplicate_is_ready_just_before_the_deadline_and_serves_as_fallback() -> None:
    chooser = MDInference(CONTEXT, REMOTE, device_model="b", guard_s=0.01)  # 0.3 s on the device
    plan = ask(chooser, 0.5)
    assert plan.backup == plan.fallback == (Step("device1", "b", 0, 1),) and plan.backup_after_s == pytest.approx(0.19)
    assert ask(chooser, 0.25).backup_after_s == 0.0
    assert not ask(MDInference(CONTEXT, REMOTE, duplicate=False), 0.5).backup
    assert set(chooser.models()) == set(CLOUD)
    assert {p.steps for p in chooser.plans()} == {*((Step("cloud1", m, 0, 1),) for m in CLOUD), plan.backup}


def test_naive_ignores_the_network_and_the_random_rules_stay_among_what_fits() -> None:
    naive = MDInference(CONTEXT, REMOTE, rule="naive")
    teach(naive, upload_s=10.0)
    assert ask(naive, 0.25).steps[0].model == "d"
    for rule, share_of_c in (("random", 1 / 3), ("weighted", 0.8 / 2.0)):
        chooser = MDInference(CONTEXT, REMOTE, rule=rule)  # type: ignore[arg-type]
        teach(chooser, upload_s=0.01)
        drawn = Counter(ask(chooser, 0.1).steps[0].model for _ in range(3000))
        assert set(drawn) == {"a", "b", "c"}
        assert drawn["c"] / 3000 == pytest.approx(share_of_c, abs=4 * (share_of_c * (1 - share_of_c) / 3000) ** 0.5)


def test_draws_follow_the_seed() -> None:
    def drawn(cls: type[MDInference], **options: object) -> list[str]:
        chooser = cls(CONTEXT, REMOTE, **options)  # type: ignore[arg-type]
        return [ask(chooser, 0.2).steps[0].model for _ in range(30)]

    assert drawn(MDInference, rule="random") == drawn(MDInference, rule="random")
    assert drawn(ModiPick) == drawn(ModiPick)


def test_modipick_draws_around_the_base_by_its_weights() -> None:
    """Oracle: the weights by hand. Hard limit 0.1 - 2 * 0.01, soft 0.06; sigma of b and c 0.02, so that base c reaches b."""
    chooser = ModiPick(CONTEXT, REMOTE, slack_s=0.02)
    times = [(m, s + d) for m, s in (("b", 0.04), ("c", 0.05)) for d in (0.02, -0.02)]
    teach(chooser, upload_s=0.01, times=times)
    weights = {"b": 0.7 * (0.08 - 0.06) / 0.02, "c": 0.8 * (0.08 - 0.07) / 0.01}
    drawn = Counter(ask(chooser, 0.1).steps[0].model for _ in range(4000))
    assert set(drawn) == {"b", "c"} and not ask(chooser, 0.1).backup
    assert drawn["b"] / 4000 == pytest.approx(weights["b"] / sum(weights.values()), abs=0.035)


@pytest.mark.parametrize(("policy", "options", "says"), [
    ("mdinference", {"rule": "best"}, "rule"), ("mdinference", {"remote": {}}, "no remote model"),
    ("mdinference", {"alpha": 2}, "alpha"), ("mdinference", {"gamma": -1}, "gamma"), ("modipick", {"slack_s": -1}, "slack_s"),
    ("modipick", {"duplicate": True}, "duplicate"),
])
def test_bad_options_are_refused(policy: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_policy(PolicySpec(name="mine", policy=policy, options=options), CONTEXT)
