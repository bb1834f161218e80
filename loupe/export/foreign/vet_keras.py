"""What a Keras file of unknown origin says it holds, read before any library builds it: no code from it is ever run.

config = vetted(Path("model.h5"))         # its model's configuration; raises UserError
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
CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "TensorFlowOpLayer"}
READERS = {"TextVectorization", "StringLookup", "IntegerLookup", "DenseFeatures"}  # of vocabularies and such, in files
BARE = {"Layer", "Wrapper", "AbstractRNNCell"}
VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__bytes__", "__tuple__",
          "TensorShape"}  # fmt: skip
NETWORKS = {"Functional", "Model", "Sequential"}
NETWORK_MODULES = {"keras", "keras.models", "keras.engine.functional", "keras.engine.sequential",
                   "keras.engine.training", "keras.src.engine.functional", "keras.src.engine.sequential",
                   "keras.src.engine.training", "keras.src.models.functional", "keras.src.models.sequential",
                   "keras.src.models.model"}  # fmt: skip
OWN_MODULES = {"keras.src.applications.convnext", "keras.src.applications.inception_resnet_v2",
               "keras.src.applications.efficientnet"}  # fmt: skip
SPACES = ("layers", "initializers", "regularizers", "constraints", "dtype_policies", "mixed_precision",
          "optimizers", "optimizers.schedules", "losses", "metrics")  # fmt: skip
FUNCTIONS = ("activations", "losses", "metrics", "initializers", "regularizers", "constraints")
NO_COMPUTATION = {"get", "serialize", "deserialize"}
OPERATIONS = {f"keras.src.ops.{name}" for name in ("core", "image", "linalg", "math", "nn", "numpy")}
CALLERS = {"Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond", "VectorizedMap"}  # of functions
OLD_NAMES = {"zero", "one", "uniform", "normal", "glorot_uniform", "glorot_normal", "he_normal", "lecun_normal"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

CALLED = re.compile(r"(math|nn|__operators__|compat\.v1\.nn|keras\.activations)\.[a-z][a-z0-9_]*")
CALLED_BY_NAME = {"reshape", "cast", "concat", "expand_dims", "squeeze", "transpose", "identity", "stack", "reverse",
                  "clip_by_value", "convert_to_tensor", "pad", "split", "unstack", "compat.v1.transpose",
                  "compat.v1.shape", "shape", "image.per_image_standardization", "image.resize",
                  "image.resize_with_pad", "image.resize_with_crop_or_pad", "compat.v1.image.resize_bilinear",
                  "compat.v1.image.resize_nearest_neighbor", "compat.v1.image.resize"}  # fmt: skip
OF_BACKEND = {"abs", "batch_flatten", "bias_add", "cast", "cast_to_floatx", "clip", "concatenate", "conv2d", "dot",
              "elu", "exp", "expand_dims", "flatten", "hard_sigmoid", "l2_normalize", "log", "max", "maximum", "mean",
              "min", "minimum", "permute_dimensions", "pool2d", "pow", "relu", "reshape", "resize_images", "reverse",
              "round", "shape", "sigmoid", "sign", "softmax", "softplus", "softsign", "spatial_2d_padding", "sqrt",
              "square", "squeeze", "stack", "std", "stop_gradient", "sum", "tanh", "transpose", "var"}  # fmt: skip

# How large what it describes may be.
WIDTHS = {"units", "filters", "depth_multiplier", "input_dim", "output_dim", "num_heads", "key_dim", "value_dim",
          "projection_dim"}  # a layer's, each of which is a side of one of its weights  # fmt: skip
SIDES = {
    "kernel_size": 1000,
    "pool_size": 1000,
    "strides": 1000,
    "dilation_rate": 1000,
    "cropping": 1000,
    "padding": 1000,
    "size": 64,
    "n": 10_000,
    "num_tokens": 10_000,
}  # the most that a layer may be given
SHAPES = {"shape", "batch_shape", "batch_input_shape", "input_shape", "target_shape"}
MOST_VALUES = 10**8  # of one picture's, at any place: 4096 x 4096 x 3 is half of it
LARGEST = 100_000  # of any other whole number
NUMBERS = {"seed", "shared_object_id"}  # any number
NAMED = {
    "activation": ("activations",),
    "initializer": ("initializers",),
    "regularizer": ("regularizers",),
    "constraint": ("constraints",),
}  # what a string stands for, by how its key ends
CALLS = {"TFOpLambda", "SlicingOpLambda"}  # Keras 2's layers that call a function of TensorFlow by its name
CODE_KEYS = ("_fn", "_fn_type", "_fn_module", "function_type", "marshal")
FUNCTION_MODULES = {None, "builtins", "keras.activations", "keras.losses", "keras.metrics"}
EXPANSION, FLOOR = 100, 2**28  # what a file may unpack to: so many times its size, or so many bytes


@dataclass(frozen=True)
class Held:
    """Of the weights in a file: the longest side, and how many numbers."""

    widest: int
    values: int


def vetted(path: Path) -> dict[str, Any]:
    try:
        config, held = _hdf5(path) if h5py.is_hdf5(path) else _archive(path)
        _check(path, config, held)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes h5py, zipfile and json raise
        raise UserError(f"{path} cannot be read: it is damaged or cut short ({_line(error)}).") from error
    return config


def _hdf5(path: Path) -> tuple[dict[str, Any], Held]:
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
        return json.loads(config), _held(path, file, path.stat().st_size)


def _archive(path: Path) -> tuple[dict[str, Any], Held]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no Keras model: neither HDF5 (.h5) nor a Keras archive (.keras), or cut short.")
    if path.suffix.lower() != ".keras":
        raise UserError(f"{path} is an archive by another name: if Keras wrote it, rename it to {path.stem}.keras.")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        _check_claim(path, sum(entry.file_size for entry in archive.infolist()), size)
        if missing := {"config.json", "model.weights.h5"} - set(archive.namelist()):
            raise UserError(f"{path} is an archive without {min(missing)}: it is no Keras model.")
        with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as file:
            return json.loads(archive.read("config.json")), _held(path, file, size)


def _held(path: Path, file: Any, size: int) -> Held:
    """Of the file, whose links lead nowhere else and whose sizes it can hold."""
    claimed, widest, values = 0, 0, 0
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
                values += entry.size or 0
                widest = max([widest, *(entry.shape or ())])
    _check_claim(path, claimed, size)
    return Held(widest, values)


def _groups(file: Any) -> Iterator[Any]:
    """Every one once, though hard links may go round in circles."""
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
    if claimed > max(EXPANSION * size, FLOOR):
        raise UserError(f"{path} claims {claimed / 1e9:.1f} GB of weights in a file of {size / 1e6:.1f} MB: refused.")


def _check(path: Path, config: Any, held: Held) -> None:
    """Nothing in it but what is known, at any depth, and no size that the file's weights do not bear out."""
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no network's configuration: it is no Keras model.")
    waiting: list[tuple[str, Any, bool]] = [("", {k: v for k, v in config.items() if k != "compile_config"}, False)]
    while waiting:  # but for what it was trained by, which is not read; a network within it is given it, though
        key, part, trained = waiting.pop()
        if isinstance(part, dict):
            _check_object(path, part)
            if isinstance(part.get("config"), dict):
                _check_weights(path, part, held)
            for name, value in part.items():
                _check_key(path, part, name)
                if not trained:
                    _check_value(path, name, value, held)
                waiting.append((name, value, trained or name == "compile_config"))
        elif isinstance(part, list):
            waiting += [(key, value, trained) for value in part]
        elif isinstance(part, str) and not part.isprintable():
            raise UserError(f"{path} holds control characters ({plain(part, 60)}): no name or setting of Keras does.")
        elif isinstance(part, int) and abs(part) > LARGEST and not trained and key not in NUMBERS | WIDTHS:
            raise UserError(f"{path} gives {plain(key, 60)} as {str(part)[:30]}: no layer is that large, refused.")


def _check_object(path: Path, part: dict[str, Any]) -> None:
    if "class_name" not in part:
        return
    kind, module, registered, inner = (part.get(key) for key in ("class_name", "module", "registered_name", "config"))
    name = plain(str(inner.get("name", kind) if isinstance(inner, dict) else kind), 60)
    shown = plain(str(kind), 60)
    if str(kind) in CODE:
        raise UserError(
            f"{path.name} holds program code, in its layer {name} ({shown}); code from a file is never run. Save the "
            "model with layers of Keras in its place, such as Rescaling."
        )
    if str(kind) in CALLS and module is None:
        function = str(inner.get("function") or "__operators__.getitem") if isinstance(inner, dict) else ""
        if not is_called(function):
            raise UserError(
                f"{path.name} calls TensorFlow's {plain(function, 60)} in its layer {name}: that is not supported."
            )
        return
    named = isinstance(kind, str) and NAME.fullmatch(kind) and isinstance(module, str | None)
    if kind == "function":
        allowed = named and registered in (None, inner, "function") and module in FUNCTION_MODULES
        allowed = allowed and isinstance(inner, str) and is_function(inner)
    else:
        allowed = named and registered in (None, kind) and is_known(str(kind), module)
    if not allowed:
        raise UserError(
            f"{path.name} holds a layer or function that Keras does not know, {shown} ({name}), and not its code. "
            "Where that is, write the model by model.export(…), and convert the SavedModel."
        )


def _check_key(path: Path, part: dict[str, Any], key: str) -> None:
    if key.endswith(CODE_KEYS) or (key == "function" and part.get("function") and not _is_call(part)):
        raise UserError(f"{path.name} holds program code ({plain(key, 60)}); code from a file is never run.")


def _is_call(config: dict[str, Any]) -> bool:
    return isinstance(config["function"], str) and is_called(config["function"])


def _check_value(path: Path, key: str, value: Any, held: Held) -> None:
    shown = plain(str(value), 60)
    if key in WIDTHS and value is not None:
        if not isinstance(value, int):
            raise UserError(f"{path} gives {key} as {shown}, which is no whole number: refused.")
        if value > held.widest:
            raise UserError(f"{path} names a layer {value} wide, and holds no weights of that size: refused.")
    if key in SIDES and not (key == "padding" and value in ("same", "valid", "causal")):
        sides = _flat(value)
        if not all(side is None or (isinstance(side, int) and abs(side) <= SIDES[key]) for side in sides):
            raise UserError(f"{path} gives a layer the {key} {shown}: whole numbers up to {SIDES[key]} are taken.")
    if key in SHAPES and any(math.prod(shape) > MOST_VALUES for shape in _shapes(value)):
        raise UserError(f"{path} names a shape of {shown}: no picture is that large, refused.")
    for end, spaces in NAMED.items():
        if key.endswith(end) and isinstance(value, str) and not is_function(value, spaces):
            raise UserError(f"{path.name} names the {end} {shown}, which Keras does not know.")


def _check_weights(path: Path, part: dict[str, Any], held: Held) -> None:
    """A kernel is no larger than all weights together."""
    kind, config = str(part.get("class_name")), part["config"]
    sides = [side for side in _flat(config.get("kernel_size")) if isinstance(side, int)]
    if len(sides) == 1:
        sides *= next((n for n in (1, 2, 3) if f"{n}D" in kind), 2)
    asked = math.prod(sides) if sides else 0
    if kind.startswith("Conv") and isinstance(config.get("filters"), int):
        asked *= config["filters"]
    if isinstance(rows := config.get("input_dim"), int) and isinstance(columns := config.get("output_dim"), int):
        asked = max(asked, rows * columns)
    if asked > held.values:
        raise UserError(
            f"{path} names a layer of {asked} weights ({plain(kind, 60)}), and holds {held.values} in all: refused."
        )


def _shapes(value: Any) -> Iterator[list[int]]:
    """The sides that are given, of one or of several."""
    if isinstance(value, list):
        yield [abs(side) for side in value if isinstance(side, int) and side]
        for each in value:
            yield from _shapes(each)


def _flat(value: Any) -> list[Any]:
    return [side for each in value for side in _flat(each)] if isinstance(value, list) else [value]


def _line(error: BaseException) -> str:
    return plain((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


@functools.cache
def is_known(kind: str, module: str | None) -> bool:
    if kind in VALUES:
        return module is None or module == "builtins"
    if kind in CODE | READERS | BARE:
        return False
    if kind in NETWORKS:
        return module is None or module.removeprefix("tf_") in NETWORK_MODULES
    if kind in keras2.OWN:
        return module is None or module.removeprefix("tf_") in OWN_MODULES
    if module in OPERATIONS:
        return _is_operation(kind, module)
    return _is_in(keras, kind, module) or _is_in(keras2.library(), kind, module)


@functools.cache
def is_function(name: str, of: tuple[str, ...] = FUNCTIONS) -> bool:
    """Or one of their classes, which may also be named where a function is."""
    if name in NO_COMPUTATION or not NAME.fullmatch(name):
        return False
    if any(callable(getattr(_space(keras, space), name, None)) for space in of) or name in OLD_NAMES:
        return True
    return any(callable(getattr(_space(keras2.library(), space), name, None)) for space in (*of, "layers"))


def is_called(function: str) -> bool:
    """Of TensorFlow, by a layer of Keras 2."""
    if function.startswith("keras.backend."):
        return function.removeprefix("keras.backend.") in OF_BACKEND
    return bool(CALLED.fullmatch(function)) or function in CALLED_BY_NAME


def _is_operation(kind: str, module: str) -> bool:
    found = getattr(sys.modules.get(module), kind, None)
    return isinstance(found, type) and found.__module__ == module and issubclass(found, keras.Operation) and (
        kind not in CALLERS
    )  # fmt: skip


def _is_in(library: Any, kind: str, module: str | None) -> bool:
    for space in SPACES:
        found = getattr(_space(library, space), kind, None)
        if isinstance(found, type) and module in _modules(found, space):
            return space != "layers" or issubclass(found, library.layers.Layer)
    return False


def _modules(found: type, space: str) -> set[str | None]:
    """What Keras of any age writes as the module of a class of its own."""
    own = found.__module__.removeprefix("tf_")
    names = {own, own.replace(".src.", "."), f"keras.{space}"}
    if space in ("dtype_policies", "mixed_precision"):
        names.add("keras")
    return {None, *names, *(f"tf_{name}" for name in names)}


@functools.cache
def _space(library: Any, name: str) -> Any:
    for part in name.split("."):
        library = getattr(library, part, None)
    return library
