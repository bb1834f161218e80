"""A model made elsewhere, called by its own library. Loupe's form of it must give the same answers.

original = Original(...)                  # read by read.py and savedmodel.py
original.predict(scaled)                  # float32 [N, H, W, 3], scaled as in its training → its own [N, C]
probabilities(answers, "sigmoid")         # its outputs as probabilities: [N, 1] → [N, 2]
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

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # lower bound before a logarithm is taken


@dataclass(frozen=True)
class Original:
    height: int | None  # px; None: any
    width: int | None
    predict: Callable[[Array], Array]
    call: Callable[[tf.Tensor], tf.Tensor]  # the same, within a graph
    keras: keras.Model | None = None  # None where there is no Keras 3 form
    integer_pixels: bool = False  # True if its input is of integers
    ending: Ending | None = None  # None: read.py finds it from the layers
    notes: tuple[str, ...] = ()
    network: str | None = None  # the known network it is built on; None where its file names none


def probabilities(answers: Array, ends_in: str) -> Array:
    if answers.shape[1] == 1:
        positive = answers if ends_in == "sigmoid" else 1 / (1 + np.exp(-answers))
        return np.concatenate([1 - positive, positive], axis=1)
    return softmax(answers) if ends_in == "logits" else answers / answers.sum(axis=1, keepdims=True)


def logits(answers: tf.Tensor, ends_in: str) -> tf.Tensor:
    """Return logits whose softmax is what `probabilities` gives."""
    answers = tf.cast(answers, tf.float32)
    if answers.shape[1] == 1:
        if ends_in == "logits":
            return tf.concat([-answers / 2, answers / 2], axis=1)
        answers = tf.concat([1 - answers, answers], axis=1)
    return answers if ends_in == "logits" else tf.math.log(tf.maximum(answers, LEAST_PROBABILITY))


def in_batches(answer: Callable[[Array], Any], pixels: Array, batch: int) -> Array:
    answers = [np.asarray(answer(pixels[start : start + batch]), np.float32) for start in range(0, len(pixels), batch)]
    return np.concatenate(answers)
