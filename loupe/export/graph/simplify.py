"""Make a Keras network as lean as inference allows: flat, without training-only layers, batch normalisation merged.

    model = folded(flat(model))               # the same answers, up to rounding
    model = in_precision(model, "bfloat16")   # the trunk; scaling and head stay in float32

Keras itself computes batch normalisation as a multiplication and an addition over the whole map, in float32 even where
the rest is bfloat16. Merged into the convolution before it, it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from loupe.errors import UserError
from loupe.gradcam import split

Weights = list[np.ndarray[Any, Any]]

# Layers that do nothing in inference.
IDLE = ("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization")
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
INPUT_LAYERS = (layers.InputLayer, layers.Rescaling, layers.Normalization)  # kept in float32, as pixels need


def rebuilt(
    model: keras.Model,
    make: Callable[[Any], Any] = lambda layer: _copied(layer),
    weights: Callable[[Any], Weights] = lambda layer: _weights(layer),
) -> keras.Model:
    """Return a flat copy. `make(layer)` returns the layer to put in its place, or None to leave it out;
    `weights(layer)` returns the new layer's weights."""
    copies: dict[int, Any] = {}  # id of the original → its copy: a layer that is used twice stays one layer
    originals: list[Any] = []

    # Call the copy of each layer, and go through nested networks.
    def call(operation: Any) -> Callable[..., Any]:
        if isinstance(operation, keras.Model):
            return lambda tensor, *_, **__: run_through(operation, tensor)
        if id(operation) not in copies:
            copies[id(operation)] = make(operation)
            originals.append(operation)
        new = copies[id(operation)]
        return (lambda tensor, *_, **__: tensor) if new is None else new

    def run_through(network: keras.Model, tensor: Any) -> Any:
        graph = network if hasattr(network, "_run_through_graph") else keras.Model(network.inputs, network.outputs)
        return graph._run_through_graph(tensor, operation_fn=call)

    # Run the model that way, and set the copies' weights.
    image = keras.Input(model.inputs[0].shape[1:], name="image")
    copy = keras.Model(image, run_through(model, image))
    for original in originals:
        new = copies[id(original)]
        if isinstance(new, keras.Layer) and new.weights:
            new.set_weights(weights(original))
        if hasattr(new, "finalize_state"):  # Normalization computes values from its weights
            new.finalize_state()
    return copy


def flat(model: keras.Model) -> keras.Model:
    """Return the model with nested networks inlined, without dropout and augmentation."""
    used_names = {"image"}

    def make(layer: Any) -> Any:
        if _is_training_only(layer):
            return None
        name = layer.name
        while name in used_names:  # two nested networks may each have a "conv1"
            name += "_"
        used_names.add(name)
        return _copied(layer, name=name) if name != layer.name else _copied(layer)

    return rebuilt(model, make)


def folded(model: keras.Model) -> keras.Model:
    """Return the model with each batch normalisation merged into the convolution before it. `model` is flat."""
    norm_of = _mergeable(model)
    merged_norms = {norm.name for norm in norm_of.values()}

    def make(layer: Any) -> Any:
        if layer.name in merged_norms:
            return None
        return _copied(layer, use_bias=True) if layer.name in norm_of else _copied(layer)

    def weights(layer: Any) -> Weights:
        return _merged_weights(layer, norm_of[layer.name]) if layer.name in norm_of else _weights(layer)

    return rebuilt(model, make, weights)


def in_precision(model: keras.Model, precision: str) -> keras.Model:
    """Return the model computing in `precision`, whatever it was trained in. The head stays in float32: a graph that
    rounds its logits cannot tell close classes apart. `model` is flat."""
    try:
        head_start: Any = split(model)[0]
    except UserError:  # the head is not known: take the last layer for it
        head_start = model.layers[-1]
    trunk = {layer.name for layer in model.layers[: model.layers.index(head_start)]}

    def make(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return _copied(layer)
        low = layer.name in trunk and not isinstance(layer, INPUT_LAYERS)
        return _copied(layer, dtype=precision if low else "float32")

    return rebuilt(model, make)


def _copied(operation: Any, **changes: Any) -> Any:
    return type(operation).from_config({**operation.get_config(), **changes})


def _weights(layer: Any) -> Weights:
    return [np.asarray(value) for value in layer.get_weights()]


def _is_training_only(layer: Any) -> bool:
    """Return True if the layer passes its input on unchanged in inference."""
    name = type(layer).__name__
    return name in IDLE or (name.startswith("Random") and isinstance(layer, keras.Layer))


def _mergeable(model: keras.Model) -> dict[str, Any]:
    """Return the batch normalisation for each convolution that it can be merged into, by the convolution's name: it
    follows at once, and nothing else uses the convolution's output."""
    uses: dict[int, int] = {}
    for tensor in [*(t for layer in model.operations for t in _inputs(layer)), *model.outputs]:
        uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    producer_of = {id(layer.output): layer for layer in model.operations if len(layer._inbound_nodes) == 1}
    norm_of = {}
    for norm in model.operations:
        if not isinstance(norm, layers.BatchNormalization) or len(norm._inbound_nodes) != 1:
            continue
        convolution = producer_of.get(id(norm.input))
        if not isinstance(convolution, CONVOLUTIONS) or convolution.activation is not keras.activations.linear:
            continue
        if uses[id(norm.input)] == 1 and norm.axis in (-1, 3) and convolution.data_format == "channels_last":
            norm_of[convolution.name] = norm
    return norm_of


def _inputs(operation: Any) -> list[Any]:
    return [tensor for node in operation._inbound_nodes for tensor in node.input_tensors]


def _merged_weights(convolution: Any, norm: Any) -> Weights:
    """Return the convolution's weights with the norm merged in: y = (conv(x) + bias - mean) * scale + beta, with the
    scale in the kernel and the rest in the bias."""
    values = _weights(convolution)
    bias = values.pop() if convolution.use_bias else 0.0
    scale = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma)
    beta = np.asarray(norm.beta) if norm.center else 0.0
    kernel = values.pop()
    per_output = scale.reshape(kernel.shape[2:]) if type(convolution) is layers.DepthwiseConv2D else scale
    return [*values, kernel * per_output, beta + (bias - np.asarray(norm.moving_mean)) * scale]
