"""Study files of kind `placement`: an inference delivery network, its demand, and the placement policies to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from testbed.errors import InputError
from testbed.placement.registry import BUILT_IN, check_options
from testbed.schema.scenario import POLICY_NAME
from testbed.schema.study import Study
from testbed.schema.topology import Strict
from testbed.schema.units import Duration, Size


class TierSpec(Strict):
    """One tier of the tree, from the access tier to the root. `rtt`: round trip to the tier above."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,29}$")
    nodes: int = Field(ge=1, le=5000)
    rtt: Duration = "0ms"  # type: ignore[assignment]
    memory: Size | Literal["unlimited"]
    accelerator: Literal["lower", "upper"] = "lower"


class PlacementSpec(Strict):
    """A placement policy: a built-in one, or a user's `file.py:Class`, with its options."""

    name: str = Field(pattern=POLICY_NAME)
    policy: str
    options: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _known(self) -> PlacementSpec:
        if self.policy not in BUILT_IN and ".py:" not in self.policy:
            raise ValueError(f"policy: there is no placement {self.policy!r}|use one of {', '.join(sorted(BUILT_IN))}, or a file "
                             "such as my_placement.py:MyPlacement")
        try:
            check_options(self.policy, self.options)
        except InputError as error:
            raise ValueError(f"options: {error.problem}|{error.remedy}") from error
        return self


def _policy(value: object) -> object:
    """`infida` is short for `{name: infida, policy: infida}`."""
    return {"name": value, "policy": value} if isinstance(value, str) else value


class Shift(Strict):
    """After every `every` slots the popularity ranks rotate: the `by` most popular tasks become the least popular."""

    every: int = Field(ge=1)
    by: int = Field(ge=1)


class PlacementStudy(Study):
    """Keys of a placement study. `repeats` are independent demands and roundings; policies see the same demand."""

    version: ClassVar[int] = 1

    network: Annotated[Annotated[Literal["I", "II"], Tag("union-name")] | Annotated[list[TierSpec], Tag("union-tiers")],
                       Discriminator(lambda value: "union-name" if isinstance(value, str) else "union-tiers")] = "I"
    tasks: int = Field(20, ge=1, le=1000)
    copies: int = Field(3, ge=1, le=50)
    runtime_memory: Size = "500MB"  # type: ignore[assignment]
    alphas_ms: list[Annotated[float, Field(ge=0)]] = Field([1.0], min_length=1)
    sharing: Literal["proportional", "none"] = "proportional"
    rate_per_s: float = Field(7500.0, gt=0)
    slot: Duration = "60s"  # type: ignore[assignment]
    slots: int = Field(120, ge=8, le=100_000)
    zipf: float = Field(1.2, ge=0, le=10)
    shift: Shift | None = None
    policies: list[Annotated[PlacementSpec, BeforeValidator(_policy)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> PlacementStudy:
        names = [p.name for p in self.policies]
        if len(set(names)) < len(names):
            raise ValueError("policies: two have the same name|give each a name of its own")
        if len(set(self.alphas_ms)) < len(self.alphas_ms):
            raise ValueError("alphas_ms: a value stands twice|list each once")
        if not isinstance(self.network, str) and (not self.network or self.network[-1].nodes != 1):
            raise ValueError("network: the last tier is not one node|end with the repository: nodes: 1")
        if self.shift is not None and not (self.shift.by < self.tasks and 2 * self.shift.every <= self.slots):
            raise ValueError("shift: moves all tasks, or comes too late|by below tasks, every at most half of slots")
        return self

    def files(self) -> tuple[Path, ...]:
        """The users' own placement files."""
        return tuple(Path(p.policy.rpartition(":")[0]) for p in self.policies if ".py:" in p.policy)
