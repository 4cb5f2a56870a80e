"""Plans from which the oracle chooses, for what a scenario's `oracle:` asks."""

from __future__ import annotations

from testbed.errors import InputError
from testbed.inference.codecs import is_codec_name
from testbed.policies import Context
from testbed.policies.candidates import Candidate, candidates, required_accuracy, unknown_threshold
from testbed.schema.scenario import Oracle

MOST_PLANS = 2000


def plans_of(context: Context, settings: Oracle) -> tuple[Candidate, ...]:
    """The plans of one device. Raises InputError for a model that is not there, and when no plan or too many are left."""
    for name in settings.models or ():
        if name not in context.models:
            raise InputError("there is no such model in the catalogue", key="oracle.models", value=name,
                             remedy="`testbed models list` shows those there are")
    for key in ("codecs", "input_codecs"):
        for codec in getattr(settings, key) or ():
            if not is_codec_name(codec):
                raise InputError("there is no such codec", key=f"oracle.{key}", value=codec,
                                 remedy="`testbed models codecs` shows those there are")
    unknown = unknown_threshold(context, settings.models or (context.model,), settings.thresholds)
    if unknown is not None:
        raise InputError(unknown[1], key="oracle.thresholds", value=unknown[0], remedy="use those, or leave it out")
    asked = required_accuracy(context, settings.min_accuracy or 0.0)
    found = candidates(context, models=settings.models or (), codecs=settings.codecs or ("raw",),
                       input_codecs=settings.input_codecs, thresholds=settings.thresholds, chains=settings.chains,
                       min_accuracy=asked)
    if not 1 <= len(found) <= MOST_PLANS:
        raise InputError(f"{len(found)} plans to choose from; between 1 and {MOST_PLANS} are possible", key="oracle",
                         remedy="ask for less accuracy, or name fewer codecs, thresholds or models, or write chains: false")
    return found
