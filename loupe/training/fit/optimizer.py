"""The optimisers of --optimizer, the same for a stage and for the trials of a search.

optimizer = make("adamw", rate, decay=1e-3)
rate * 0.5 ** plateaus([0.9, 0.8, 0.85, …])        # of --schedule plateau
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

PLATEAU_EPOCHS = 4  # epochs without a better loss before the schedule `plateau` halves the rate
CLASS_NAMES = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}


def make(name: str, rate: Any, decay: float, ema: float = 0.0) -> Any:
    """Return the optimiser. `rate` is a number or a schedule."""
    # The options that this optimiser takes.
    options: dict[str, Any] = {"weight_decay": decay} if decay else {}
    if ema:
        options |= {"use_ema": True, "ema_momentum": ema}
    if name in ("sgd", "rmsprop"):
        options["momentum"] = 0.9
    if name == "sgd":
        options["nesterov"] = True
    if name == "adamw":
        options.setdefault("weight_decay", 0.0)
    # Build it, and exempt the variables that decay would harm.
    optimizer = getattr(keras.optimizers, CLASS_NAMES[name])(rate, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])  # decay must not shrink these
    return optimizer


def plateaus(losses: Iterable[float]) -> int:
    """Return how often the loss did not get better for PLATEAU_EPOCHS epochs."""
    best_loss, epochs_since_best, count = float("inf"), 0, 0
    for loss in losses:
        best_loss, epochs_since_best = (loss, 0) if loss < best_loss else (best_loss, epochs_since_best + 1)
        if epochs_since_best == PLATEAU_EPOCHS:
            count, epochs_since_best = count + 1, 0
    return count
