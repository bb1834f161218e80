"""Bring a Keras model made elsewhere into Loupe's own form: flat, from pixels of 0…255 to logits of two classes or
more.

    model = flattened(original, scaling, 299, 299)
    scales_itself(model, scaling)             # True if its own first layers scale pixels of 0…255
    ending_of(model)                          # softmax, sigmoid, linear, another activation; None: not known
    model = with_logits(model, "softmax")     # raises ValueError where it cannot be done

The answers stay what they were, up to rounding.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import activations, layers

from loupe.export.foreign.scaling import SCALING_LAYER, Scaling
from loupe.export.graph.simplify import flat, in_precision, rebuilt
from loupe.gradcam import producer_of

OUTPUT_ACTIVATIONS = (activations.softmax, activations.sigmoid, activations.linear)  # a classifier ends in one of these
LARGEST_SCALED = 10  # what 0…255 becomes by scaling, at most; half of 255, or twice, is far above
CENTRED = (-50, 200)  # 0…255 less ImageNet's means begins below the one and ends below the other
ACTIVATION_LAYERS = {layer: layer.__name__ for layer in (layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU)}


def ending_of(model: keras.Model) -> str | None:
    """Return the name of the activation that a flat model ends in, None if its last layer does not tell."""
    layer, _ = producer_of(model.outputs[0])
    activation = _activation(layer) or getattr(layer, "activation", None)
    return getattr(activation, "__name__", None) if activation else ACTIVATION_LAYERS.get(type(layer))


def flattened(model: keras.Model, scaling: Scaling, height: int, width: int) -> keras.Model:
    image = keras.Input((height, width, 3), name="image")
    return in_precision(flat(keras.Model(image, model(scaling.layers(image)))), "float32")


def scales_itself(model: keras.Model, scaling: Scaling) -> bool:
    """Return True if the layers before the first that has learnt kernels make small or centred numbers of pixels of
    0…255. Then the model was trained on such pixels. `model` is flat; what `scaling` put before it is passed over."""
    first = next((layer for layer in model.layers if _has_kernel(layer)), None)
    start = model.input if scaling.mode == "none" else model.get_layer(SCALING_LAYER).output
    try:
        reached = keras.Model(start, first.input) if first else None
    except (AttributeError, ValueError):  # a layer that is used twice has no one input
        return False
    if reached is None:
        return False
    black_and_white = np.stack([np.zeros(model.input_shape[1:]), np.full(model.input_shape[1:], 255)])
    values = np.asarray(reached(black_and_white.astype(np.float32), training=False))
    low, high = float(values.min()), float(values.max())
    return max(-low, high) <= LARGEST_SCALED or (low < CENTRED[0] and high < CENTRED[1])


def _has_kernel(layer: Any) -> bool:
    is_norm = isinstance(layer, (layers.Normalization, layers.BatchNormalization))
    return not is_norm and any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))


def with_logits(model: keras.Model, ends_in: str) -> keras.Model:
    """Return the model without its last softmax or sigmoid, and with two outputs where it has one. `model` is flat."""
    # Find the last layer that computes, before a softmax or the like in a layer of its own.
    last, tensor = producer_of(model.outputs[0])
    activation = None if isinstance(last, layers.Dense) else last
    if activation is not None and _activation(activation) in OUTPUT_ACTIVATIONS:
        last = producer_of(tensor)[0]
    else:
        activation = None
    # Refuse what cannot be rewritten.
    single = model.output_shape[-1] == 1
    if single and not isinstance(last, layers.Dense):
        raise ValueError(f"its one output comes from {last.name}, which is no Dense layer")
    if activation is None and ends_in != "logits" and not isinstance(last, layers.Dense):
        raise ValueError(f"what turns its outputs into probabilities is within {last.name}")

    # Copy the model: the activation left out, a single output as two of opposite sign.
    def make(layer: Any) -> Any:
        if layer is activation:
            return None
        changes = {"activation": "linear", **({"units": 2} if single else {})}
        return type(layer).from_config(
            {**layer.get_config(), **(changes if layer is last and isinstance(layer, layers.Dense) else {})}
        )

    def weights(layer: Any) -> list[Any]:
        values = [np.asarray(value) for value in layer.get_weights()]
        return (
            [np.concatenate([-value / 2, value / 2], axis=-1) for value in values]
            if single and layer is last
            else values
        )

    return rebuilt(model, make, weights)


def _activation(layer: Any) -> Any:
    if isinstance(layer, layers.Softmax) or type(layer).__name__ == "Softmax":  # the layer, or keras.ops.softmax
        return activations.softmax if getattr(layer, "axis", -1) in (-1, 1) else None
    return layer.activation if isinstance(layer, (layers.Dense, layers.Activation)) else None
