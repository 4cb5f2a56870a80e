"""Nominal accuracy: what the catalogue says of the model that answered, free of the luck of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def model_accuracy(models: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """The manifest's `model_accuracy`: model -> its last exit and the accuracy there, for models that have one.

    `models` have `name`, `final_exit` and `accuracy` (`testbed.policies.ModelInfo`).
    """
    return {m.name: {"exit": m.final_exit, "accuracy": m.accuracy} for m in models if np.isfinite(m.accuracy)}


def nominal_accuracy(requests: pd.DataFrame, manifest: Mapping[str, Any]) -> pd.Series:
    """Per request the accuracy of the model whose last exit answered; NaN where none did.

    All NaN when an earlier exit answered some request, because it answers the easier samples: its accuracy on all of them
    says nothing. All NaN too when the manifest says nothing about the models.
    """
    known = manifest.get("model_accuracy") or {}
    accuracy = requests["model"].map(lambda name: (known.get(name) or {}).get("accuracy", np.nan), na_action="ignore")
    exits = requests["model"].map(lambda name: (known.get(name) or {}).get("exit"), na_action="ignore")
    answered = requests["status"].eq("ok").fillna(False).astype("bool")
    last = exits.eq(requests["exit_id"]).fillna(False).astype("bool")
    values = accuracy.astype("float64").where(answered & last)
    return values if values.notna().equals(answered) else values * np.nan
