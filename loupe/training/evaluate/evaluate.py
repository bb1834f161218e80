"""Evaluate a trained network: how accurate it is, and how far its answers can be trusted.

    result = evaluate(Trained(model, data, seed=42, certain=0.98))
    result.metrics, result.calibration, result.predictions

Three sets of pictures are used, none of which trained it: validation chose its state, calibration fits temperature,
threshold and familiarity, test measures. Without test pictures validation measures, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from loupe.progress import bar
from loupe.training.data.dataset import Dataset
from loupe.training.data.splits import Indices
from loupe.training.evaluate.calibrate import Calibration, calibrate
from loupe.training.evaluate.metrics import Array, Predictions, measure, softmax
from loupe.training.network.backbones import cut

MOST_ALARMS = 0.25  # of known pictures, called unfamiliar; 0.05 is meant, but some dozen pictures scatter
BATCH = 32
KNOWN = 5000  # training pictures that the centroids of familiarity are taken from, at most


@dataclass(frozen=True)
class Trained:
    """A trained network, with the pictures it learnt from and is measured on."""

    model: keras.Model
    data: Dataset
    seed: int
    certain: float | None  # the precision asked for of answers marked certain
    features: Any = None  # cached pooled features of every picture, if the model would give the same


@dataclass(frozen=True)
class Result:
    split: str  # the one that was measured
    predictions: Predictions
    calibration: Calibration
    metrics: dict[str, Any]
    heldout: Predictions  # of validation and calibration pictures, to check an export with


def evaluate(trained: Trained) -> Result:
    data, classes = trained.data, trained.data.classes
    known_rows = np.random.default_rng(trained.seed).permutation(data.train)[:KNOWN]

    # Calibration pictures fit temperature, threshold and familiarity.
    calibration_outputs, known_outputs = _outputs(trained, data.calibration), _outputs(trained, known_rows)
    true_classes = classes[data.calibration], classes[known_rows]
    calibration = calibrate(
        calibration_outputs.logits,
        calibration_outputs.features,
        true_classes[0],
        known_outputs.features,
        true_classes[1],
        trained.certain,
    )
    calibration = _without_false_alarms(calibration, _outputs(trained, data.validation).features)

    # Test pictures measure; without any, validation does.
    split = "test" if len(data.test) else "validation"
    predictions = _predictions(trained, getattr(data, split), calibration)
    heldout = _predictions(trained, np.concatenate([data.validation, data.calibration]), calibration)
    return Result(split, predictions, calibration, _metrics(data, split, predictions, heldout, calibration), heldout)


def _without_false_alarms(calibration: Calibration, known_features: Array) -> Calibration:
    """Drop familiarity if it calls known pictures unfamiliar far more often than it should."""
    limit, familiarity = calibration.unfamiliar_below, calibration.familiarity
    if limit is None or familiarity is None or not len(known_features):
        return calibration
    alarms = float((familiarity.score(known_features) < limit).mean())
    if alarms <= MOST_ALARMS:
        return calibration
    note = f"Familiarity tells nothing here: {alarms:.0%} of known pictures would be called unfamiliar. It is left out."
    return replace(calibration, familiarity=None, unfamiliar_below=None, notes=[*calibration.notes, note])


def _metrics(
    data: Dataset, split: str, predictions: Predictions, heldout: Predictions, calibration: Calibration
) -> dict[str, Any]:
    truth, temperature = data.classes[predictions.rows], calibration.temperature
    heldout_metrics = measure(heldout.logits, data.classes[heldout.rows], data.labels)
    return {
        "split": split,
        **measure(predictions.logits / temperature, truth, data.labels),
        "ece_before": measure(predictions.logits, truth, data.labels)["ece"],
        "temperature": temperature,
        "certain_at": calibration.certain_at,
        "certain_note": calibration.certain_note,
        "unfamiliar_below": calibration.unfamiliar_below,
        "validation": {
            "images": len(heldout.rows),
            "accuracy": heldout_metrics["accuracy"],
            "loss": heldout_metrics["loss"],
        },
        "images": {name: data.counts(getattr(data, name)) for name in ("train", "validation", "calibration", "test")},
    }


def _predictions(trained: Trained, rows: Indices, calibration: Calibration) -> Predictions:
    outputs = _outputs(trained, rows)
    familiar = calibration.familiarity.score(outputs.features) if calibration.familiarity else None
    return Predictions(
        rows, outputs.logits, outputs.features, softmax(outputs.logits / calibration.temperature), familiar
    )


def _outputs(trained: Trained, rows: Indices) -> Outputs:
    """Return logits and features of the network as it will be served, from cached features if these are the same."""
    if trained.features is None:
        return outputs_of(trained.model, trained.data.pixels, rows)
    features = np.asarray(trained.features[rows], np.float32)
    _, head = cut(trained.model, 0)
    return Outputs(np.asarray(head(features, training=False), np.float32), features)


@dataclass(frozen=True)
class Outputs:
    logits: Array  # float32 [n, C]
    features: Array  # float32 [n, D], pooled


def outputs_of(model: keras.Model, pixels: Any, rows: Indices, title: str = "measuring") -> Outputs:
    """Return logits and pooled features. `model` ends in logits behind a layer named pool and runs as in serving:
    whole, in inference."""
    model_with_features = keras.Model(model.input, [model.output, model.get_layer("pool").output])
    logits, features = [], []
    with bar(title, len(rows)) as step:
        for start in range(0, len(rows), BATCH):
            batch_rows = rows[start : start + BATCH]
            outputs = model_with_features.predict_on_batch(np.asarray(pixels[batch_rows], np.float32))
            logits.append(outputs[0].astype(np.float32))
            features.append(outputs[1].astype(np.float32))
            step(len(batch_rows))
    empty = [np.zeros((0, tensor.shape[-1]), np.float32) for tensor in model_with_features.outputs]
    return Outputs(np.concatenate([empty[0], *logits]), np.concatenate([empty[1], *features]))
