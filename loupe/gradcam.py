"""Show where a network looked: Grad-CAM of its top class, the same for the report and for the exported graph.

    warmth = heatmaps(model, pixels)          # uint8 [N, H, W, 3] → float32 [N, h, w] of 0…1
    pool, head = split(model)                 # the layer that pools the last feature map, and the layers behind it
    values = forward(pool, feature_map, head) # the output of each, the logits last
    warmth = grad_cam(feature_map, head, values)

Behind the last feature map there is only a chain of small layers. So the gradient needs no backward pass through the
backbone: it is a matrix product for each Dense layer. Needs TensorFlow.
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
    layers.AveragePooling2D: lambda feature_map: tf.reduce_mean(feature_map, [1, 2]),  # only where it covers the map
    layers.GlobalMaxPooling2D: lambda feature_map: tf.reduce_max(feature_map, [1, 2]),
    layers.Flatten: lambda feature_map: tf.reshape(feature_map, [-1, prod(feature_map.shape[1:])]),
}
SLOPES: dict[Any, Callable[[tf.Tensor], tf.Tensor]] = {  # the derivative of an activation, from its output
    activations.linear: tf.ones_like,
    activations.relu: lambda value: tf.cast(value > 0, tf.float32),
    activations.relu6: lambda value: tf.cast((value > 0) & (value < 6), tf.float32),
    activations.tanh: lambda value: 1 - tf.square(value),
    activations.sigmoid: lambda value: value * (1 - value),
    activations.elu: lambda value: tf.where(value > 0, tf.ones_like(value), value + 1),
}


def split(model: keras.Model) -> tuple[Any, list[Any]]:
    """Return the layer that pools the last feature map, and the chain of layers behind it, which ends in logits."""
    # Go back from the logits to the pooling layer.
    head: list[Any] = []
    layer, tensor = producer_of(model.outputs[0])
    while tensor is not None and not (type(layer) in POOLS and _is_pool(layer, tensor)):
        if not _is_passing(layer, tensor):
            head.insert(0, layer)
        layer, tensor = producer_of(tensor)
    if tensor is None:
        raise UserError("This network pools no feature map before its head.")
    # Refuse layers whose gradient is not known here.
    for number, layer_behind in enumerate(head):
        last = number == len(head) - 1
        known = isinstance(layer_behind, layers.BatchNormalization) or _activation(layer_behind) in SLOPES
        if not known or (last and _activation(layer_behind) is not activations.linear):
            raise UserError(
                "A head may hold Dense layers, simple activations, batch normalisation and dropout, and must end in "
                f"logits; its layer {layer_behind.name} is none of these."
            )
    return layer, head


def producer_of(tensor: Any) -> tuple[Any, Any]:
    """Return the layer that made a tensor, and that layer's input; None if it has not exactly one."""
    layer, node, _ = tensor._keras_history
    inputs = layer._inbound_nodes[node].input_tensors
    return layer, inputs[0] if len(inputs) == 1 else None


def _is_pool(layer: Any, tensor: Any) -> bool:
    """Return True if the layer turns a map into one vector. A map that is pooled over all of it is one already, even if
    it is flattened later."""
    if len(tensor.shape) != 4:
        return False
    if isinstance(layer, layers.AveragePooling2D):
        return tuple(layer.pool_size) == tuple(tensor.shape[1:3])
    if isinstance(layer, layers.Flatten):
        pool, inputs = producer_of(tensor)
        return not (
            _is_passing(layer, tensor) and type(pool) in POOLS and inputs is not None and _is_pool(pool, inputs)
        )
    return True


def _is_passing(layer: Any, tensor: Any) -> bool:
    """Return True if the layer passes its input on, apart from the shape."""
    flattens = isinstance(layer, layers.Flatten) and prod(tensor.shape[1:]) == tensor.shape[-1]
    return flattens or isinstance(layer, layers.Dropout)


def _activation(layer: Any) -> Any:
    if isinstance(layer, layers.ReLU) and not layer.negative_slope and not layer.threshold:
        return {None: activations.relu, 6: activations.relu6}.get(layer.max_value)
    return layer.activation if isinstance(layer, (layers.Dense, layers.Activation)) else None


def forward(pool: Any, feature_map: tf.Tensor, head: list[Any]) -> list[tf.Tensor]:
    """Return the pooled features and the output of each layer of the head, the logits last."""
    values = [POOLS[type(pool)](tf.cast(feature_map, tf.float32))]
    for layer in head:
        values.append(tf.cast(layer(values[-1]), tf.float32))
    return values


def grad_cam(feature_map: tf.Tensor, head: list[Any], values: list[tf.Tensor]) -> tf.Tensor:
    """Return the heat maps of the top class's logit: ReLU, divided by the maximum, all zero where that is zero."""
    gradient = tf.one_hot(tf.argmax(values[-1], axis=1), values[-1].shape[1])
    for layer, value in zip(reversed(head), reversed(values), strict=False):  # values[0] is the pooled features
        gradient = _gradient_before(layer, value, gradient)
    channels = feature_map.shape[3]
    if gradient.shape[1] != channels:  # flattened: each position has its own gradient, and the weight is their mean
        positions = gradient.shape[1] // channels
        gradient = tf.reduce_mean(tf.reshape(gradient, [-1, positions, channels]), axis=1)
    feature_map = tf.cast(feature_map, tf.float32)
    warmth = tf.nn.relu(tf.reduce_sum(feature_map * gradient[:, None, None, :], axis=3))
    peak = tf.reduce_max(warmth, axis=[1, 2], keepdims=True)
    return warmth / tf.where(peak > 0, peak, tf.ones_like(peak))


def _gradient_before(layer: Any, value: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Return the gradient before a layer, from the gradient behind it."""
    if isinstance(layer, layers.BatchNormalization):
        scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        return gradient * scale * (tf.convert_to_tensor(layer.gamma) if layer.scale else 1.0)
    if _activation(layer) is not activations.linear:
        gradient = gradient * SLOPES[_activation(layer)](value)
    return tf.matmul(gradient, layer.kernel, transpose_b=True) if isinstance(layer, layers.Dense) else gradient


def heatmaps(model: keras.Model, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    pool, head = split(model)
    feature_map_of = keras.Model(model.input, pool.input)
    maps = []
    for start in range(0, len(pixels), BATCH):
        feature_map = feature_map_of(tf.cast(pixels[start : start + BATCH], tf.float32), training=False)
        maps.append(grad_cam(feature_map, head, forward(pool, feature_map, head)).numpy())
    return np.concatenate(maps) if maps else np.zeros((0, *pool.input.shape[1:3]), np.float32)
