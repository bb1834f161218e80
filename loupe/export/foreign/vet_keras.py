"""Check a Keras file of unknown origin before any library builds it. No code from it is ever run.

config = check_keras_file(Path("model.h5"))     # its model's configuration; raises UserError
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras

from loupe.cli import plain
from loupe.errors import UserError
from loupe.export.foreign import keras2

# What a file may name: the classes and functions that Keras and tf_keras bring with them and that only compute.
CODE_LAYERS = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "TensorFlowOpLayer"}
FILE_READERS = {"TextVectorization", "StringLookup", "IntegerLookup", "DenseFeatures"}  # they read vocabulary files
BASE_CLASSES = {"Layer", "Wrapper", "AbstractRNNCell"}
VALUE_CLASSES = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__bytes__", "__tuple__",
                 "TensorShape"}  # fmt: skip
NETWORKS = {"Functional", "Model", "Sequential"}
NETWORK_MODULES = {"keras", "keras.models", "keras.engine.functional", "keras.engine.sequential",
                   "keras.engine.training", "keras.src.engine.functional", "keras.src.engine.sequential",
                   "keras.src.engine.training", "keras.src.models.functional", "keras.src.models.sequential",
                   "keras.src.models.model"}  # fmt: skip
OWN_MODULES = {"keras.src.applications.convnext", "keras.src.applications.inception_resnet_v2",
               "keras.src.applications.efficientnet"}  # fmt: skip
NAMESPACES = ("layers", "initializers", "regularizers", "constraints", "dtype_policies", "mixed_precision",
              "optimizers", "optimizers.schedules", "losses", "metrics")  # fmt: skip
FUNCTION_NAMESPACES = ("activations", "losses", "metrics", "initializers", "regularizers", "constraints")
NO_COMPUTATION = {"get", "serialize", "deserialize"}
OPERATIONS = {f"keras.src.ops.{name}" for name in ("core", "image", "linalg", "math", "nn", "numpy")}
# Operations that call functions.
FUNCTION_CALLERS = {"Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond", "VectorizedMap"}
OLD_FUNCTIONS = {"zero", "one", "uniform", "normal", "glorot_uniform", "glorot_normal", "he_normal", "lecun_normal"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

CALL_PATTERN = re.compile(r"(math|nn|__operators__|compat\.v1\.nn|keras\.activations)\.[a-z][a-z0-9_]*")
ALLOWED_CALLS = {"reshape", "cast", "concat", "expand_dims", "squeeze", "transpose", "identity", "stack", "reverse",
                 "clip_by_value", "convert_to_tensor", "pad", "split", "unstack", "compat.v1.transpose",
                 "compat.v1.shape", "shape", "image.per_image_standardization", "image.resize",
                 "image.resize_with_pad", "image.resize_with_crop_or_pad", "compat.v1.image.resize_bilinear",
                 "compat.v1.image.resize_nearest_neighbor", "compat.v1.image.resize"}  # fmt: skip
KERAS_CALLS = {"abs", "batch_flatten", "bias_add", "cast", "cast_to_floatx", "clip", "concatenate", "conv2d", "dot",
               "elu", "exp", "expand_dims", "flatten", "hard_sigmoid", "l2_normalize", "log", "max", "maximum", "mean",
               "min", "minimum", "permute_dimensions", "pool2d", "pow", "relu", "reshape", "resize_images", "reverse",
               "round", "shape", "sigmoid", "sign", "softmax", "softplus", "softsign", "spatial_2d_padding", "sqrt",
               "square", "squeeze", "stack", "std", "stop_gradient", "sum", "tanh", "transpose", "var"}  # fmt: skip

# How large the described network may be.
WIDTH_KEYS = {"units", "filters", "depth_multiplier", "input_dim", "output_dim", "num_heads", "key_dim", "value_dim",
              "projection_dim"}  # of a layer, each a side of one of its weights  # fmt: skip
MAX_SIDES = {
    "kernel_size": 1000,
    "pool_size": 1000,
    "strides": 1000,
    "dilation_rate": 1000,
    "cropping": 1000,
    "padding": 1000,
    "size": 64,
    "n": 10_000,
    "num_tokens": 10_000,
}  # the largest value for each setting of a layer
SHAPE_KEYS = {"shape", "batch_shape", "batch_input_shape", "input_shape", "target_shape"}
MAX_VALUES = 10**8  # of one picture, at any place in the network: 4096 x 4096 x 3 is half of it
MAX_INTEGER = 100_000  # the largest other whole number
FREE_NUMBERS = {"seed", "shared_object_id"}  # may be any number
FUNCTION_KEYS = {
    "activation": ("activations",),
    "initializer": ("initializers",),
    "regularizer": ("regularizers",),
    "constraint": ("constraints",),
}  # end of a key → the namespaces of the function that its string names
CALL_LAYERS = {"TFOpLambda", "SlicingOpLambda"}  # Keras 2's layers that call a function of TensorFlow by its name
CODE_KEYS = ("_fn", "_fn_type", "_fn_module", "function_type", "marshal")
FUNCTION_MODULES = {None, "builtins", "keras.activations", "keras.losses", "keras.metrics"}
MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 100, 2**28  # a file may unpack to 100 times its size, and always to 256 MB


@dataclass(frozen=True)
class Weights:
    """The size of the weights in a file: the longest side, and how many numbers in all."""

    widest: int
    count: int


def check_keras_file(path: Path) -> dict[str, Any]:
    """Refuse a file that is damaged, runs code or claims sizes it does not have. Return its model's configuration."""
    try:
        config, weights = _hdf5(path) if h5py.is_hdf5(path) else _archive(path)
        _check_config(path, config, weights)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes h5py, zipfile and json raise errors of every type
        raise UserError(f"{path} cannot be read: it is damaged or cut short ({_first_line(error)}).") from error
    return config


def _hdf5(path: Path) -> tuple[dict[str, Any], Weights]:
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise UserError(f"{path} is an HDF5 file by another name: rename it to {path.stem}.h5.")
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None and (
            "layer_names" in file.attrs or "layers" in file or "_layer_checkpoint_dependencies" in file
        ):
            raise UserError(
                f"{path} holds weights alone, not the network: load them where it was built, and use model.save()."
            )
        if config is None:
            raise UserError(f"{path} is an HDF5 file without a Keras model in it.")
        return json.loads(config), _measure_weights(path, file, path.stat().st_size)


def _archive(path: Path) -> tuple[dict[str, Any], Weights]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no Keras model: neither HDF5 (.h5) nor a Keras archive (.keras), or cut short.")
    if path.suffix.lower() != ".keras":
        raise UserError(f"{path} is an archive by another name: if Keras wrote it, rename it to {path.stem}.keras.")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        _check_claim(path, sum(entry.file_size for entry in archive.infolist()), size)
        if missing := {"config.json", "model.weights.h5"} - set(archive.namelist()):
            raise UserError(f"{path} is an archive without {min(missing)}: it is no Keras model.")
        with archive.open("model.weights.h5") as data, h5py.File(data, "r") as file:
            return json.loads(archive.read("config.json")), _measure_weights(path, file, size)


def _measure_weights(path: Path, file: Any, size: int) -> Weights:
    """Return the size of the weights. Refuse links to other files, and sizes that the file cannot hold."""
    claimed, widest, count = 0, 0, 0
    for group in _groups(file):
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{path} refers to other files ({name}): it is no Keras model as Keras writes them.")
            entry = group[name]
            if isinstance(entry, h5py.Dataset):
                if entry.external or entry.is_virtual:
                    raise UserError(
                        f"{path} refers to other files ({name}): it is no Keras model as Keras writes them."
                    )
                claimed += entry.nbytes
                count += entry.size or 0
                widest = max([widest, *(entry.shape or ())])
    _check_claim(path, claimed, size)
    return Weights(widest, count)


def _groups(file: Any) -> Iterator[Any]:
    """Yield every group once, even if hard links go round in circles."""
    seen, waiting = set(), [file]
    while waiting:
        group = waiting.pop()
        if hash(group.id) in seen:
            continue
        seen.add(hash(group.id))
        yield group
        waiting += [
            group[name] for name in group if group.get(name, getclass=True, getlink=True) is h5py.HardLink
            and group.get(name, getclass=True) is h5py.Group
        ]  # fmt: skip


def _check_claim(path: Path, claimed: int, size: int) -> None:
    if claimed > max(MAX_EXPANSION * size, ALWAYS_ALLOWED_BYTES):
        raise UserError(f"{path} claims {claimed / 1e9:.1f} GB of weights in a file of {size / 1e6:.1f} MB: refused.")


def _check_config(path: Path, config: Any, weights: Weights) -> None:
    """Refuse anything unknown in the configuration, at any depth, and sizes larger than the file's weights."""
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no network's configuration: it is no Keras model.")
    # Walk through the configuration, from the top down.
    waiting: list[tuple[str, Any, bool]] = [("", {k: v for k, v in config.items() if k != "compile_config"}, False)]
    while waiting:  # compile_config, at the top or in a nested network, is not read: it is of the training
        key, node, in_training = waiting.pop()
        if isinstance(node, dict):
            _check_object(path, node)
            if isinstance(node.get("config"), dict):
                _check_weights(path, node, weights)
            for name, value in node.items():
                _check_key(path, node, name)
                if not in_training:
                    _check_value(path, name, value, weights)
                waiting.append((name, value, in_training or name == "compile_config"))
        elif isinstance(node, list):
            waiting += [(key, value, in_training) for value in node]
        elif isinstance(node, str) and not node.isprintable():
            raise UserError(f"{path} holds control characters ({plain(node, 60)}): no name or setting of Keras does.")
        elif (
            isinstance(node, int)
            and abs(node) > MAX_INTEGER
            and not in_training
            and key not in FREE_NUMBERS | WIDTH_KEYS
        ):
            raise UserError(f"{path} gives {plain(key, 60)} as {str(node)[:30]}: no layer is that large, refused.")


def _check_object(path: Path, config: dict[str, Any]) -> None:
    if "class_name" not in config:
        return
    # Take the object's names apart.
    class_name, module, registered, settings = (
        config.get(key) for key in ("class_name", "module", "registered_name", "config")
    )
    name = plain(str(settings.get("name", class_name) if isinstance(settings, dict) else class_name), 60)
    shown = plain(str(class_name), 60)
    # Refuse code, and calls that are not known.
    if str(class_name) in CODE_LAYERS:
        raise UserError(
            f"{path.name} holds program code, in its layer {name} ({shown}); code from a file is never run. Save the "
            "model with layers of Keras in its place, such as Rescaling."
        )
    if str(class_name) in CALL_LAYERS and module is None:
        function = str(settings.get("function") or "__operators__.getitem") if isinstance(settings, dict) else ""
        if not is_known_call(function):
            raise UserError(
                f"{path.name} calls TensorFlow's {plain(function, 60)} in its layer {name}: that is not supported."
            )
        return
    # Refuse classes and functions that Keras does not have.
    well_formed = isinstance(class_name, str) and NAME.fullmatch(class_name) and isinstance(module, str | None)
    if class_name == "function":
        allowed = well_formed and registered in (None, settings, "function") and module in FUNCTION_MODULES
        allowed = allowed and isinstance(settings, str) and is_function(settings)
    else:
        allowed = well_formed and registered in (None, class_name) and is_known(str(class_name), module)
    if not allowed:
        raise UserError(
            f"{path.name} holds a layer or function that Keras does not know, {shown} ({name}), and not its code. "
            "Where that is, write the model by model.export(…), and convert the SavedModel."
        )


def _check_key(path: Path, config: dict[str, Any], key: str) -> None:
    if key.endswith(CODE_KEYS) or (key == "function" and config.get("function") and not _is_call(config)):
        raise UserError(f"{path.name} holds program code ({plain(key, 60)}); code from a file is never run.")


def _is_call(config: dict[str, Any]) -> bool:
    return isinstance(config["function"], str) and is_known_call(config["function"])


def _check_value(path: Path, key: str, value: Any, weights: Weights) -> None:
    """Refuse sizes that the weights do not have, and functions that Keras does not have."""
    shown = plain(str(value), 60)
    if key in WIDTH_KEYS and value is not None:
        if not isinstance(value, int):
            raise UserError(f"{path} gives {key} as {shown}, which is no whole number: refused.")
        if value > weights.widest:
            raise UserError(f"{path} names a layer {value} wide, and holds no weights of that size: refused.")
    if key in MAX_SIDES and not (key == "padding" and value in ("same", "valid", "causal")):
        sides = _flattened(value)
        if not all(side is None or (isinstance(side, int) and abs(side) <= MAX_SIDES[key]) for side in sides):
            raise UserError(f"{path} gives a layer the {key} {shown}: whole numbers up to {MAX_SIDES[key]} are taken.")
    if key in SHAPE_KEYS and any(math.prod(shape) > MAX_VALUES for shape in _shapes(value)):
        raise UserError(f"{path} names a shape of {shown}: no picture is that large, refused.")
    for end, namespaces in FUNCTION_KEYS.items():
        if key.endswith(end) and isinstance(value, str) and not is_function(value, namespaces):
            raise UserError(f"{path.name} names the {end} {shown}, which Keras does not know.")


def _check_weights(path: Path, node: dict[str, Any], weights: Weights) -> None:
    """Refuse a kernel that is larger than all weights together."""
    class_name, config = str(node.get("class_name")), node["config"]
    sides = [side for side in _flattened(config.get("kernel_size")) if isinstance(side, int)]
    if len(sides) == 1:
        sides *= next((n for n in (1, 2, 3) if f"{n}D" in class_name), 2)
    count = math.prod(sides) if sides else 0
    if class_name.startswith("Conv") and isinstance(config.get("filters"), int):
        count *= config["filters"]
    if isinstance(rows := config.get("input_dim"), int) and isinstance(columns := config.get("output_dim"), int):
        count = max(count, rows * columns)
    if count > weights.count:
        raise UserError(
            f"{path} names a layer of {count} weights ({plain(class_name, 60)}), and holds {weights.count} in all: "
            "refused."
        )


def _shapes(value: Any) -> Iterator[list[int]]:
    """Yield the known sides of each shape in `value`, which is one shape or several."""
    if isinstance(value, list):
        yield [abs(side) for side in value if isinstance(side, int) and side]
        for each in value:
            yield from _shapes(each)


def _flattened(value: Any) -> list[Any]:
    return [side for each in value for side in _flattened(each)] if isinstance(value, list) else [value]


def _first_line(error: BaseException) -> str:
    return plain((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


@functools.cache
def is_known(class_name: str, module: str | None) -> bool:
    """Return True if a file may name this class: one of Keras that only computes."""
    if class_name in VALUE_CLASSES:
        return module is None or module == "builtins"
    if class_name in CODE_LAYERS | FILE_READERS | BASE_CLASSES:
        return False
    if class_name in NETWORKS:
        return module is None or module.removeprefix("tf_") in NETWORK_MODULES
    if class_name in keras2.OWN_LAYERS:
        return module is None or module.removeprefix("tf_") in OWN_MODULES
    if module in OPERATIONS:
        return _is_operation(class_name, module)
    return _is_member(keras, class_name, module) or _is_member(keras2.library(), class_name, module)


@functools.cache
def is_function(name: str, namespaces: tuple[str, ...] = FUNCTION_NAMESPACES) -> bool:
    """Return True if a function of Keras has that name, or a class that may stand where a function is named."""
    if name in NO_COMPUTATION or not NAME.fullmatch(name):
        return False
    if (
        any(callable(getattr(_namespace(keras, namespace), name, None)) for namespace in namespaces)
        or name in OLD_FUNCTIONS
    ):
        return True
    return any(
        callable(getattr(_namespace(keras2.library(), namespace), name, None)) for namespace in (*namespaces, "layers")
    )


def is_known_call(function: str) -> bool:
    """Return True if a layer of Keras 2 may call this function of TensorFlow."""
    if function.startswith("keras.backend."):
        return function.removeprefix("keras.backend.") in KERAS_CALLS
    return bool(CALL_PATTERN.fullmatch(function)) or function in ALLOWED_CALLS


def _is_operation(class_name: str, module: str) -> bool:
    member = getattr(sys.modules.get(module), class_name, None)
    return isinstance(member, type) and member.__module__ == module and issubclass(member, keras.Operation) and (
        class_name not in FUNCTION_CALLERS
    )  # fmt: skip


def _is_member(library: Any, class_name: str, module: str | None) -> bool:
    for namespace in NAMESPACES:
        member = getattr(_namespace(library, namespace), class_name, None)
        if isinstance(member, type) and module in _modules(member, namespace):
            return namespace != "layers" or issubclass(member, library.layers.Layer)
    return False


def _modules(member: type, namespace: str) -> set[str | None]:
    """Return the module names that any version of Keras writes for one of its own classes."""
    own = member.__module__.removeprefix("tf_")
    names = {own, own.replace(".src.", "."), f"keras.{namespace}"}
    if namespace in ("dtype_policies", "mixed_precision"):
        names.add("keras")
    return {None, *names, *(f"tf_{name}" for name in names)}


@functools.cache
def _namespace(library: Any, name: str) -> Any:
    for segment in name.split("."):
        library = getattr(library, segment, None)
    return library
