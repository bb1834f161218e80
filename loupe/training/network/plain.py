"""The networks that are trained from scratch: the sample's small one, and a larger one for photographs.

    last_map = trunk("cnn-large", image)      # from pixels of 0…255; backbones.py puts `pool` and a head on it
    fuse_norms(model)                         # before training: the same result, sooner

Their layers are flat and of types that every runtime knows. The export relies on the names `features`, `pool` and
`logits`, and on nothing but Dense and Dropout after `pool`. The export adds the softmax.
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
    """Build a network of 0.1 million weights, which a laptop's processor trains in a minute."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    for number, (filters, kernel, stride, is_halved) in enumerate(BLOCKS, 1):
        is_last = number == len(BLOCKS)
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)  # short runs: the usual 0.99 would lag behind
        x = layers.ReLU(name="features" if is_last else None)(x)
        if is_halved:
            x = layers.MaxPooling2D(2)(x)
    return x


def large(image: Any) -> Any:
    """Build a residual network of 4.9 million weights: few layers with many filters, which processors compute fast."""
    x = layers.Rescaling(1 / 60, offset=-2.0)(image)  # about the mean and the deviation of photographs
    x = layers.ReLU()(_convolve(x, LARGE_STEM, 3, 2))
    for number, filters in enumerate(LARGE, 1):
        is_last = number == len(LARGE)
        y = layers.ReLU()(_convolve(x, filters, 3, 2))
        y = _convolve(y, filters, 3, gamma="zeros")  # at the start only the shortcut of a block counts
        x = layers.AveragePooling2D(2, padding="same")(x)
        x = layers.Add()([_convolve(x, filters, 1), y])
        x = layers.ReLU(name="features" if is_last else None)(x)
    return x


def _convolve(x: Any, filters: int, kernel: int, stride: int = 1, gamma: str = "ones") -> Any:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9, gamma_initializer=gamma)(x)


def fuse_norms(model: keras.Model) -> None:
    """Let batch normalisation train with TensorFlow's one fused operation, where Keras uses a dozen.

    In bfloat16 on a processor a step of the large network takes 420 ms instead of 760. The layers stay what they are,
    in saved files too, and so does inference.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.axis in (-1, 3) and layer.scale and layer.center:
            layer.call = partial(_fused_norm, layer)


def _fused_norm(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    if not training or not layer.trainable or mask is not None or len(inputs.shape) != 4:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    scale, offset = (keras.ops.cast(weight, "float32") for weight in (layer.gamma, layer.beta))
    result = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=layer.epsilon, is_training=True
    )
    momentum = layer.momentum
    layer.moving_mean.assign(layer.moving_mean * momentum + result.batch_mean * (1 - momentum))
    layer.moving_variance.assign(layer.moving_variance * momentum + result.batch_variance * (1 - momentum))
    return result.y


NETWORKS: dict[str, Callable[[Any], Any]] = {"cnn": small, "cnn-large": large}
