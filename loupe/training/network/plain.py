"""The networks that are trained from nothing: the sample's small one, and a larger one for photographs.

    last_map = trunk("cnn-large", image)      # from pixels of 0…255; backbones.py puts `pool` and a head on it
    fuse_norms(model)                         # before training: the same result, sooner

Their layers are flat and of kinds that every runtime knows. The export counts on the names `features`, `pool` and
`logits`, and on nothing but Dense and Dropout after `pool`; the softmax is its business, not the network's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import layers

# Filters, kernel side, stride, and whether the map is halved after it: 224 → 112 → 56 → 28 → 14
BLOCKS = ((16, 5, 2, True), (32, 3, 1, False), (32, 3, 1, True), (64, 3, 1, True), (128, 3, 1, False))
LARGE = (64, 128, 256, 512)  # filters of the stages, each of which halves the map: 128 → 64 → 32 → 16 → 8 → 4
LARGE_STEM = 32


def trunk(name: str, image: Any) -> Any:
    return NETWORKS[name](image)


def small(image: Any) -> Any:
    """0.1 million weights: what a minute on a laptop's processor can train."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    for number, (filters, kernel, stride, halved) in enumerate(BLOCKS, 1):
        last = number == len(BLOCKS)
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)  # short runs: the usual 0.99 would lag behind
        x = layers.ReLU(name="features" if last else None)(x)
        if halved:
            x = layers.MaxPooling2D(2)(x)
    return x


def large(image: Any) -> Any:
    """A residual network of 4.9 million weights: few layers and many filters, which is what processors are fast at."""
    x = layers.Rescaling(1 / 60, offset=-2.0)(image)  # about the mean and the deviation of photographs
    x = layers.ReLU()(_normalised(x, LARGE_STEM, 3, 2))
    for number, filters in enumerate(LARGE, 1):
        last = number == len(LARGE)
        y = layers.ReLU()(_normalised(x, filters, 3, 2))
        y = _normalised(y, filters, 3, gamma="zeros")  # a block begins as nothing but its way round
        x = layers.AveragePooling2D(2, padding="same")(x)
        x = layers.Add()([_normalised(x, filters, 1), y])
        x = layers.ReLU(name="features" if last else None)(x)
    return x


def _normalised(x: Any, filters: int, kernel: int, stride: int = 1, gamma: str = "ones") -> Any:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9, gamma_initializer=gamma)(x)


def fuse_norms(model: keras.Model) -> None:
    """Let batch normalisation train by TensorFlow's one operation for it, where Keras takes a dozen of them.

    In bfloat16 on a processor a step of the large network takes 420 ms instead of 760. The layers stay what they are,
    in saved files too, and with them all they do in inference.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.axis in (-1, 3) and layer.scale and layer.center:
            layer.call = partial(_fused, layer)


def _fused(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    if not training or not layer.trainable or mask is not None or len(inputs.shape) != 4:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    scale, offset = (keras.ops.cast(one, "float32") for one in (layer.gamma, layer.beta))
    result = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=layer.epsilon, is_training=True
    )
    kept = layer.momentum
    layer.moving_mean.assign(layer.moving_mean * kept + result.batch_mean * (1 - kept))
    layer.moving_variance.assign(layer.moving_variance * kept + result.batch_variance * (1 - kept))
    return result.y


NETWORKS: dict[str, Callable[[Any], Any]] = {"cnn": small, "cnn-large": large}
