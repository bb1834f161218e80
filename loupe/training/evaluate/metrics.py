"""Measure how good a network is on pictures it has not learnt from.

outputs = outputs_of(model, data.pixels, rows)             # logits and pooled features, in the order of rows
metrics = measure(outputs.logits / temperature, truth, labels)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from loupe.training.data.dataset import Dataset
from loupe.training.data.splits import Indices

ECE_BINS = 15

Z95 = 1.96  # standard deviations that hold 95 % of a normal distribution

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Predictions:
    """The network's outputs for some rows of a data set, as it will be served."""

    rows: Indices
    logits: Array  # [n, C]
    features: Array  # [n, D]
    probabilities: Array  # [n, C], the temperature applied
    familiarity: Array | None = None  # [n]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def ece(confidence: Array, right: Array) -> float:
    """Return the calibration error: the gap of confidence and accuracy in bins of confidence, weighted by their
    pictures."""
    bin_of = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = (abs((confidence - right)[bin_of == number].sum()) for number in range(ECE_BINS))
    return float(sum(gaps) / max(1, len(right)))


def measure(logits: Array, truth: Indices, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return accuracy, loss, calibration error, confusion (rows: truth), and precision, recall and F1 of each class."""
    scores = softmax(logits)
    guess, confidence = scores.argmax(axis=1), scores.max(axis=1)
    confusion = np.zeros((len(labels),) * 2, dtype=int)
    np.add.at(confusion, (truth, guess), 1)
    loss = -np.log(np.maximum(scores[np.arange(len(truth)), truth], 1e-12)).mean()
    return {
        "accuracy": round(float((guess == truth).mean()), 6),
        "loss": round(float(loss), 4),
        "ece": round(ece(confidence, guess == truth), 4),
        "labels": list(labels),
        "confusion": confusion.tolist(),
        "classes": {label: _class_metrics(confusion, number) for number, label in enumerate(labels)},
    }


def _class_metrics(confusion: Array, number: int) -> dict[str, Any]:
    true_positives, predicted, support = confusion[number, number], confusion[:, number].sum(), confusion[number].sum()
    precision, recall = true_positives / max(1, predicted), true_positives / max(1, support)
    f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
    values = {"precision": precision, "recall": recall, "f1": f1}
    return {**{key: round(float(value), 4) for key, value in values.items()}, "support": int(support)}


@dataclass(frozen=True)
class ClassRow:
    """The metrics of one class. A share of nothing is None, not 0."""

    label: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Confused:
    truth: str
    guess: str
    count: int
    share: float  # of the class's pictures


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """The model's answers and the truth, a row for each measured picture."""

    labels: tuple[str, ...]
    rows: Indices  # in the data set
    truth: Indices
    guess: Indices
    probabilities: Floats  # calibrated
    raw: Floats  # of the logits without temperature

    @classmethod
    def of(cls, predictions: Predictions, data: Dataset) -> Evaluation:
        probabilities = np.asarray(predictions.probabilities, dtype=np.float64)
        return cls(
            labels=data.labels,
            rows=predictions.rows,
            truth=data.classes[predictions.rows],
            guess=probabilities.argmax(axis=1),
            probabilities=probabilities,
            raw=softmax(predictions.logits),
        )

    @property
    def right(self) -> Bools:
        return np.equal(self.guess, self.truth)

    @property
    def confidence(self) -> Floats:
        top: Floats = self.probabilities.max(axis=1)
        return top

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(int(self.right.sum()), len(self.rows))

    @property
    def baseline(self) -> float:
        """The accuracy of always saying the most frequent class."""
        return float(np.bincount(self.truth).max() / len(self.truth))

    @property
    def top5(self) -> float:
        best = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5]
        return float((best == self.truth[:, None]).any(axis=1).mean())

    @cached_property
    def confusion(self) -> Indices:
        """Rows: truth; columns: guess."""
        counts = np.zeros((len(self.labels),) * 2, dtype=np.int64)
        np.add.at(counts, (self.truth, self.guess), 1)
        return counts

    def shades(self) -> tuple[Floats, Floats]:
        """Return the shades of the confusion's cells, 0…1: of right answers, and of mistakes relative to the worst."""
        shares = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        right = np.diag(np.diag(shares))
        wrong = shares - right
        return right, np.where(wrong > 0, 0.15 + 0.85 * wrong / max(wrong.max(), 1e-9), 0.0)

    def per_class(self) -> list[ClassRow]:
        """Return a row for each class, the weakest first. Classes without a measured picture come last."""
        right, support, predicted = np.diag(self.confusion), self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        rows = [
            ClassRow(
                label,
                int(support[number]),
                _share(right[number], predicted[number]),
                _share(right[number], support[number]),
                _share(2 * right[number], support[number] + predicted[number]) if support[number] else None,
            )
            for number, label in enumerate(self.labels)
        ]
        return sorted(rows, key=lambda row: (row.f1 is None, row.f1, -row.support))

    @property
    def macro_f1(self) -> float:
        return float(np.mean([row.f1 for row in self.per_class() if row.f1 is not None]))

    def confused(self, limit: int) -> list[Confused]:
        """Return the pairs of classes that are most often taken for each other."""
        counts = self.confusion.copy()
        np.fill_diagonal(counts, 0)
        support = self.confusion.sum(axis=1)
        order = np.argsort(-counts, axis=None, kind="stable")[:limit]
        pairs = [(int(index) // len(counts), int(index) % len(counts)) for index in order]
        return [
            Confused(
                self.labels[truth],
                self.labels[guess],
                int(counts[truth, guess]),
                float(counts[truth, guess] / support[truth]),
            )
            for truth, guess in pairs
            if counts[truth, guess]
        ]

    def coverage(self) -> tuple[Floats, Floats]:
        """Return, if only the most confident are answered, the share answered and the share of these that is right."""
        order = np.argsort(-self.confidence, kind="stable")
        answered = np.arange(1, len(order) + 1)
        return answered / len(order), np.cumsum(self.right[order]) / answered


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, which also holds for few pictures and near 0 and 1."""
    share, spread = right / total, Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half_width = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2)) / (1 + spread)
    return round(max(0.0, centre - half_width), 9), round(min(1.0, centre + half_width), 9)


def confidence_bins(confidence: Floats, right: Bools) -> list[Bin]:
    """Return the answers by confidence, in equally wide steps; empty ones are left out."""
    step = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    masks = (step == number for number in range(ECE_BINS))
    return [
        Bin(float(confidence[mask].mean()), float(right[mask].mean()), int(mask.sum())) for mask in masks if mask.any()
    ]


def merge_bins(steps: list[Bin], least: int) -> list[Bin]:
    """Merge neighbours, from the most confident down, until each bin holds `least` pictures."""
    merged: list[Bin] = []
    for step in reversed(steps):
        if merged and (step.count < least or merged[-1].count < least):
            last = merged.pop()
            count = last.count + step.count
            confidence = (last.confidence * last.count + step.confidence * step.count) / count
            accuracy = (last.accuracy * last.count + step.accuracy * step.count) / count
            step = Bin(confidence, accuracy, count)
        merged.append(step)
    return merged


def _share(count: int, total: int) -> float | None:
    return float(count / total) if total else None
