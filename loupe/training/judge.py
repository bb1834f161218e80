"""What a trained network is worth, and how far its answers can be trusted.

    result = judge(course)
    result.metrics, result.calibration, result.predictions

Three sets of pictures, none of which trained it: validation chose its state, calibration fits temperature, threshold
and familiarity, test measures. Without test pictures validation measures, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loupe.training.backbones import cut
from loupe.training.calibrate import Calibration, calibrate
from loupe.training.course import Course
from loupe.training.measure import Array, Predictions, measure, softmax
from loupe.training.outputs import Outputs, outputs_of
from loupe.training.splits import Indices

MOST_ALARMS = 0.25  # share of known pictures called unfamiliar; 0.05 is meant, and some dozen pictures scatter
KNOWN = 5000  # training pictures that the centroids of familiarity are taken from, at most


@dataclass(frozen=True)
class Result:
    split: str  # that was measured
    predictions: Predictions
    calibration: Calibration
    metrics: dict[str, Any]
    held: Predictions  # of validation and calibration pictures, for whoever checks that an export is this network


def judge(course: Course) -> Result:
    data, classes = course.data, course.data.classes
    with course.timed("measuring"):
        known = np.random.default_rng(course.settings.seed).permutation(data.train)[:KNOWN]
        fitted, seen = _outputs(course, data.calibration), _outputs(course, known)
        truths = classes[data.calibration], classes[known]
        calibration = calibrate(
            fitted.logits, fitted.features, truths[0], seen.features, truths[1], course.settings.certain
        )
        calibration = _without_false_alarms(calibration, _outputs(course, data.validation).features)
        split = "test" if len(data.test) else "validation"
        predictions = _predictions(course, getattr(data, split), calibration)
        held = _predictions(course, np.concatenate([data.validation, data.calibration]), calibration)
    return Result(split, predictions, calibration, _metrics(course, split, predictions, held, calibration), held)


def _without_false_alarms(calibration: Calibration, known: Array) -> Calibration:
    """A limit that calls known pictures unfamiliar far more often than it should is none."""
    limit, familiarity = calibration.unfamiliar_below, calibration.familiarity
    if limit is None or familiarity is None or not len(known):
        return calibration
    alarms = float((familiarity.score(known) < limit).mean())
    if alarms <= MOST_ALARMS:
        return calibration
    note = f"Familiarity tells nothing here: {alarms:.0%} of known pictures would be called unfamiliar. It is left out."
    return replace(calibration, familiarity=None, unfamiliar_below=None, notes=[*calibration.notes, note])


def _metrics(
    course: Course, split: str, predictions: Predictions, held: Predictions, calibration: Calibration
) -> dict[str, Any]:
    data, classes = course.data, course.data.classes
    truth, temperature = classes[predictions.rows], calibration.temperature
    both = measure(held.logits, classes[held.rows], data.labels)
    return {
        "split": split,
        **measure(predictions.logits / temperature, truth, data.labels),
        "ece_before": measure(predictions.logits, truth, data.labels)["ece"],
        "temperature": temperature,
        "certain_at": calibration.certain_at,
        "unfamiliar_below": calibration.unfamiliar_below,
        "validation": {"images": len(held.rows), "accuracy": both["accuracy"], "loss": both["loss"]},
        "images": {name: data.counts(getattr(data, name)) for name in ("train", "validation", "calibration", "test")},
    }


def _predictions(course: Course, rows: Indices, calibration: Calibration) -> Predictions:
    outputs = _outputs(course, rows)
    familiar = calibration.familiarity.score(outputs.features) if calibration.familiarity else None
    return Predictions(
        rows, outputs.logits, outputs.features, softmax(outputs.logits / calibration.temperature), familiar
    )


def _outputs(course: Course, rows: Indices) -> Outputs:
    """Of the network as it will be served; from its cached features where these are the same."""
    if course.features is None or course.devices.precision != "float32":
        return outputs_of(course.model, course.data.pixels, rows)
    features = np.asarray(course.features[rows], np.float32)
    _, head = cut(course.model, 0)
    return Outputs(np.asarray(head(features, training=False), np.float32), features)
