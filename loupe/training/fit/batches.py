"""Batches of a split: the same ones in each run of the same seed, also in a run that was resumed.

    Batches(data.pixels, data.classes, data.train, classes=10, size=32, seed=42, vary=augment)    # training
    Batches(features, data.classes, data.validation, classes=10, size=256)                         # as they are

Labels are rows of class shares, so that two pictures can be mixed and labels smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from loupe.training.data.dataset import Indices

Vary = Callable[[Any, Any, int], tuple[Any, Any]]  # (pixels, labels, number of the batch) → varied pixels and labels


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
        """Describe the batches. `source` is indexed by row: pixels or features. With `views` it holds that many
        versions of all rows one after the other, and each epoch takes one. `weights` has a number for each class. With
        a seed the rows are shuffled anew in each epoch.
        """
        # The pictures and their order.
        super().__init__()
        self.source, self.truth, self.rows, self.size = source, truth, rows, size
        self.seed, self.vary, self.views = seed, vary, views
        # A row of shares for each class, smoothed if asked for.
        self.shares = np.eye(classes, dtype=np.float32) * (1 - smoothing) + smoothing / classes
        self.weights = weights
        self.begin(0)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.size)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        rows = self.epoch_rows[number * self.size : (number + 1) * self.size]
        view_offset = self.epoch % self.views * (len(self.source) // self.views)
        x, truth = self.source[rows + view_offset], self.truth[rows]
        y = self.shares[truth]
        if self.vary is not None:
            x, y = self.vary(x, y, self.epoch * len(self) + number)
        x = np.asarray(x, np.float32)
        return (x, y) if self.weights is None else (x, y, self.weights[truth])

    def begin(self, epoch: int) -> None:
        """Set the epoch. The stage calls this, because Keras asks for a first batch before training begins and calls
        on_epoch_end after it."""
        self.epoch, self.epoch_rows = epoch, self.rows
        if self.seed is not None:
            self.epoch_rows = np.random.default_rng((self.seed, epoch)).permutation(self.rows)


def balanced(truth: Indices, classes: int) -> Any:
    """Return a weight for each class, so that all classes weigh the same in sum; 1 on average over the pictures."""
    counts = np.bincount(truth, minlength=classes)
    return (len(truth) / (classes * np.maximum(counts, 1))).astype(np.float32)
