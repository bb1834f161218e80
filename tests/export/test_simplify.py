"""A network made lean gives the same answers, with fewer layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from loupe.export.graph.simplify import flat, folded, in_precision
from loupe.gradcam import split
from loupe.training.network.backbones import BACKBONES, build_trunk, with_head
from tests.support.networks import network

PIXELS = np.random.default_rng(2).integers(0, 256, (4, 80, 75, 3)).astype(np.float32)


def answers(model: keras.Model, pixels: Any = PIXELS) -> Any:
    return np.asarray(model(pixels, training=False), np.float32)


def norms(model: keras.Model) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def experienced(model: keras.Model) -> keras.Model:
    """Give batch norm statistics: without any it does nothing that merging could get wrong."""
    random = np.random.default_rng(1)
    for norm in norms(model):
        width = norm.moving_mean.shape
        norm.moving_mean.assign(random.normal(0, 0.2, width))
        norm.moving_variance.assign(random.uniform(0.5, 2, width))
        for weight, low in ((norm.gamma, 0.5), (norm.beta, -0.3)):
            if weight is not None:
                weight.assign(random.uniform(low, low + 0.8, width))
    return model


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2",
        "cnn-large",
        *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(BACKBONES) if name != "mobilenetv2"),
    ],
)
def test_every_norm_of_every_backbone_is_merged_and_the_answers_stay(name: str) -> None:
    model = experienced(with_head(build_trunk(name, 80, 75), classes=3, head=8, dropout=0.2))
    lean = folded(flat(model))
    wanted = answers(model)
    assert not norms(lean)
    assert np.abs(answers(lean) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_norm_is_left_alone_where_somebody_else_listens_or_an_activation_comes_before() -> None:
    image = keras.Input((16, 16, 3))
    heard = layers.Conv2D(4, 3, padding="same")(image)
    x = layers.Add()([heard, layers.BatchNormalization()(heard)])
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))
    x = layers.BatchNormalization()(layers.MaxPooling2D()(x))
    x = layers.BatchNormalization(scale=False, center=False)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    model = experienced(keras.Model(image, x))
    lean = folded(model)
    assert len(norms(lean)) == 3
    assert np.abs(answers(lean, PIXELS[:, :16, :16]) - answers(model, PIXELS[:, :16, :16])).max() < 1e-4


def test_a_convolution_that_is_used_twice_keeps_its_norm() -> None:
    image = keras.Input((16, 16, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    x = layers.BatchNormalization()(shared(shared(image)))
    model = experienced(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    lean = folded(flat(model))
    assert len(norms(lean)) == 1
    assert np.abs(answers(lean, PIXELS[:, :16, :16]) - answers(model, PIXELS[:, :16, :16])).max() < 1e-4


def test_nested_networks_become_one_flat_one_without_what_only_training_needs() -> None:
    backbone = keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.35, include_top=False, weights=None)
    image = keras.Input((64, 64, 3), name="photo")
    x = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])(image)
    x = backbone(layers.Rescaling(1 / 127.5, -1)(x), training=False)
    head = keras.Sequential([layers.Dropout(0.3), layers.Dense(4)])
    model = keras.Model(image, head(layers.GlobalAveragePooling2D()(x)))
    experienced(backbone)
    lean = flat(model)
    assert not [layer for layer in lean.layers if isinstance(layer, keras.Model) or "random" in layer.name]
    assert np.abs(answers(lean, PIXELS[:, :64, :64]) - answers(model, PIXELS[:, :64, :64])).max() < 1e-6
    assert split(lean)[0].name.startswith("global_average")
    assert not norms(folded(lean))


def test_in_bfloat16_scaling_and_head_stay_in_float32() -> None:
    model = in_precision(folded(flat(network())), "bfloat16")
    kinds = {layer.name: layer.compute_dtype for layer in model.layers}
    assert kinds["features"] == "bfloat16"
    assert {kinds[name] for name in ("image", "scale", "logits")} == {"float32"}
    moved = np.abs(answers(model, PIXELS[:, :48, :64]) - answers(network(), PIXELS[:, :48, :64])).max()
    assert 0 < moved < 0.05 * np.abs(answers(network(), PIXELS[:, :48, :64])).max()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_what_was_trained_in_half_precision_computes_in_float32(policy: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = with_head(build_trunk("cnn", 64, 64), classes=3, head=8, dropout=0.2)
    finally:
        keras.config.set_dtype_policy(before)
    exact = in_precision(flat(model), "float32")
    assert {layer.compute_dtype for layer in exact.layers} == {"float32"}
    wanted = answers(model, PIXELS[:, :64, :64])
    assert np.abs(answers(exact, PIXELS[:, :64, :64]) - wanted).max() < 0.02 * np.abs(wanted).max()
