"""Pixels are scaled for models made elsewhere as those who made them scale them."""

from __future__ import annotations

from pathlib import Path

import keras
import keras_image_helper
import numpy as np
import pytest
import tensorflow as tf

from loupe.export.foreign.scaling import MODES, scaling_of
from tests.export.test_foreign import PICTURES, SHAPE, SIDES, assert_same, read, scaled, served
from tests.support.networks import coarse

MODULES = (
    "xception",
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet",
    "resnet50",
    "resnet_v2",
    "vgg16",
    "vgg19",
    "inception_v3",
    "inception_resnet_v2",
    "densenet",
    "nasnet",
    "efficientnet",
    "efficientnet_v2",
    "convnext",
)


@pytest.mark.parametrize("name", MODULES)
def test_pixels_are_scaled_as_keras_scales_them(name: str) -> None:
    scaling = scaling_of(name)
    wanted = getattr(keras.applications, name).preprocess_input(PICTURES.astype(np.float32))
    np.testing.assert_allclose(scaling.layers(tf.constant(PICTURES, tf.float32)), wanted, atol=1e-5)
    np.testing.assert_array_equal(scaling.of(PICTURES), wanted)


@pytest.mark.parametrize("name", sorted(keras_image_helper.helper.preprocessors))
def test_pixels_are_scaled_as_keras_image_helper_scales_them(name: str) -> None:
    helper = keras_image_helper.create_preprocessor(name, target_size=SIDES)
    wanted = helper.preprocess(PICTURES.astype(np.float32))
    np.testing.assert_allclose(scaling_of(name).layers(tf.constant(PICTURES, tf.float32)), wanted, atol=1e-5)


@pytest.mark.parametrize(("name", "largest"), [("rescale", 1), ("none", 255)])
def test_pixels_may_also_be_left_alone(name: str, largest: int) -> None:
    scaling, white = scaling_of(name), np.full((1, *SHAPE), 255, np.uint8)
    assert scaling.of(white).max() == pytest.approx(largest)
    assert tf.reduce_max(scaling.layers(tf.constant(white, tf.float32))).numpy() == pytest.approx(largest)


@pytest.mark.parametrize(
    ("name", "make"),
    [("vgg16", "VGG16"), ("resnet50", "ResNet50"), ("densenet", "DenseNet121"), ("convnext", "ConvNeXtTiny")],
)
@pytest.mark.slow
def test_networks_of_keras_answer_as_they_do_with_their_scaling(tmp_path: Path, name: str, make: str) -> None:
    size = (32, 32, 3)
    model = getattr(keras.applications, make)(weights=None, input_shape=size, classes=3, classifier_activation=None)
    head, pictures = model.layers[-1], coarse(6, size, 3)
    scale = getattr(keras.applications, name).preprocess_input
    logits = model.predict(scale(pictures.astype(np.float32)), verbose=0)
    kernel, bias = head.get_weights()
    head.set_weights([kernel / logits.std(0).max(), (bias - logits.mean(0)) / logits.std(0).max()])
    model.save(tmp_path / "model.h5")
    wanted = tf.nn.softmax(model.predict(scale(pictures.astype(np.float32)), verbose=0)).numpy()
    source = read(tmp_path / "model.h5", preprocess=name)
    assert_same(served(source, tmp_path / "1", pictures), wanted)
    assert not any("tf_keras" in note for note in source.notes)


def test_a_layer_that_is_used_twice_stays_one(tmp_path: Path) -> None:
    layers = keras.layers
    image = keras.Input(SHAPE)
    shared, pool = layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()
    both = layers.Concatenate()([pool(shared(image)), pool(shared(layers.AveragePooling2D(2)(image)))])
    model = keras.Model(image, layers.Dense(3, "softmax", kernel_initializer="orthogonal")(both))
    model.save(tmp_path / "model.h5")
    source = read(tmp_path / "model.h5")
    assert_same(served(source, tmp_path / "1"), model.predict(scaled(), verbose=0))
    assert source.model is not None
    assert source.model.count_params() == model.count_params()


def test_every_network_of_keras_applications_has_its_scaling() -> None:
    networks = [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(networks) > 30
    for name in networks:
        module = getattr(keras.applications, name).__module__.rpartition(".")[2]
        grey = np.full((1, 2, 2, 3), 100, np.float32)
        wanted = getattr(keras.applications, module).preprocess_input(grey.copy())
        assert name.lower() in MODES, "the table knows every network"
        np.testing.assert_array_equal(scaling_of(name).of(grey), wanted)
