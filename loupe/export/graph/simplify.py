"""A Keras network as lean as inference allows: flat, without what only training needs, its batch normalisation merged.

    model = folded(flat(model))               # the same answers, up to rounding
    model = in_precision(model, "bfloat16")   # the trunk; scaling and head stay in float32

Keras computes batch normalisation of its own accord as a multiplication and an addition over the whole map, in float32
even where the rest is bfloat16; merged into the convolution before it, it costs nothing.
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

IDLE = ("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization")
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
SCALING = (layers.InputLayer, layers.Rescaling, layers.Normalization)  # pixels need more digits than bfloat16 has


def rebuilt(
    model: keras.Model,
    make: Callable[[Any], Any] = lambda layer: _like(layer),
    weights: Callable[[Any], Weights] = lambda layer: _weights(layer),
) -> keras.Model:
    """A flat copy. `make(layer)` gives the layer in its place, None to leave it out; `weights(layer)` its weights."""
    made: dict[int, Any] = {}  # by the original's id: a layer that is used twice stays one layer
    originals: list[Any] = []

    def call(operation: Any) -> Callable[..., Any]:
        if isinstance(operation, keras.Model):
            return lambda tensor, *_, **__: through(operation, tensor)
        if id(operation) not in made:
            made[id(operation)] = make(operation)
            originals.append(operation)
        new = made[id(operation)]
        return (lambda tensor, *_, **__: tensor) if new is None else new

    def through(part: keras.Model, tensor: Any) -> Any:
        graph = part if hasattr(part, "_run_through_graph") else keras.Model(part.inputs, part.outputs)
        return graph._run_through_graph(tensor, operation_fn=call)

    image = keras.Input(model.inputs[0].shape[1:], name="image")
    copy = keras.Model(image, through(model, image))
    for original in originals:
        new = made[id(original)]
        if isinstance(new, keras.Layer) and new.weights:
            new.set_weights(weights(original))
        if hasattr(new, "finalize_state"):  # what is computed of the weights: Normalization's
            new.finalize_state()
    return copy


def flat(model: keras.Model) -> keras.Model:
    """Nested networks inlined, dropout and augmentation left out."""
    taken = {"image"}

    def make(layer: Any) -> Any:
        if _idle(layer):
            return None
        name = layer.name
        while name in taken:  # two networks within one may each have their "conv1"
            name += "_"
        taken.add(name)
        return _like(layer, name=name) if name != layer.name else _like(layer)

    return rebuilt(model, make)


def folded(model: keras.Model) -> keras.Model:
    """Each batch normalisation that follows a convolution alone is merged into it. `model` is flat."""
    norm_of = _merged(model)
    gone = {norm.name for norm in norm_of.values()}

    def make(layer: Any) -> Any:
        if layer.name in gone:
            return None
        return _like(layer, use_bias=True) if layer.name in norm_of else _like(layer)

    def weights(layer: Any) -> Weights:
        return _merge(layer, norm_of[layer.name]) if layer.name in norm_of else _weights(layer)

    return rebuilt(model, make, weights)


def in_precision(model: keras.Model, precision: str) -> keras.Model:
    """Computing throughout in what `precision` says, whatever it was trained in. The head stays in float32: a graph
    that rounds its logits cannot tell close classes apart. `model` is flat."""
    try:
        behind: Any = split(model)[0]
    except UserError:  # of a head that is not known, the last layer alone counts
        behind = model.layers[-1]
    trunk = {layer.name for layer in model.layers[: model.layers.index(behind)]}

    def make(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return _like(layer)
        low = layer.name in trunk and not isinstance(layer, SCALING)
        return _like(layer, dtype=precision if low else "float32")

    return rebuilt(model, make)


def _like(operation: Any, **changes: Any) -> Any:
    return type(operation).from_config({**operation.get_config(), **changes})


def _weights(layer: Any) -> Weights:
    return [np.asarray(value) for value in layer.get_weights()]


def _idle(layer: Any) -> bool:
    """Whether it passes its input on as it is in inference."""
    kind = type(layer).__name__
    return kind in IDLE or (kind.startswith("Random") and isinstance(layer, keras.Layer))


def _merged(model: keras.Model) -> dict[str, Any]:
    """Which batch normalisation goes into which convolution: those between which nothing happens and nobody else
    listens."""
    uses: dict[int, int] = {}
    for tensor in [*(t for layer in model.operations for t in _inputs(layer)), *model.outputs]:
        uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    by_output = {id(layer.output): layer for layer in model.operations if len(layer._inbound_nodes) == 1}
    found = {}
    for norm in model.operations:
        if not isinstance(norm, layers.BatchNormalization) or len(norm._inbound_nodes) != 1:
            continue
        before = by_output.get(id(norm.input))
        if not isinstance(before, CONVOLUTIONS) or before.activation is not keras.activations.linear:
            continue
        if uses[id(norm.input)] == 1 and norm.axis in (-1, 3) and before.data_format == "channels_last":
            found[before.name] = norm
    return found


def _inputs(operation: Any) -> list[Any]:
    return [tensor for node in operation._inbound_nodes for tensor in node.input_tensors]


def _merge(convolution: Any, norm: Any) -> Weights:
    """y = (conv(x) + bias - mean) * scale + beta, with the scale in the kernel and the rest in the bias."""
    values = _weights(convolution)
    bias = values.pop() if convolution.use_bias else 0.0
    scale = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma)
    beta = np.asarray(norm.beta) if norm.center else 0.0
    kernel = values.pop()
    per_output = scale.reshape(kernel.shape[2:]) if type(convolution) is layers.DepthwiseConv2D else scale
    return [*values, kernel * per_output, beta + (bias - np.asarray(norm.moving_mean)) * scale]
