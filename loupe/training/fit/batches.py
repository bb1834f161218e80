"""Batches of a split, the same ones in each run of the same seed, also in a run that goes on after a kill.

    Batches(data.pixels, data.classes, data.train, classes=10, size=32, seed=42, vary=augment)    # training
    Batches(features, data.classes, data.validation, classes=10, size=256)                         # as they are

Labels are rows of shares, so that two pictures can be mixed and labels smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from loupe.training.data.dataset import Indices

Vary = Callable[[Any, Any, int], tuple[Any, Any]]  # pixels, labels, a number: other pixels, other labels


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    def __init__(
        self,
        source: Any,
        truth: Indices,
        rows: Indices,
        classes: int,
        size: int,
        *,
        seed: int | None = None,
        vary: Vary | None = None,
        smoothing: float = 0.0,
        weights: Any = None,
        views: int = 1,
    ) -> None:
        """`source`: what is trained on, indexed by row; with `views`, [views × N], of which each epoch takes one.
        `weights`: of each class. With a seed they are shuffled anew in each epoch."""
        super().__init__()
        self.source, self.truth, self.rows, self.size = source, truth, rows, size
        self.seed, self.vary, self.views = seed, vary, views
        self.shares = np.eye(classes, dtype=np.float32) * (1 - smoothing) + smoothing / classes
        self.weights = weights
        self.begin(0)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.size)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        chosen = self.order[number * self.size : (number + 1) * self.size]
        view = self.epoch % self.views * (len(self.source) // self.views)
        x, truth = self.source[chosen + view], self.truth[chosen]
        y = self.shares[truth]
        if self.vary is not None:
            x, y = self.vary(x, y, self.epoch * len(self) + number)
        x = np.asarray(x, np.float32)
        return (x, y) if self.weights is None else (x, y, self.weights[truth])

    def begin(self, epoch: int) -> None:
        """Told from outside: Keras takes a first look, and calls on_epoch_end after it, before training begins."""
        self.epoch, self.order = epoch, self.rows
        if self.seed is not None:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)


def balanced(truth: Indices, classes: int) -> Any:
    """A weight a class, so that all classes weigh the same in all; 1 on average over the pictures."""
    counts = np.bincount(truth, minlength=classes)
    return (len(truth) / (classes * np.maximum(counts, 1))).astype(np.float32)
