"""Files of Keras 2 that Keras 3 cannot load: the legacy library tf_keras loads them, and where it can be done, Keras 3
layers are put together in the same way, with the same weights.

    model = load(Path("model.h5"))            # a model of tf_keras
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

EVERY_LAYER_TAKES = {"name", "trainable", "dtype"}
OWN = ("LayerScale", "StochasticDepth", "CustomScaleLayer")  # of keras.applications
SAME = {"SyncBatchNormalization": "BatchNormalization"}  # in inference


def library() -> Any:
    import tf_keras  # takes seconds, and few need it

    return tf_keras


def own_layers(library: Any) -> dict[str, Any]:
    """Those that its own networks bring with them, and that it finds by no other way: ConvNeXt's LayerScale."""
    networks = library.src.applications
    modules = (networks.convnext, networks.inception_resnet_v2)
    return {name: kind for module in modules for name in OWN if (kind := getattr(module, name, None))}


class Add(keras.layers.Add):  # type: ignore[misc]
    """Also of what `x + y` leaves in an .h5: an operation called like the layer, and given two tensors for its list."""

    def __call__(self, *given: Any, **options: Any) -> Any:
        return super().__call__(list(given) if len(given) > 1 else given[0], **options)


def load_now(path: Path) -> keras.Model:
    """By Keras 3."""
    added = {"Add": Add} if path.suffix.lower() != ".keras" else {}
    return keras.saving.load_model(path, custom_objects={**own_layers(keras), **added}, compile=False)


def load(path: Path) -> Any:
    try:
        return library().models.load_model(path, custom_objects=own_layers(library()), compile=False)
    except Exception as error:  # whatever a damaged or unknown file makes it raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"Neither Keras 3 nor the legacy tf_keras can load {path}: {reason}") from error


def rebuilt(model: Any) -> keras.Model:
    """Called node by node, nested networks inlined."""
    image = keras.Input(model.inputs[0].shape[1:], name="image")
    made: dict[int, tuple[Any, Any]] = {}  # Keras 2's layer by its id, and what stands for it
    copy = keras.Model(image, _through(model, image, made))
    for old, new in made.values():
        if new.weights:
            new.set_weights([np.asarray(value) for value in old.get_weights()])
        if hasattr(new, "finalize_state"):  # what is computed of the weights: Normalization's
            new.finalize_state()
    return copy


def _through(model: Any, tensor: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    """As tf_keras runs a network: its nodes by their depth, each tensor once for every use of it."""
    uses = model._tensor_usage_count
    tensors = {str(id(model.inputs[0])): [tensor] * uses[str(id(model.inputs[0]))]}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(tensors)
            output = _called(node.layer, made)(*args, **kwargs)
            for key in node.flat_output_ids:
                tensors[str(key)] = [output] * uses[str(key)]
    return tensors[str(id(model.outputs[0]))].pop()


def _called(layer: Any, made: dict[int, tuple[Any, Any]]) -> Callable[..., Any]:
    if hasattr(layer, "_nodes_by_depth"):
        return lambda tensor, *_, **__: _through(layer, tensor, made)
    if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):
        return _function(layer)
    if id(layer) not in made:
        made[id(layer)] = layer, _like(layer, {new.name for _, new in made.values()})
    return lambda *args, **_: made[id(layer)][1](*args)  # without `training`: it is inference


def _like(layer: Any, taken: set[str]) -> Any:
    """The layer of Keras 3 by the same name, given what its constructor takes of the old one's configuration."""
    name = SAME.get(type(layer).__name__, type(layer).__name__)
    kind = getattr(keras.layers, name, None) or own_layers(keras).get(name)
    if kind is None:
        raise ValueError(f"Keras 3 has no layer {name}")
    known = set(inspect.signature(kind.__init__).parameters) | EVERY_LAYER_TAKES
    config = {key: value for key, value in layer.get_config().items() if key in known}
    if isinstance(axis := config.get("axis"), (list, tuple)) and len(axis) == 1:
        config["axis"] = axis[0]
    config["dtype"] = "float32"
    config["name"] = config["name"].replace("/", "_") + "_"  # no slash in Keras 3, and no name it gives by itself
    while config["name"] in taken:
        config["name"] += "_"
    try:
        return kind.from_config(config)
    except Exception as error:  # its message holds the whole configuration
        raise ValueError(f"its {name} does not take what {layer.name} is") from error


def _function(layer: Any) -> Callable[..., Any]:
    """Of those that Keras 2's own scaling and networks leave in a file."""
    name = layer.get_config().get("function") or "__operators__.getitem"

    def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        other = next((value for value in [*args, *(kwargs.get(key) for key in OTHER)] if value is not None), None)
        if name.endswith("getitem") and _reverses(other):
            return keras.ops.flip(tensor, axis=-1)
        arithmetic = ARITHMETIC.get(name.removeprefix("math.").removeprefix("nn.").removeprefix("__operators__."))
        if arithmetic is None or other is None or not _is_tensor(tensor):
            raise ValueError(f"TensorFlow's {name} is not known here")
        return arithmetic(tensor, other)

    return call


def _scaled(tensor: Any, scale: Any = 1.0, offset: Any = 0.0) -> Any:
    return keras.layers.Rescaling(_plain(scale), _plain(offset))(tensor)


def _plain(value: Any) -> Any:
    return np.asarray(value, np.float32).tolist()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


OTHER = ("y", "bias", "slice_spec")  # by what name a function takes its other argument
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "truediv": lambda x, y: x / y if _is_tensor(y) else _scaled(x, 1 / np.asarray(y, np.float64)),
    "divide": lambda x, y: x / y if _is_tensor(y) else _scaled(x, 1 / np.asarray(y, np.float64)),
    "multiply": lambda x, y: x * y if _is_tensor(y) else _scaled(x, y),
    "mul": lambda x, y: x * y if _is_tensor(y) else _scaled(x, y),
    "add": lambda x, y: x + y if _is_tensor(y) else _scaled(x, 1.0, y),
    "subtract": lambda x, y: x - y if _is_tensor(y) else _scaled(x, 1.0, -np.asarray(y)),
    "sub": lambda x, y: x - y if _is_tensor(y) else _scaled(x, 1.0, -np.asarray(y)),
    "bias_add": lambda x, y: _scaled(x, 1.0, y),
}


def _reverses(index: Any) -> bool:
    """Whether it is [..., ::-1], as RGB is made BGR."""
    return isinstance(index, (list, tuple)) and list(index) in (
        [Ellipsis, slice(None, None, -1)],
        [Ellipsis, _BACKWARDS],
    )


_BACKWARDS = {"start": None, "stop": None, "step": -1}  # as a node keeps a slice
