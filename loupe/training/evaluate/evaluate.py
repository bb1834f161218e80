"""What a trained network is worth, and how far its answers can be trusted.

    result = evaluate(Trained(model, data, seed=42, certain=0.98))
    result.metrics, result.calibration, result.predictions

Three sets of pictures, none of which trained it: validation chose its state, calibration fits temperature, threshold
and familiarity, test measures. Without test pictures validation measures, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from loupe.training.data.dataset import Dataset
from loupe.training.data.splits import Indices
from loupe.training.evaluate.calibrate import Calibration, calibrate
from loupe.training.evaluate.metrics import Array, Predictions, measure, softmax
from loupe.training.network.backbones import cut
from loupe.training.progress import bar

MOST_ALARMS = 0.25  # share of known pictures called unfamiliar; 0.05 is meant, and some dozen pictures scatter
BATCH = 32
KNOWN = 5000  # training pictures that the centroids of familiarity are taken from, at most


@dataclass(frozen=True)
class Trained:
    """A trained network, with the pictures it learnt from and is measured on."""

    model: keras.Model
    data: Dataset
    seed: int
    certain: float | None  # the precision that was asked for, of answers marked certain
    features: Any = None  # pooled, of every picture, if cached ones are what the model itself would give


@dataclass(frozen=True)
class Result:
    split: str  # that was measured
    predictions: Predictions
    calibration: Calibration
    metrics: dict[str, Any]
    held: Predictions  # of validation and calibration pictures, for whoever checks that an export is this network


def evaluate(trained: Trained) -> Result:
    data, classes = trained.data, trained.data.classes
    known = np.random.default_rng(trained.seed).permutation(data.train)[:KNOWN]

    # Calibration pictures fit temperature, threshold and familiarity.
    fitted, seen = _outputs(trained, data.calibration), _outputs(trained, known)
    truths = classes[data.calibration], classes[known]
    calibration = calibrate(fitted.logits, fitted.features, truths[0], seen.features, truths[1], trained.certain)
    calibration = _without_false_alarms(calibration, _outputs(trained, data.validation).features)

    # Test pictures measure; without any, validation does.
    split = "test" if len(data.test) else "validation"
    predictions = _predictions(trained, getattr(data, split), calibration)
    held = _predictions(trained, np.concatenate([data.validation, data.calibration]), calibration)
    return Result(split, predictions, calibration, _metrics(data, split, predictions, held, calibration), held)


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
    data: Dataset, split: str, predictions: Predictions, held: Predictions, calibration: Calibration
) -> dict[str, Any]:
    truth, temperature = data.classes[predictions.rows], calibration.temperature
    both = measure(held.logits, data.classes[held.rows], data.labels)
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


def _predictions(trained: Trained, rows: Indices, calibration: Calibration) -> Predictions:
    outputs = _outputs(trained, rows)
    familiar = calibration.familiarity.score(outputs.features) if calibration.familiarity else None
    return Predictions(
        rows, outputs.logits, outputs.features, softmax(outputs.logits / calibration.temperature), familiar
    )


def _outputs(trained: Trained, rows: Indices) -> Outputs:
    """Of the network as it will be served; from its cached features where these are the same."""
    if trained.features is None:
        return outputs_of(trained.model, trained.data.pixels, rows)
    features = np.asarray(trained.features[rows], np.float32)
    _, head = cut(trained.model, 0)
    return Outputs(np.asarray(head(features, training=False), np.float32), features)


@dataclass(frozen=True)
class Outputs:
    logits: Array  # float32 [n, C]
    features: Array  # float32 [n, D], what is pooled


def outputs_of(model: keras.Model, pixels: Any, rows: Indices, what: str = "measuring") -> Outputs:
    """`model` ends in logits behind a layer named pool; it is asked as serving asks: whole, in inference."""
    both = keras.Model(model.input, [model.output, model.get_layer("pool").output])
    logits, features = [], []
    with bar(what, len(rows)) as step:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            answer = both.predict_on_batch(np.asarray(pixels[chosen], np.float32))
            logits.append(answer[0].astype(np.float32))
            features.append(answer[1].astype(np.float32))
            step(len(chosen))
    empty = [np.zeros((0, tensor.shape[-1]), np.float32) for tensor in both.outputs]
    return Outputs(np.concatenate([empty[0], *logits]), np.concatenate([empty[1], *features]))
