"""ModiPick: a cloud model drawn among those that fit, so that models whose times are uncertain are tried too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from testbed.policies.knowledge import Context
from testbed.policies.mdinference import MDInference
from testbed.policies.selection import Variant, modipick_weights


class ModiPick(MDInference):
    """Draws one cloud model per request, seeded: see `selection.modipick_weights`.

    Decides and uses what `MDInference` does, without a duplicate. The hard limit is the budget less twice the upload time; the
    soft limit lies `slack_s` below it.

    | option | unit | default | meaning |
    |---|---|---|---|
    | slack_s | s | 0.02 | distance of the soft limit from the hard one; no published value is known here |
    | remote, alpha, initial_bps, initial_rtt_s, input_codec | | | as in `MDInference` |

    Version 1. Reference: Ogden and Guo, ModiPick, arXiv 1909.02053, as recalled: neither paper nor code was at hand.
    """

    id: ClassVar[str] = "modipick"

    def __init__(self, context: Context, remote: Mapping[str, Sequence[str]] | None = None, slack_s: float = 0.02,
                 alpha: float | None = None, initial_bps: float = 5e6, initial_rtt_s: float = 0.05,
                 input_codec: str = "raw") -> None:
        """Raises ValueError for options that are out of range or name what the scenario does not have."""
        super().__init__(context, remote, duplicate=False, alpha=alpha, initial_bps=initial_bps,
                         initial_rtt_s=initial_rtt_s, input_codec=input_codec)
        if not slack_s >= 0:
            raise ValueError("slack_s must be at least 0")
        self._slack_s = slack_s

    def _pick(self, variants: Sequence[Variant], sla_s: float) -> Variant:
        weights = modipick_weights(variants, sla_s, sla_s - self._slack_s)
        return self._random.choices(list(weights), list(weights.values()))[0]
