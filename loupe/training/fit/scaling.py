"""Scale features so that a head learns from all of them alike, and fold the scaling into the head afterwards.

    scaling = Scaling.of(features, data.train)
    Scaled(features, scaling)[rows]         # in float32: about zero on average, with a deviation of about one
    fold(head, scaling)                     # the head, trained on those, now takes the features as they are

Some of a backbone's features vary a hundred times more than others, and gradient descent learns from these first. The
folded head is an ordinary one, so nothing that is exported or served knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from sklearn.preprocessing import StandardScaler

from loupe.training.data.dataset import Indices

CHUNK = 4096  # rows that are measured at a time: features may be more than the memory holds
# The least deviation that is divided by, as a share of one that a tenth of the features exceed. What hardly any picture
# of the training has would else be blown up on the next one that has it.
LEAST = 0.01


@dataclass(frozen=True)
class Scaling:
    mean: Any  # float64 [D]
    deviation: Any

    @classmethod
    def of(cls, features: Any, rows: Indices) -> Scaling:
        measured = StandardScaler()
        for start in range(0, len(rows), CHUNK):
            measured.partial_fit(np.asarray(features[rows[start : start + CHUNK]], np.float64))
        deviation = np.sqrt(measured.var_)
        deviation = np.maximum(deviation, LEAST * np.quantile(deviation, 0.9))
        return cls(measured.mean_, np.where(deviation > 0, deviation, 1.0))


@dataclass(frozen=True)
class Scaled:
    """Features that are scaled as they are taken, by rows."""

    features: Any
    scaling: Scaling

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> Any:
        scaled = (np.asarray(self.features[rows], np.float64) - self.scaling.mean) / self.scaling.deviation
        return scaled.astype(np.float32)


def fold(head: keras.Model, scaling: Scaling) -> None:
    """Change the first layer's weights so that it does to features what it did to scaled ones."""
    layer = next(layer for layer in head.layers if layer.weights)
    kernel, bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    kernel = kernel / scaling.deviation[:, None]
    layer.set_weights([kernel, bias - scaling.mean @ kernel])
