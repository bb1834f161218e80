"""What a Keras file may name: the classes and functions that Keras and tf_keras bring with them and that only compute.

is_known("Dense", "keras.layers")         # a class, by the module that the file gives, or None
is_function("relu")
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import keras

from loupe.export import legacy

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


@functools.cache
def is_known(kind: str, module: str | None) -> bool:
    if kind in VALUES:
        return module is None or module == "builtins"
    if kind in CODE | READERS | BARE:
        return False
    if kind in NETWORKS:
        return module is None or module.removeprefix("tf_") in NETWORK_MODULES
    if kind in legacy.OWN:
        return module is None or module.removeprefix("tf_") in OWN_MODULES
    if module in OPERATIONS:
        return _is_operation(kind, module)
    return _is_in(keras, kind, module) or _is_in(legacy.library(), kind, module)


@functools.cache
def is_function(name: str, of: tuple[str, ...] = FUNCTIONS) -> bool:
    """Or one of their classes, which may also be named where a function is."""
    if name in NO_COMPUTATION or not NAME.fullmatch(name):
        return False
    if any(callable(getattr(_space(keras, space), name, None)) for space in of) or name in OLD_NAMES:
        return True
    return any(callable(getattr(_space(legacy.library(), space), name, None)) for space in (*of, "layers"))


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
