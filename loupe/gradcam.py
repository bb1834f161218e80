"""Where a network looked: Grad-CAM of its top class, one way for the report and for the exported graph.

    warmth = heatmaps(model, pixels)          # uint8 [N, H, W, 3] → float32 [N, h, w] of 0…1
    pool, head = split(model)                 # where the last feature map is pooled, and the layers behind it
    values = forward(pool, feature_map, head) # what each makes of it, last the logits
    warmth = grad_cam(feature_map, head, values)

Behind the last feature map there is only a chain of small layers, so its gradient is theirs alone: a matrix step for
each Dense layer, and no backward pass through the backbone. Needs TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations, layers

from loupe.errors import UserError

BATCH = 32

POOLS: dict[type, Callable[[tf.Tensor], tf.Tensor]] = {
    layers.GlobalAveragePooling2D: lambda feature_map: tf.reduce_mean(feature_map, [1, 2]),
    layers.AveragePooling2D: lambda feature_map: tf.reduce_mean(feature_map, [1, 2]),  # of one that covers the map
    layers.GlobalMaxPooling2D: lambda feature_map: tf.reduce_max(feature_map, [1, 2]),
    layers.Flatten: lambda feature_map: tf.reshape(feature_map, [-1, prod(feature_map.shape[1:])]),
}
SLOPES: dict[Any, Callable[[tf.Tensor], tf.Tensor]] = {  # of an activation, told from what it gave
    activations.linear: tf.ones_like,
    activations.relu: lambda value: tf.cast(value > 0, tf.float32),
    activations.relu6: lambda value: tf.cast((value > 0) & (value < 6), tf.float32),
    activations.tanh: lambda value: 1 - tf.square(value),
    activations.sigmoid: lambda value: value * (1 - value),
    activations.elu: lambda value: tf.where(value > 0, tf.ones_like(value), value + 1),
}


def split(model: keras.Model) -> tuple[Any, list[Any]]:
    """The layer that pools the last feature map, and the chain of layers behind it, which end in logits."""
    head: list[Any] = []
    layer, tensor = before(model.outputs[0])
    while tensor is not None and not (type(layer) in POOLS and _pools(layer, tensor)):
        if not _passes(layer, tensor):
            head.insert(0, layer)
        layer, tensor = before(tensor)
    if tensor is None:
        raise UserError("This network pools no feature map before its head.")
    for number, layer_behind in enumerate(head):
        last = number == len(head) - 1
        known = isinstance(layer_behind, layers.BatchNormalization) or _activation(layer_behind) in SLOPES
        if not known or (last and _activation(layer_behind) is not activations.linear):
            raise UserError(
                "A head may hold Dense layers, simple activations, batch normalisation and dropout, and must end in "
                f"logits; its layer {layer_behind.name} is none of these."
            )
    return layer, head


def before(tensor: Any) -> tuple[Any, Any]:
    """The layer that gave a tensor, and what it was given; None where that is not one tensor."""
    layer, node, _ = tensor._keras_history
    given = layer._inbound_nodes[node].input_tensors
    return layer, given[0] if len(given) == 1 else None


def _pools(layer: Any, tensor: Any) -> bool:
    """Whether a map becomes one vector here. Pooled over all of it, it is one already, whoever flattens it later."""
    if len(tensor.shape) != 4:
        return False
    if isinstance(layer, layers.AveragePooling2D):
        return tuple(layer.pool_size) == tuple(tensor.shape[1:3])
    if isinstance(layer, layers.Flatten):
        pool, given = before(tensor)
        return not (_passes(layer, tensor) and type(pool) in POOLS and given is not None and _pools(pool, given))
    return True


def _passes(layer: Any, tensor: Any) -> bool:
    """Whether it gives on what it was given, but for the shape."""
    flattens = isinstance(layer, layers.Flatten) and prod(tensor.shape[1:]) == tensor.shape[-1]
    return flattens or isinstance(layer, layers.Dropout)


def _activation(layer: Any) -> Any:
    if isinstance(layer, layers.ReLU) and not layer.negative_slope and not layer.threshold:
        return {None: activations.relu, 6: activations.relu6}.get(layer.max_value)
    return layer.activation if isinstance(layer, (layers.Dense, layers.Activation)) else None


def forward(pool: Any, feature_map: tf.Tensor, head: list[Any]) -> list[tf.Tensor]:
    """From the last feature map on: the pooled features, what each layer of the head makes of them, last the logits."""
    values = [POOLS[type(pool)](tf.cast(feature_map, tf.float32))]
    for layer in head:
        values.append(tf.cast(layer(values[-1]), tf.float32))
    return values


def grad_cam(feature_map: tf.Tensor, head: list[Any], values: list[tf.Tensor]) -> tf.Tensor:
    """Of the top class's logit: ReLU, divided by its maximum, all zero where that is zero."""
    gradient = tf.one_hot(tf.argmax(values[-1], axis=1), values[-1].shape[1])
    for layer, value in zip(reversed(head), reversed(values), strict=False):  # values[0] is the pooled features
        gradient = _back(layer, value, gradient)
    channels = feature_map.shape[3]
    if gradient.shape[1] != channels:  # flattened: each place has its own gradient, and their mean is the weight
        places = gradient.shape[1] // channels
        gradient = tf.reduce_mean(tf.reshape(gradient, [-1, places, channels]), axis=1)
    feature_map = tf.cast(feature_map, tf.float32)
    warmth = tf.nn.relu(tf.reduce_sum(feature_map * gradient[:, None, None, :], axis=3))
    peak = tf.reduce_max(warmth, axis=[1, 2], keepdims=True)
    return warmth / tf.where(peak > 0, peak, tf.ones_like(peak))


def _back(layer: Any, value: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The gradient before a layer, from that behind it."""
    if isinstance(layer, layers.BatchNormalization):
        scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        return gradient * scale * (tf.convert_to_tensor(layer.gamma) if layer.scale else 1.0)
    if _activation(layer) is not activations.linear:
        gradient = gradient * SLOPES[_activation(layer)](value)
    return tf.matmul(gradient, layer.kernel, transpose_b=True) if isinstance(layer, layers.Dense) else gradient


def heatmaps(model: keras.Model, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    pool, head = split(model)
    feature_map_of = keras.Model(model.input, pool.input)
    warm = []
    for start in range(0, len(pixels), BATCH):
        feature_map = feature_map_of(tf.cast(pixels[start : start + BATCH], tf.float32), training=False)
        warm.append(grad_cam(feature_map, head, forward(pool, feature_map, head)).numpy())
    return np.concatenate(warm) if warm else np.zeros((0, *pool.input.shape[1:3]), np.float32)
