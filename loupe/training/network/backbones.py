"""The networks: a backbone, its scaling and its head in one flat graph, from pixels of 0…255 to logits.

    trunk = build_trunk("xception", height=224, width=224, weights="imagenet")
    model = with_head(trunk, classes=10, head=256, dropout=0.2)
    freeze(model, last=15)                 # all but the head and the backbone's last 15 layers
    front, back = cut(model, last=15)      # two models that share its layers; front's output is what can be cached

Each backbone's own input range is handled by its first layers, so nobody outside can get it wrong. The export counts
on the names `pool` and `logits`, and on nothing but Dense and Dropout behind `pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from loupe.training.network import plain
from loupe.training.network.weights import copy, from_imagenet
from loupe.training.settings import PLAIN

CAFFE_MEANS = (103.939, 116.779, 123.68)  # blue, green, red: what ResNet50's weights were trained with


def _minus_one_to_one(image: Any) -> Any:
    return layers.Rescaling(1 / 127.5, offset=-1.0)(image)


def _caffe(image: Any) -> Any:
    return layers.Rescaling(1.0, offset=[-mean for mean in CAFFE_MEANS])(keras.ops.flip(image, axis=-1))


def _by_itself(image: Any) -> Any:
    return image


@dataclass(frozen=True)
class Backbone:
    make: Callable[..., keras.Model]
    scale: Callable[[Any], Any]
    file: str  # of its ImageNet weights, as Keras names it in ~/.keras/models


BACKBONES = {
    "xception": Backbone(
        keras.applications.Xception, _minus_one_to_one, "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "mobilenetv2": Backbone(
        keras.applications.MobileNetV2,
        _minus_one_to_one,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
    ),
    "resnet50": Backbone(
        keras.applications.ResNet50, _caffe, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "inceptionv3": Backbone(
        keras.applications.InceptionV3,
        _minus_one_to_one,
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "efficientnetv2b0": Backbone(
        keras.applications.EfficientNetV2B0, _by_itself, "efficientnetv2-b0_notop.h5"
    ),
}  # fmt: skip


def build_trunk(name: str, height: int, width: int, weights: str = "none") -> keras.Model:
    """From pixels to the last feature map. `weights`: imagenet, none, or a file or a run's folder."""
    image = layers.Input((height, width, 3), name="image")
    if name in PLAIN:
        features = plain.trunk(name, image)
    else:
        backbone = BACKBONES[name]
        pixels = backbone.scale(image)
        if weights == "imagenet":
            features = from_imagenet(backbone.make, pixels, backbone.file, height)
        else:
            features = backbone.make(weights=None, include_top=False, input_tensor=pixels).output
    trunk = keras.Model(image, features)
    if weights not in ("imagenet", "none"):
        copy(weights, trunk)
    return trunk


def with_head(trunk: keras.Model, classes: int, head: int, dropout: float) -> keras.Model:
    pooled = layers.GlobalAveragePooling2D(name="pool")(trunk.output)
    return keras.Model(trunk.input, head_of(pooled, classes, head, dropout))


def head_of(x: Any, classes: int, head: int, dropout: float) -> Any:
    if head:
        x = layers.Dense(head, activation="relu", name="head")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(classes, name="logits", dtype="float32")(x)  # in float32 whatever the rest is in


def trunk_of(model: keras.Model) -> list[Any]:
    """The backbone's layers, scaling included, in the order they compute."""
    names = [layer.name for layer in model.layers]
    return list(model.layers[1 : names.index("pool")])


def freeze(model: keras.Model, last: int, keep_norms: bool = True) -> int:
    """Only the head and the backbone's last layers learn; how many of these there are. With `keep_norms` the batch
    normalisation among them stays as it was learnt (inference mode): few pictures would spoil its averages."""
    trunk = trunk_of(model)
    first = max(0, len(trunk) - last)
    for number, layer in enumerate(trunk):
        norm = isinstance(layer, layers.BatchNormalization)
        layer.trainable = number >= first and not (norm and keep_norms)
    return len(trunk) - first


def cut(model: keras.Model, last: int) -> tuple[keras.Model, keras.Model]:
    """The part that stays as it is, and the rest with the last layers: the latest place where one tensor is all that
    passes. With last=0 that is behind the pooling, and the rest is the head alone."""
    operations = list(model.operations)
    place = {id(operation): number for number, operation in enumerate(operations)}
    names = [operation.name for operation in operations]
    latest = names.index("pool") if not last else place[id(trunk_of(model)[max(0, len(trunk_of(model)) - last)])] - 1
    furthest, best = 0, 0
    for number, operation in enumerate(operations[: latest + 1]):
        if furthest <= number:
            best = number
        used_by = [place[id(node.operation)] for node in operation._outbound_nodes if id(node.operation) in place]
        furthest = max(furthest, *used_by)
    boundary = operations[best].output
    return keras.Model(model.input, boundary), keras.Model(boundary, model.output)
