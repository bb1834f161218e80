"""Pixels are scaled for models made elsewhere as those who made them scale them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import keras_image_helper
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from loupe.errors import UserError
from loupe.export.foreign.scaling import MODES, known_network, scaling_of
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


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("xception", "xception"), ("mobilenetv2_1.00_224", "mobilenetv2"), ("efficientnetv2-b0", "efficientnetv2b0"),
        ("MobileNetV3Small", "mobilenetv3small"), ("inception_resnet_v2", "inceptionresnetv2"),
        ("none", None), ("rescale", None), ("functional_3", None), ("my_xception", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("library", [keras, tf_keras])
def test_the_card_names_the_network_that_the_model_is_built_on_or_none(library: Any, name: str, network: str) -> None:
    """It was the name of the scaling: a network `rescale` that nobody ever built."""
    inner_image, image = library.Input((8, 8, 3)), library.Input((8, 8, 3))
    inner = library.Model(inner_image, library.layers.Conv2D(2, 3)(inner_image), name=name)
    pooled = library.layers.GlobalAveragePooling2D()(inner(image))
    assert known_network(library.Model(image, pooled, name="mine")) == network
    assert known_network(inner) == network


def test_a_savedmodel_whose_network_nothing_names_has_none_in_its_card(tmp_path: Path) -> None:
    image = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    keras.Model(image, keras.layers.Softmax()(x)).export(tmp_path / "theirs", verbose=False)
    assert read(tmp_path / "theirs", preprocess="rescale").card.backbone == {
        "source": "theirs",
        "preprocess": "rescale",
    }


def scaled_by(kind: str, image: Any) -> Any:
    """Return what a network made elsewhere does with its pixels before the first layer that learns."""
    layers = keras.layers
    if kind == "rescaling":
        return layers.Rescaling(1 / 255)(layers.RandomFlip("horizontal")(image))
    if kind == "operations":
        return keras.applications.mobilenet.preprocess_input(image)
    if kind == "means":
        return keras.applications.vgg16.preprocess_input(image)
    if kind == "normalization":
        return layers.Normalization(mean=[120.0, 110, 100], variance=[3000.0, 3000, 3000])(image)
    if kind == "from -1…1 to 0…1":
        return layers.Rescaling(0.5, 0.5)(image)
    return layers.BatchNormalization()(image) if kind == "batch normalization, not yet learnt" else image


def small_network(kind: str, path: Path) -> Path:
    image = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(scaled_by(kind, image)))
    keras.Model(image, keras.layers.Dense(3, "softmax", kernel_initializer="orthogonal")(x)).save(path)
    return path


@pytest.mark.parametrize("kind", ["rescaling", "operations", "means", "normalization"])
def test_a_network_that_scales_its_own_pixels_is_not_asked_how(tmp_path: Path, kind: str) -> None:
    """It was refused: nothing in the file tells. Whoever then named the backbone's scaling had it done twice."""
    path = small_network(kind, tmp_path / "model.keras")
    source = read(path, preprocess=None)
    assert source.card.backbone["preprocess"] == "none"
    assert any("--preprocess none" in note for note in source.notes)
    assert any("leave --preprocess out" in note for note in read(path, preprocess="mobilenet").notes)
    assert any("leave --preprocess out" in note for note in read(path, preprocess="vgg16").notes)
    assert not any("--preprocess" in note for note in read(path, preprocess="none").notes)


@pytest.mark.parametrize("kind", ["nothing", "from -1…1 to 0…1", "batch normalization, not yet learnt"])
def test_a_network_that_does_not_is_asked(tmp_path: Path, kind: str) -> None:
    path = small_network(kind, tmp_path / "model.keras")
    with pytest.raises(UserError, match="nothing in the file tells"):
        read(path, preprocess=None)
    assert not any("--preprocess" in note for note in read(path, preprocess="rescale").notes)


def test_who_is_asked_for_the_scaling_is_told_the_network_s_own(tmp_path: Path) -> None:
    image = keras.Input((32, 32, 3))
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    pooled = keras.layers.GlobalAveragePooling2D()(base(image))
    keras.Model(image, keras.layers.Dense(3, "softmax")(pooled)).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="--preprocess takes mobilenetv2 where its preprocess_input was used"):
        read(tmp_path / "model.keras", preprocess=None)


def test_a_source_answers_as_it_would_with_the_other_scalings(tmp_path: Path) -> None:
    image = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    keras.Model(image, keras.layers.Dense(3, "softmax", kernel_initializer="orthogonal")(x)).save(tmp_path / "m.keras")
    source = read(tmp_path / "m.keras", preprocess="mobilenet")
    assert set(source.rescaled) == {"rescale", "none", "resnet50", "densenet"}
    wanted = read(tmp_path / "m.keras", preprocess="rescale").reference(PICTURES)
    np.testing.assert_array_equal(source.rescaled["rescale"](PICTURES), wanted)


def test_freezing_a_savedmodel_says_nothing_of_tensorflows_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow told how many GPUs were eligible."""
    image = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    keras.Model(image, keras.layers.Softmax()(x)).export(tmp_path / "theirs", verbose=False)
    capfd.readouterr()
    read(tmp_path / "theirs", preprocess="rescale")
    assert capfd.readouterr().err == ""
