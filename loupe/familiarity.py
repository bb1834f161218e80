"""Measure how familiar a picture is: how like the training pictures it is. Needs numpy only.

    familiarity = fit(train_features, train_classes, held_out_features)
    familiarity.score(features)               # [N, D] → [N] of 0…1: the share of held-out pictures that lay farther
    familiarity.save(path)
    familiarity = Familiarity.load(path)

The distance is that to the nearest class centroid. Features are first brought to length 1: a network answers faintly to
what it does not know and strongly to bold patterns, and neither tells what the picture shows. A difference counts for
less along the main axes, along which pictures of one class differ anyway (Mahalanobis, shrunk towards the plain
distance). Of the distances tried it detects unfamiliar pictures best; `benchmarks/trust.py` says how well. Only the
main axes are kept, so that it is small enough to travel in the exported graph.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

AXES = 128  # at most; with 2,048 features they take 1 MB
MARKS = 513  # quantiles of the held-out pictures' distances that are kept
ROUNDS = 4  # of subspace iteration: more do not change the axes noticeably
LEAST = 1e-6  # lower bound of a step between marks and of a squared distance
FAINTEST = 1e-15  # lower bound of the features' length; with MobileNetV2's random weights it is 1e-10


@dataclass(frozen=True)
class Familiarity:
    axes: Array  # float32 [D, K], the main axes; length² is the share of a difference along one that is forgiven
    centroids: Array  # float32 [C, D], of the classes
    marks: Array  # float32 [M], rising: quantiles of the held-out pictures' distances

    def distances(self, features: Array) -> Array:
        """Return the distances to the nearest centroid, [N, D] → [N]."""
        unit = to_unit(features.astype(np.float32))
        squares = []
        for centroid in self.centroids:
            difference = unit - centroid
            squares.append(np.square(difference).sum(axis=1) - np.square(difference @ self.axes).sum(axis=1))
        nearest: Array = np.sqrt(np.maximum(np.min(squares, axis=0), LEAST))
        return nearest

    def score(self, features: Array) -> Array:
        """Return the share of held-out pictures that lay farther, [N, D] → [N]. Between two marks it falls evenly."""
        low, high = self.marks[:-1], self.marks[1:]
        beyond = (high - self.distances(features)[:, None]) / np.maximum(high - low, LEAST)
        share: Array = np.clip(beyond, 0, 1).mean(axis=1, dtype=np.float32)
        return share

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **{entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Familiarity:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{entry.name: arrays[entry.name] for entry in fields(cls)})
        except (ValueError, KeyError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read as what training writes there; train again.") from error


def fit(train: Array, classes: Array, held_out: Array) -> Familiarity:
    """Fit centroids and axes to `train` [N, D] with its `classes` [N], and the marks to `held_out` [M, D]."""
    train = to_unit(train.astype(np.float32))
    labels, class_of = np.unique(classes, return_inverse=True)
    centroids = np.stack([train[class_of == number].mean(axis=0) for number in range(len(labels))])
    without_marks = Familiarity(_forgiving_axes(train - centroids[class_of]), centroids, np.zeros(0, np.float32))
    marks = np.quantile(without_marks.distances(held_out), np.linspace(0, 1, MARKS)).astype(np.float32)
    return Familiarity(without_marks.axes, centroids, marks)


def to_unit(features: Array) -> Array:
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), FAINTEST))


def _forgiving_axes(within: Array) -> Array:
    """Return the axes [D, K] of the spread [N, D] within classes. The variance along an axis is weighed against the
    mean variance of all: if they are equal, half a difference is forgiven. The axes are found by subspace iteration:
    a full decomposition of 2,048 features takes longer than to train a head on them."""
    count, width = within.shape
    basis = np.random.default_rng(0).normal(size=(width, min(width, AXES))).astype(np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(within.T @ (within @ basis))
    projected = within @ basis
    variances, rotation = np.linalg.eigh(projected.T @ projected / count)
    mean_variance = np.square(within).sum() / count / width
    forgiven = np.maximum(variances, 0) / (np.maximum(variances, 0) + mean_variance + LEAST**2)
    return np.asarray((basis @ rotation * np.sqrt(forgiven)).astype(np.float32))
