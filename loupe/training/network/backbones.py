"""Build a network: a backbone, its scaling and its head in one flat graph, from pixels of 0…255 to logits.

    trunk = build_trunk("xception", height=224, width=224, weights="imagenet")
    model = with_head(trunk, classes=10, head=256, dropout=0.2)
    freeze(model, last=15)                 # all but the head and the backbone's last 15 layers
    front, back = cut(model, last=15)      # two models that share its layers; front's output can be cached

The first layers scale pixels to each backbone's own input range, so no caller needs to know it. The export relies on
the names `pool` and `logits`, and on nothing but Dense and Dropout behind `pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import layers

from loupe.training.network import efficientnet_lite, plain
from loupe.training.network.weights import copy, from_imagenet
from loupe.training.settings import PLAIN

CAFFE_MEANS = (103.939, 116.779, 123.68)  # blue, green, red: ResNet50's weights were trained with them


def _scale_to_one(image: Any) -> Any:
    return layers.Rescaling(1 / 127.5, offset=-1.0)(image)


def _caffe_scaling(image: Any) -> Any:
    return layers.Rescaling(1.0, offset=[-mean for mean in CAFFE_MEANS])(keras.ops.flip(image, axis=-1))


def _no_scaling(image: Any) -> Any:
    return image


def _headless(make: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
    return partial(make, include_top=False)


@dataclass(frozen=True)
class Backbone:
    make: Callable[..., keras.Model]
    scale: Callable[[Any], Any]
    file: str | None  # name of its ImageNet weights in ~/.keras/models, where Keras downloads them


BACKBONES = {
    "xception": Backbone(
        _headless(keras.applications.Xception), _scale_to_one, "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "mobilenetv2": Backbone(
        _headless(keras.applications.MobileNetV2),
        _scale_to_one,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
    ),
    "resnet50": Backbone(
        _headless(keras.applications.ResNet50), _caffe_scaling, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "inceptionv3": Backbone(
        _headless(keras.applications.InceptionV3),
        _scale_to_one,
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetv2b0": Backbone(
        _headless(keras.applications.EfficientNetV2B0), _no_scaling, "efficientnetv2-b0_notop.h5"
    ),
    "efficientnetlite0": Backbone(efficientnet_lite.efficientnet_lite0, efficientnet_lite.scale, file=None),
}  # fmt: skip


def build_trunk(name: str, height: int, width: int, weights: str = "none") -> keras.Model:
    """Build the network from pixels to the last feature map. `weights` is imagenet, none, a file or a run's folder."""
    image = layers.Input((height, width, 3), name="image")
    if name in PLAIN:
        features = plain.trunk(name, image)
    else:
        backbone = BACKBONES[name]
        pixels = backbone.scale(image)
        if weights == "imagenet" and backbone.file:
            features = from_imagenet(backbone.make, pixels, backbone.file, height)
        else:
            features = backbone.make(weights=weights if weights == "imagenet" else None, input_tensor=pixels).output
    trunk = keras.Model(image, features)
    if weights not in ("imagenet", "none"):
        copy(weights, trunk)
    return trunk


def with_head(trunk: keras.Model, classes: int, head: int, dropout: float) -> keras.Model:
    pooled = layers.GlobalAveragePooling2D(name="pool")(trunk.output)
    return keras.Model(trunk.input, add_head(pooled, classes, head, dropout))


def add_head(x: Any, classes: int, head: int, dropout: float) -> Any:
    if head:
        x = layers.Dense(head, activation="relu", name="head")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(classes, name="logits", dtype="float32")(x)  # always float32, whatever the other layers use


def trunk_layers(model: keras.Model) -> list[Any]:
    """Return the backbone's layers, scaling included, in the order they compute."""
    names = [layer.name for layer in model.layers]
    return list(model.layers[1 : names.index("pool")])


def freeze(model: keras.Model, last: int, keep_norms: bool = True) -> int:
    """Let only the head and the backbone's last layers learn, and return how many layers of the backbone these are.

    With `keep_norms` the batch normalisation among them stays frozen (inference mode): few pictures would spoil its
    averages.
    """
    trunk = trunk_layers(model)
    first = max(0, len(trunk) - last)
    for number, layer in enumerate(trunk):
        is_norm = isinstance(layer, layers.BatchNormalization)
        layer.trainable = number >= first and not (is_norm and keep_norms)
    return len(trunk) - first


def cut(model: keras.Model, last: int) -> tuple[keras.Model, keras.Model]:
    """Cut the network into a front that stays frozen and a back with the last layers.

    The cut is at the latest place before these layers where a single tensor passes. With last=0 it is behind the
    pooling, and the back is the head alone.
    """
    # The last operation that may belong to the front.
    operations = list(model.operations)
    position = {id(operation): number for number, operation in enumerate(operations)}
    names = [operation.name for operation in operations]
    latest = (
        names.index("pool")
        if not last
        else position[id(trunk_layers(model)[max(0, len(trunk_layers(model)) - last)])] - 1
    )
    # Where each tensor is used last.
    last_use: dict[int, int] = {}
    for number, operation in enumerate(operations[1:], 1):
        last_use |= {id(tensor): number for tensor in keras.tree.flatten(operation.input)}
    # The latest place up to there whose output is all that later operations use.
    furthest_use, cut_at = 0, 0
    for number, operation in enumerate(operations[: latest + 1]):
        if furthest_use <= number:
            cut_at = number
        furthest_use = max(furthest_use, last_use.get(id(operation.output), 0))
    boundary = operations[cut_at].output
    return keras.Model(model.input, boundary), keras.Model(boundary, model.output)
