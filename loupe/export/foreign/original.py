"""A model made elsewhere, as its own library answers: what Loupe's form of it is held to.

original = Original(...)                  # read by read.py and savedmodel.py
original.predict(scaled)                  # float32 [N, H, W, 3], scaled as in its training → its own [N, C]
probabilities(answers, "sigmoid")         # what those mean: [N, 1] → [N, 2]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loupe.export.foreign.output_kind import Ending
from loupe.export.source import Array, softmax

LEAST = float(np.finfo(np.float32).tiny)  # what a probability is at least, before its logarithm is taken


@dataclass(frozen=True)
class Original:
    height: int | None  # px; None: any
    width: int | None
    predict: Callable[[Array], Array]
    call: Callable[[tf.Tensor], tf.Tensor]  # the same within a graph
    keras: keras.Model | None = None  # in Keras 3, where it could be had
    whole_numbers: bool = False  # whether it takes pixels as integers
    ending: Ending | None = None  # None: to be found out of its layers
    notes: tuple[str, ...] = ()


def probabilities(answers: Array, kind: str) -> Array:
    if answers.shape[1] == 1:
        likely = answers if kind == "sigmoid" else 1 / (1 + np.exp(-answers))
        return np.concatenate([1 - likely, likely], axis=1)
    return softmax(answers) if kind == "logits" else answers / answers.sum(axis=1, keepdims=True)


def logits(answers: tf.Tensor, kind: str) -> tf.Tensor:
    """Whose softmax is what `probabilities` gives."""
    answers = tf.cast(answers, tf.float32)
    if answers.shape[1] == 1:
        if kind == "logits":
            return tf.concat([-answers / 2, answers / 2], axis=1)
        answers = tf.concat([1 - answers, answers], axis=1)
    return answers if kind == "logits" else tf.math.log(tf.maximum(answers, LEAST))


def in_batches(answer: Callable[[Array], Any], pixels: Array, batch: int) -> Array:
    answers = [np.asarray(answer(pixels[start : start + batch]), np.float32) for start in range(0, len(pixels), batch)]
    return np.concatenate(answers)
