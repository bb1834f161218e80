"""Calibrate a network: fit how far its answers can be trusted, on pictures that neither trained it nor chose its state.

    calibration = calibrate(logits, features, classes, train_features, train_classes, wanted_precision=0.98)
    calibration.temperature, calibration.certain_at, calibration.unfamiliar_below, calibration.notes

Temperature: the logits divided by it give probabilities that hold. `certain_at`: the least confidence from which on
answers are right as often as wanted. `unfamiliar_below`: the familiarity below which a picture is unlike all classes.
If the pictures are too few to fit something, it is left out and a note says so. No TensorFlow in here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from loupe import familiarity
from loupe.familiarity import Familiarity
from loupe.training.evaluate.metrics import ece, softmax

FEWEST = 20  # calibration pictures: with fewer, nothing is fitted
TEMPERATURES = (0.2, 10.0)
FALSE_ALARMS = 0.05  # share of familiar pictures that are called unfamiliar

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Classes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Calibration:
    temperature: float = 1.0
    certain_at: float | None = None
    unfamiliar_below: float | None = None
    familiarity: Familiarity | None = None
    notes: list[str] = field(default_factory=list)  # why something was not fitted, for people
    ece_before: float = 0.0  # this and ece_after are on the calibration pictures
    ece_after: float = 0.0


def calibrate(
    logits: Floats,
    features: Floats,
    classes: Classes,
    train_features: Floats,
    train_classes: Classes,
    wanted_precision: float | None,
) -> Calibration:
    """Fit temperature, threshold and familiarity. Logits [n, C], pooled features [n, D] and classes [n] are of the
    calibration pictures. The same features of training pictures only give the centroids of familiarity."""
    # Fit nothing on too few pictures.
    notes: list[str] = []
    if len(classes) < FEWEST:
        notes.append(f"{len(classes)} pictures are too few to calibrate on; {FEWEST} would do: nothing was fitted.")
        return Calibration(notes=notes)
    # The temperature, unless it ends at its bound.
    temperature = round(_temperature(logits, classes), 4)
    if not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] * 0.99:
        notes.append(
            f"The temperature came to its bound, {temperature:.3g}: confidence and truth have little in common, so it "
            "stays at 1."
        )
        temperature = 1.0
    # The confidence from which on answers are certain.
    right = logits.argmax(axis=1) == classes
    confidence = softmax(logits / temperature).max(axis=1)
    certain_at = None
    if wanted_precision is not None:
        certain_at = _certain_at(confidence, right, wanted_precision)
        if certain_at is None:
            notes.append(_why_none(len(right), wanted_precision))
    return Calibration(
        temperature,
        certain_at,
        FALSE_ALARMS,
        familiarity.fit(train_features, train_classes, features),
        notes,
        ece(softmax(logits).max(axis=1), right),
        ece(confidence, right),
    )


def _temperature(logits: Floats, classes: Classes) -> float:
    """Return the temperature that makes the truth most likely. A further picture of unknown class keeps it finite if
    all answers are right."""
    rows, prior = np.arange(len(classes)), 1 / (len(classes) + 1)

    def mean_loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-(1 - prior) * log_probabilities[rows, classes].mean() - prior * log_probabilities.mean())

    bounds = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(mean_loss, bounds=bounds, method="bounded").x))


def _certain_at(confidence: Floats, right: Any, wanted: float) -> float | None:
    """Return the least confidence from which on answers are right as often as `wanted`, or None.

    The share of right answers alone would be too optimistic, because the luckiest of many thresholds is taken. So one
    right and one wrong answer are added (Laplace), and the mean confidence of these answers must reach `wanted`, too.
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    smoothed_share = (np.cumsum(right[order]) + 1) / (answered + 2)
    mean_confidence = np.cumsum(confidence[order]) / answered
    last_of_equals = np.append(np.diff(confidence[order]) != 0, True)
    reaching = np.flatnonzero((np.minimum(smoothed_share, mean_confidence) >= wanted) & last_of_equals)
    return float(confidence[order][reaching[-1]]) if len(reaching) else None


def _why_none(count: int, wanted: float) -> str:
    needed = int(np.ceil((2 * wanted - 1) / (1 - wanted))) if wanted < 1 else math.inf
    return (
        f"No confidence was found from which on {wanted:.1%} of the answers are right: at least the {needed} most "
        f"confident of the {count} calibration pictures must be answered right, and more where some are wrong. "
        "Give more pictures, or a lower --certain."
    )
