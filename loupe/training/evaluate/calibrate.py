"""Calibrate a network: fit how far its answers can be trusted, on pictures that neither trained it nor chose its state.

    calibration = calibrate(logits, features, classes, train_features, train_classes, wanted_precision=0.98)
    calibration.temperature, calibration.certain_at, calibration.unfamiliar_below, calibration.notes

Temperature: the logits divided by it give probabilities that hold; 1 where cross-validation finds it no better.
`certain_at`: the least confidence from which on answers are right as often as wanted. `unfamiliar_below`: the
familiarity below which a picture is unlike all classes.
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
from loupe.training.data.splits import FEWEST
from loupe.training.evaluate.metrics import ece, softmax

TEMPERATURES = (0.2, 10.0)
FOLDS = 5  # of the cross-validation that judges the temperature
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
    certain_note: str | None = None  # why `certain_at` is None though a precision was wanted, for people


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
        few = f"{len(classes)} pictures are too few to calibrate on; {FEWEST} would do"
        return Calibration(certain_note=_not_given(wanted_precision, few), notes=[f"{few}: nothing was fitted."])
    # The temperature, unless it ends at its bound.
    temperature = round(_temperature(logits, classes), 4)
    if not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] * 0.99:
        notes.append(
            f"The temperature came to its bound, {temperature:.3g}: confidence and truth have little in common, so it "
            "stays at 1."
        )
        temperature = 1.0
    # Left at 1 where what is gained on some pictures is not on others.
    right = logits.argmax(axis=1) == classes
    before, after = ece(softmax(logits).max(axis=1), right), ece(_cross_validated(logits, classes), right)
    if temperature != 1.0 and after > before:
        notes.append(
            f"The temperature stays at 1: {temperature:.3g}, which was fitted, makes the calibration error worse in "
            f"cross-validation ({before:.3f} → {after:.3f})."
        )
        temperature = 1.0
    # The confidence from which on answers are certain.
    confidence = softmax(logits / temperature).max(axis=1)
    certain_at = None if wanted_precision is None else _certain_at(confidence, right, wanted_precision)
    why = _not_given(wanted_precision, _why_none(len(right), wanted_precision)) if wanted_precision else None
    return Calibration(
        temperature,
        certain_at,
        FALSE_ALARMS,
        familiarity.fit(train_features, train_classes, features),
        notes,
        before,
        ece(confidence, right),
        why if certain_at is None else None,
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


def _cross_validated(logits: Floats, classes: Classes) -> Floats:
    """Return the confidence of each picture at a temperature that was fitted on others."""
    fold_of = np.random.default_rng(0).permutation(len(classes)) % FOLDS
    confidence = np.zeros(len(classes))
    for fold in range(FOLDS):
        held = fold_of == fold
        temperature = _temperature(logits[~held], classes[~held])
        confidence[held] = softmax(logits[held] / temperature).max(axis=1)
    return confidence


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


def _not_given(wanted: float | None, why: str) -> str | None:
    """Return what the card, the report and the terminal say where no threshold was found."""
    return None if wanted is None else f"{wanted:.4g} was asked for, and is not given, because {why}."


def _why_none(count: int, wanted: float) -> str:
    needed = int(np.ceil((2 * wanted - 1) / (1 - wanted))) if wanted < 1 else math.inf
    return (
        f"there is no confidence from which on so many answers are right: that takes at least {needed} calibration "
        f"pictures without a mistake, and more with some; there are {count}. Give more pictures, or a lower --certain"
    )
