"""Load files of Keras 2 that Keras 3 cannot load. The legacy library tf_keras loads them; where possible, the network
is then rebuilt of Keras 3 layers with the same weights.

    model = load_keras2(Path("model.h5"))     # a model of tf_keras
    rebuilt(model)                            # the same in Keras 3; raises where that has no such layer
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.errors import UserError

COMMON_ARGUMENTS = {"name", "trainable", "dtype"}
OWN_LAYERS = ("LayerScale", "StochasticDepth", "CustomScaleLayer")  # defined by keras.applications
RENAMED_LAYERS = {"SyncBatchNormalization": "BatchNormalization"}  # the same in inference


def library() -> Any:
    import tf_keras  # imported here since it takes seconds

    return tf_keras


def own_layers(library: Any) -> dict[str, Any]:
    """Return the layers that the library's own networks define, which it does not find by name when it loads a file:
    for example ConvNeXt's LayerScale."""
    networks = library.src.applications
    modules = (networks.convnext, networks.inception_resnet_v2)
    return {name: layer for module in modules for name in OWN_LAYERS if (layer := getattr(module, name, None))}


class Add(keras.layers.Add):  # type: ignore[misc]
    """A Keras Add layer that also takes its tensors one by one. In an .h5, `x + y` is an operation of the same name
    with two tensors instead of a list."""

    def __call__(self, *tensors: Any, **options: Any) -> Any:
        return super().__call__(list(tensors) if len(tensors) > 1 else tensors[0], **options)


def load_keras3(path: Path) -> keras.Model:
    added = {"Add": Add} if path.suffix.lower() != ".keras" else {}
    return keras.saving.load_model(path, custom_objects={**own_layers(keras), **added}, compile=False)


def load_keras2(path: Path) -> Any:
    try:
        return library().models.load_model(path, custom_objects=own_layers(library()), compile=False)
    except Exception as error:  # a damaged or unknown file raises errors of every type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"Neither Keras 3 nor the legacy tf_keras can load {path}: {reason}") from error


def rebuilt(model: Any) -> keras.Model:
    """Return the network in Keras 3, copied node by node, nested networks inlined."""
    image = keras.Input(model.inputs[0].shape[1:], name="image")
    copies: dict[int, tuple[Any, Any]] = {}  # id of a Keras 2 layer → that layer, its copy
    copy = keras.Model(image, _run_nodes(model, image, copies))
    for old, new in copies.values():
        if new.weights:
            new.set_weights([np.asarray(value) for value in old.get_weights()])
        if hasattr(new, "finalize_state"):  # Normalization computes values from its weights
            new.finalize_state()
    return copy


def _run_nodes(model: Any, tensor: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    """Call the network's nodes in the order of tf_keras: by their depth, each tensor once for every use of it."""
    uses = model._tensor_usage_count
    tensors = {str(id(model.inputs[0])): [tensor] * uses[str(id(model.inputs[0]))]}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(tensors)
            output = _callable_of(node.layer, copies)(*args, **kwargs)
            for key in node.flat_output_ids:
                tensors[str(key)] = [output] * uses[str(key)]
    return tensors[str(id(model.outputs[0]))].pop()


def _callable_of(layer: Any, copies: dict[int, tuple[Any, Any]]) -> Callable[..., Any]:
    if hasattr(layer, "_nodes_by_depth"):
        return lambda tensor, *_, **__: _run_nodes(layer, tensor, copies)
    if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
        return _function_of(layer)
    if id(layer) not in copies:
        copies[id(layer)] = layer, _copy_layer(layer, {copy.name for _, copy in copies.values()})
    return lambda *args, **_: copies[id(layer)][1](*args)  # `training` is left out: this is inference


def _copy_layer(layer: Any, used_names: set[str]) -> Any:
    """Return the Keras 3 layer of the same name, made from those settings of the old layer that its constructor
    takes."""
    # Find the class.
    name = RENAMED_LAYERS.get(type(layer).__name__, type(layer).__name__)
    layer_class = getattr(keras.layers, name, None) or own_layers(keras).get(name)
    if layer_class is None:
        raise ValueError(f"Keras 3 has no layer {name}")
    # Adapt the configuration to Keras 3.
    arguments = set(inspect.signature(layer_class.__init__).parameters) | COMMON_ARGUMENTS
    config = {key: value for key, value in layer.get_config().items() if key in arguments}
    if isinstance(axis := config.get("axis"), (list, tuple)) and len(axis) == 1:
        config["axis"] = axis[0]
    config["dtype"] = "float32"
    # Keras 3 allows no slash; the suffix avoids names that it generates.
    config["name"] = config["name"].replace("/", "_") + "_"
    while config["name"] in used_names:
        config["name"] += "_"
    # Build it.
    try:
        return layer_class.from_config(config)
    except Exception as error:  # Keras's own message holds the whole configuration
        raise ValueError(f"its {name} does not take what {layer.name} is") from error


def _function_of(layer: Any) -> Callable[..., Any]:
    """Return the Keras 3 form of a TensorFlow function that Keras 2's scaling and networks leave in a file."""
    name = layer.get_config().get("function") or "__operators__.getitem"

    def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        other = next(
            (value for value in [*args, *(kwargs.get(key) for key in SECOND_ARGUMENT)] if value is not None), None
        )
        if name.endswith("getitem") and _is_channel_reversal(other):
            return keras.ops.flip(tensor, axis=-1)
        arithmetic = ARITHMETIC.get(name.removeprefix("math.").removeprefix("nn.").removeprefix("__operators__."))
        if arithmetic is None or other is None or not _is_tensor(tensor):
            raise ValueError(f"TensorFlow's {name} is not known here")
        return arithmetic(tensor, other)

    return call


def _rescaled(tensor: Any, scale: Any = 1.0, offset: Any = 0.0) -> Any:
    return keras.layers.Rescaling(_to_list(scale), _to_list(offset))(tensor)


def _to_list(value: Any) -> Any:
    return np.asarray(value, np.float32).tolist()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


SECOND_ARGUMENT = ("y", "bias", "slice_spec")  # the names that functions give their second argument
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "truediv": lambda x, y: x / y if _is_tensor(y) else _rescaled(x, 1 / np.asarray(y, np.float64)),
    "divide": lambda x, y: x / y if _is_tensor(y) else _rescaled(x, 1 / np.asarray(y, np.float64)),
    "multiply": lambda x, y: x * y if _is_tensor(y) else _rescaled(x, y),
    "mul": lambda x, y: x * y if _is_tensor(y) else _rescaled(x, y),
    "add": lambda x, y: x + y if _is_tensor(y) else _rescaled(x, 1.0, y),
    "subtract": lambda x, y: x - y if _is_tensor(y) else _rescaled(x, 1.0, -np.asarray(y)),
    "sub": lambda x, y: x - y if _is_tensor(y) else _rescaled(x, 1.0, -np.asarray(y)),
    "bias_add": lambda x, y: _rescaled(x, 1.0, y),
}


def _is_channel_reversal(index: Any) -> bool:
    """Return True for [..., ::-1], which turns RGB into BGR."""
    return isinstance(index, (list, tuple)) and list(index) in (
        [Ellipsis, slice(None, None, -1)],
        [Ellipsis, _REVERSED_SLICE],
    )


_REVERSED_SLICE = {"start": None, "stop": None, "step": -1}  # how a node stores a slice
