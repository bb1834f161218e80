"""Models that others made, by Keras 2, Keras 3 and TensorFlow, become Loupe's and answer what they answered before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from loupe.errors import UserError
from loupe.export.foreign.read import read_model
from loupe.export.graph.savedmodel import freeze, loaded, save
from loupe.export.source import Source, read_run
from loupe.export.variants.precision import network_in
from tests.support.networks import coarse, finished_run

SHAPE = (24, 30, 3)
SIDES = SHAPE[:2]
LABELS = "cup,fork,spoon"
PICTURES = coarse(6, SHAPE, 3)


def trunk(k: Any, shape: tuple[int | None, ...] = SHAPE) -> Any:
    image = k.Input(shape, name="any_name")
    x = k.layers.Conv2D(6, 3, strides=2, activation="relu")(image)
    x = k.layers.BatchNormalization()(x)
    x = k.layers.DepthwiseConv2D(3)(x)  # whose configuration, as Keras 2 writes it, Keras 3 refuses
    return k.Model(image, k.layers.SeparableConv2D(8, 2, activation="relu", name="features")(x), name="backbone")


def network(k: Any, *head: Any, shape: tuple[int | None, ...] = SHAPE, nested: bool = True) -> Any:
    """A picture's way through the trunk and `head`, with weights that tell the pictures apart."""
    base = trunk(k, shape)
    image = k.Input(shape, name="photo") if nested else base.input
    x = base(image, training=False) if nested else base.output
    for layer in head:
        x = layer(x)
    model = k.Model(image, x)
    random = np.random.default_rng(7)
    for layer in [*base.layers, *model.layers]:
        if isinstance(layer, k.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
        elif not hasattr(layer, "layers"):
            layer.set_weights([random.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])
    return model


def usual(k: Any, activation: str | None = "softmax", units: int = 3) -> list[Any]:
    return [k.layers.GlobalAveragePooling2D(), k.layers.Dropout(0.3), k.layers.Dense(units, activation=activation)]


def read(path: Path, **changes: Any) -> Source:
    asked = {"labels": LABELS, "preprocess": "xception", "size": None, "name": None, **changes}
    return read_model(path, **asked)


def served(source: Source, folder: Path, pictures: Any = PICTURES) -> dict[str, Any]:
    """Return what TensorFlow Serving would answer."""
    save(freeze(network_in(source, "float32"), source.card), source.card, folder)
    with loaded(folder) as ask:
        return ask("serving_default", {"image": pictures})


def assert_same(answer: dict[str, Any], wanted: Any) -> None:
    assert np.abs(answer["probabilities"] - wanted).max() < 1e-4
    assert np.ptp(wanted, axis=0).max() > 0.004, "the pictures are told apart"


def scaled(pictures: Any = PICTURES) -> Any:
    return pictures.astype(np.float32) / 127.5 - 1


def refused(match: str) -> AbstractContextManager[Any]:
    return pytest.raises(UserError, match=rf"^(?=.*{match})[^\n]*\Z")  # in one line


@pytest.mark.slow  # the small ones of Keras 2 below have such layers, too
def test_a_keras_2_file_with_groups_in_its_depthwise_layers_answers_as_it_did(tmp_path: Path) -> None:
    """MobileNet nested in a head as Keras 2.3 wrote it, as `Model`, and with preprocess_input in the network."""
    # Build the network, and save it in the old form.
    size = (64, 64, 3)
    image = tf_keras.Input(size, name="input_2")
    base = tf_keras.applications.MobileNet(size, alpha=0.25, include_top=False, weights=None)
    pictures = coarse(8, size, 1)
    for layer in base.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics are those of one batch
    base(scaled(pictures), training=True)
    x = base(tf_keras.applications.mobilenet.preprocess_input(image), training=False)
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    old = tf_keras.Model(image, tf_keras.layers.Dense(3, activation="softmax")(tf_keras.layers.Dropout(0.2)(x)))
    old.layers[-1].set_weights([np.random.default_rng(0).normal(0, 0.3, (256, 3)), np.zeros(3)])
    old.save(tmp_path / "Old Model.h5")
    with h5py.File(tmp_path / "Old Model.h5", "r+") as file:
        config = file.attrs["model_config"].replace('"class_name": "Functional"', '"class_name": "Model"')
        file.attrs["model_config"], file.attrs["keras_version"] = config, "2.3.1"
    assert '"groups": 1' in config
    with pytest.raises(ValueError):
        keras.saving.load_model(tmp_path / "Old Model.h5")

    # Its answers, notes and card are as they should be.
    source = read(tmp_path / "Old Model.h5", preprocess="none")
    wanted = old.predict(pictures.astype(np.float32), verbose=0)
    answer = served(source, tmp_path / "1", pictures)
    assert_same(answer, wanted)
    assert np.abs(source.reference(pictures) - wanted).max() < 1e-6
    assert source.notes == ("loaded by tf_keras, the legacy Keras 2: Keras 3 cannot load this file",)
    assert (source.card.name, source.card.labels) == ("old-model", ("cup", "fork", "spoon"))
    assert source.card.backbone == {"preprocess": "none", "source": "Old Model.h5", "name": "mobilenet"}
    assert answer["heatmap"].shape == (8, 2, 2)
    assert answer["heatmap"].max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("file", "nested"),
    [
        *(("new.keras", True), ("new.h5", False), ("old.h5", True), ("old.keras", False)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("new.keras", False), ("new.h5", True), ("old.h5", False), ("old.keras", True))
        ),
    ],
)
def test_a_keras_file_of_any_age_becomes_flat_and_explains_itself(tmp_path: Path, file: str, nested: bool) -> None:
    k = keras if file.startswith("new") else tf_keras
    model = network(k, *usual(k), nested=nested)
    model.save(tmp_path / file)
    source = read(tmp_path / file)
    answer = served(source, tmp_path / "1")
    assert_same(answer, model.predict(scaled(), verbose=0))
    assert np.abs(answer["probabilities"] - source.reference(PICTURES)).max() < 1e-5
    assert source.model is not None
    assert not any(isinstance(layer, keras.Model) for layer in source.model.layers)
    assert bool(source.notes) == (k is tf_keras)
    assert answer["heatmap"].shape[0] == 6


@pytest.mark.parametrize("k", [keras, tf_keras])
def test_a_sequential_within_a_sequential_is_read(tmp_path: Path, k: Any) -> None:
    layers = k.layers
    first = [k.Input(SHAPE)] if k is keras else [layers.InputLayer(SHAPE)]
    inner = k.Sequential([*first, layers.Conv2D(6, 5, strides=3, activation="relu", name="same")])
    outer = k.Sequential([*first, inner, layers.Conv2D(4, 3, name="same"), *usual(k, None), layers.Softmax()])
    outer.layers[-2].set_weights([np.random.default_rng(0).normal(0, 4, (4, 3)), np.ones(3)])
    outer.save(tmp_path / "model.h5")
    source = read(tmp_path / "model.h5")
    assert_same(served(source, tmp_path / "1"), outer.predict(scaled(), verbose=0))
    assert source.model is not None


@pytest.mark.parametrize("k", [keras, tf_keras])
def test_statistics_names_with_slashes_and_ends_in_a_dict_are_taken_over(tmp_path: Path, k: Any) -> None:
    image = k.Input(SHAPE, name="photo")
    norm = k.layers.Normalization(name="norm" if k is keras else "block/norm")
    norm.adapt(scaled())
    x = k.layers.DepthwiseConv2D(5)(norm(image))
    for number in range(9):  # what Keras 3 calls by itself as layers of the file are called
        x = k.layers.Rescaling(1.0, name=f"rescaling_{number}")(x * 1.01)
    for layer in usual(k):
        x = layer(x)
    model = k.Model({"photo": image}, {"scores": x})
    model.layers[-1].set_weights([np.random.default_rng(0).normal(0, 4, (3, 3)), np.zeros(3)])
    path = tmp_path / ("model.keras" if k is keras else "model.h5")
    model.save(path)
    source = read(path)
    answer = served(source, tmp_path / "1")
    assert_same(answer, model.predict({"photo": scaled()}, verbose=0)["scores"])
    assert "heatmap" in answer


@pytest.mark.parametrize(
    ("activation", "separate"),
    [
        *(("sigmoid", True), (None, False)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sigmoid", False), (None, True))),
    ],
)
def test_one_output_becomes_two_classes(tmp_path: Path, activation: str | None, separate: bool) -> None:
    head = usual(keras, None if separate else activation, units=1)
    model = network(keras, *head, *([keras.layers.Activation(activation or "linear")] if separate else []))
    model.save(tmp_path / "model.keras")
    source = read(tmp_path / "model.keras", labels="no,yes")
    output = model.predict(scaled(), verbose=0)
    yes = output if activation else 1 / (1 + np.exp(-output))
    answer = served(source, tmp_path / "1")
    assert_same(answer, np.concatenate([1 - yes, yes], axis=1))
    what = "probability" if activation else "logit"
    assert f"its one output is the {what} of yes, by its last layer; no has the rest" in source.notes
    assert "heatmap" in answer


def test_logits_are_known_by_the_last_layer(tmp_path: Path) -> None:
    model = network(keras, *usual(keras, None))
    model.save(tmp_path / "model.keras")
    logits = model.predict(scaled(), verbose=0)
    assert_same(served(read(tmp_path / "model.keras"), tmp_path / "1"), tf.nn.softmax(logits).numpy())
    with refused("do not add up to 1"):
        read(tmp_path / "model.keras", output="softmax")


LAYERS = keras.layers
HEADS: dict[str, Callable[[], list[Any]]] = {
    "averaged": lambda: usual(keras),
    "hidden": lambda: [LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(7, activation="relu"), LAYERS.Dense(3)],
    "flattened": lambda: [LAYERS.Flatten(), LAYERS.Dense(3, activation="softmax")],
    "flattened, hidden": lambda: [LAYERS.Flatten(), LAYERS.Dense(9, activation="elu"), LAYERS.Dense(3)],
    "largest": lambda: [LAYERS.GlobalMaxPooling2D(), LAYERS.Dense(3), LAYERS.Softmax()],
    "normalised": lambda: [LAYERS.GlobalAveragePooling2D(), LAYERS.BatchNormalization(), LAYERS.Dense(8),
                           LAYERS.BatchNormalization(), LAYERS.ReLU(), LAYERS.Dropout(0.5), LAYERS.Dense(3)],
    "pooled by its size": lambda: [LAYERS.AveragePooling2D((8, 11)), LAYERS.Flatten(), LAYERS.Dense(6, "tanh"),
                                   LAYERS.Dense(3)],
    "of sigmoids": lambda: [LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(9, "sigmoid"), LAYERS.Dense(3)],
    "kept in four dimensions": lambda: [LAYERS.GlobalAveragePooling2D(keepdims=True), LAYERS.Flatten(),
                                        LAYERS.Dense(5), LAYERS.Activation("relu6"), LAYERS.Dense(3)],
}  # fmt: skip


@pytest.mark.parametrize(
    "head", [pytest.param(h, marks=[pytest.mark.slow] * (h in ("averaged", "flattened", "hidden"))) for h in HEADS]
)
def test_the_heat_map_of_any_head_is_grad_cam_as_a_plain_gradient_gives_it(tmp_path: Path, head: str) -> None:
    original = network(keras, *HEADS[head](), nested=False)
    original.save(tmp_path / "model.keras")
    source = read(tmp_path / "model.keras")
    answer = served(source, tmp_path / "1")
    assert_same(answer, source.reference(PICTURES))
    assert source.model is not None
    inner = keras.Model(source.model.input, [source.model.get_layer("features").output, source.model.output])
    with tf.GradientTape() as tape:
        features, logits = inner(PICTURES.astype(np.float32), training=False)
        top = tf.reduce_max(logits, axis=1)
    weights = tf.reduce_mean(tape.gradient(top, features), [1, 2], keepdims=True)
    warmth = tf.nn.relu(tf.reduce_sum(weights * features, 3))
    wanted = tf.math.divide_no_nan(warmth, tf.reduce_max(warmth, [1, 2], keepdims=True)).numpy()
    assert np.abs(answer["heatmap"] - wanted).max() < 1e-3
    assert answer["heatmap"].max() == pytest.approx(1)


def test_pooling_within_the_backbone_and_a_softmax_behind_the_pooling_are_explained_too(tmp_path: Path) -> None:
    photo = keras.Input((32, 32, 3))
    convolved = keras.layers.Conv2D(4, 3, activation="relu")(photo)
    base = keras.Model(photo, keras.layers.GlobalAveragePooling2D()(convolved))
    model = keras.Sequential([keras.Input((32, 32, 3)), base, keras.layers.Dense(3, activation="softmax")])
    model.save(tmp_path / "pooled.keras")
    assert read(tmp_path / "pooled.keras").model is not None
    image = keras.Input(SHAPE)
    maps = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    keras.Model(image, keras.ops.softmax(maps)).save(tmp_path / "maps.keras")
    source = read(tmp_path / "maps.keras")
    assert source.model is not None
    assert served(source, tmp_path / "1")["heatmap"].shape == (6, 22, 28)


def test_where_a_heat_map_is_impossible_it_says_so_and_leaves_it_out(tmp_path: Path) -> None:
    layers = keras.layers
    for name, head in (
        ("gated", [layers.GlobalAveragePooling2D(), layers.Dense(6, "swish"), layers.Dense(3)]),
        (
            "convolved",
            [layers.Conv2D(3, (8, 11)), layers.Reshape((3,)), layers.Softmax()],
        ),
    ):
        network(keras, *head, nested=False).save(tmp_path / f"{name}.keras")
        source = read(tmp_path / f"{name}.keras")
        answer = served(source, tmp_path / name)
        assert_same(answer, source.reference(PICTURES))
        assert set(answer) == {"probabilities"}
        assert (source.model is None, source.card.heatmap) == (False, False)  # it may still go --to another format
        assert len(source.notes) == 1
        assert source.notes[0].startswith("no heat map: ")


def test_what_keras_3_cannot_put_together_is_exported_as_tf_keras_computes_it(tmp_path: Path) -> None:
    image = tf_keras.Input(SHAPE)
    x = tf.nn.l2_normalize(tf_keras.layers.Conv2D(5, 3)(image), axis=-1)  # an operation that is not translated
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    old = tf_keras.Model(image, tf_keras.layers.Dense(3, activation="softmax")(x))
    old.layers[-1].set_weights([np.random.default_rng(0).normal(0, 3, (5, 3)), np.zeros(3)])
    old.save(tmp_path / "old.h5")
    source = read(tmp_path / "old.h5")
    answer = served(source, tmp_path / "1")
    assert_same(answer, old.predict(scaled(), verbose=0))
    assert (set(answer), source.model) == ({"probabilities"}, None)
    assert [note.split(":")[0] for note in source.notes] == ["loaded by tf_keras, the legacy Keras 2", "no heat map"]


def of_keras_3(folder: Path) -> Any:
    model = network(keras, *usual(keras))
    model.export(folder, verbose=False)
    return model.predict(scaled(), verbose=0)


def of_keras_2(folder: Path) -> Any:
    model = network(tf_keras, *usual(tf_keras, None))
    model.save(folder, save_format="tf")
    return tf.nn.softmax(model.predict(scaled(), verbose=0)).numpy()


def of_tensorflow_1(folder: Path, use_resource: bool = False) -> Any:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(4)
        images = tf.compat.v1.placeholder(tf.float32, [None, *SHAPE], name="x")
        kernel = tf.compat.v1.get_variable("kernel", [3, 3, 3, 4], use_resource=use_resource)
        head = tf.compat.v1.get_variable("head", [4, 3], use_resource=use_resource)
        maps = tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "SAME"))
        scores = tf.nn.softmax(tf.matmul(tf.reduce_mean(maps, [1, 2]), head))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": images}, {"scores": scores})
        return session.run(scores, {images: scaled()})


class Brightness(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable([[9.0], [-5.0], [-3.0]])

    def likely(self, pixels: Any) -> Any:
        return tf.sigmoid(tf.matmul(tf.reduce_mean(tf.cast(pixels, tf.float32) / 255, [1, 2]), self.weight))


def save_module(folder: Path, *specs: Any, give: Callable[..., Any] | None = None) -> None:
    """Save a module with one signature, not called serving_default, whose inputs are `specs`."""
    module = Brightness()
    function = tf.function(give or (lambda *given: {"probability": module.likely(given[0])}), input_signature=specs)
    tf.saved_model.save(module, str(folder), {"classify": function.get_concrete_function()})


ANY_SIZE = tf.TensorSpec([None, None, None, 3], tf.uint8, name="img")


@pytest.mark.parametrize("make", [of_keras_3, of_keras_2, of_tensorflow_1])
def test_a_plain_saved_model_is_served_as_it_is_and_without_heat_map(tmp_path: Path, make: Any) -> None:
    wanted = make(tmp_path / "theirs")
    source = read(tmp_path / "theirs")
    answer = served(source, tmp_path / "1")
    assert_same(answer, wanted)
    assert_same({"probabilities": source.reference(PICTURES)}, wanted)
    assert (set(answer), source.model, source.card.name) == ({"probabilities"}, None, "theirs")
    assert source.notes == ("no heat map: a SavedModel does not tell its layers apart",)


def test_variables_of_either_kind_of_tensorflow_1_are_frozen(tmp_path: Path) -> None:
    wanted = of_tensorflow_1(tmp_path / "theirs", use_resource=True)
    assert_same(served(read(tmp_path / "theirs"), tmp_path / "1"), wanted)


def test_a_module_that_takes_bytes_of_any_size_and_gives_one_probability(tmp_path: Path) -> None:
    save_module(tmp_path / "theirs", ANY_SIZE)
    with refused("give the one it was trained with, such as --size 224"):
        read(tmp_path / "theirs", labels="dark,bright", preprocess="none")
    with refused("--preprocess none"):
        read(tmp_path / "theirs", labels="dark,bright", size="24x30")
    source = read(tmp_path / "theirs", labels="dark,bright", preprocess="none", size="24x30")
    bright = Brightness().likely(PICTURES).numpy()
    assert_same(served(source, tmp_path / "1"), np.concatenate([1 - bright, bright], axis=1))
    assert (source.card.height, source.card.width) == SIDES


ENDS: dict[str, tuple[int, Any, str | None]] = {
    "a sigmoid": (1, tf.sigmoid, None),
    "logits": (1, lambda x: x, "logits"),
    "a probability": (1, lambda x: 1 / (1 + tf.exp(-x)), "sigmoid"),
    "small logits": (3, lambda x: 0.4 + x / 100, "logits"),
    "linear": (3, lambda x: x, None),
    "softmax": (3, lambda x: tf.cast(tf.nn.softmax(x), tf.float64), None),
    "made by hand": (3, lambda x: tf.exp(x) / tf.reduce_sum(tf.exp(x), 1, keepdims=True), None),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_saved_model_ends_in_is_taken_from_its_last_operation(tmp_path: Path, end: str) -> None:
    units, give, asked = ENDS[end]
    weights = np.array([[2, -3, 1], [1, 2, -3], [-2, 1, 2]], np.float32)[:, :units]

    def logits(x: Any) -> Any:
        return tf.matmul(tf.reduce_mean(x, [1, 2]), weights) + 0.4

    save_module(tmp_path / "theirs", tf.TensorSpec([None, *SHAPE], tf.float32), give=lambda x: {"a": give(logits(x))})
    labels = LABELS if units == 3 else "no,yes"
    if asked:
        with refused("--ends-in logits"):
            read(tmp_path / "theirs", labels=labels)
    source = read(tmp_path / "theirs", labels=labels, output=asked)
    values = logits(scaled()) if units == 3 else tf.pad(logits(scaled()), [[0, 0], [1, 0]])
    wanted = tf.nn.softmax(give(values) if end == "small logits" else values).numpy()
    assert np.abs(served(source, tmp_path / "1")["probabilities"] - wanted).max() < 1e-5
    how = "by --ends-in" if asked else "by its last operation"
    assert units == 3 or any(how in note for note in source.notes)


def test_a_run_is_read_with_its_own_answers(tmp_path: Path) -> None:
    source = read_run(finished_run(tmp_path / "tires", familiar=True))
    pictures = coarse(4, (48, 64, 3), 2)
    assert_same(served(source, tmp_path / "1", pictures), source.reference(pictures))
    assert source.familiarity is not None
    assert (source.run, source.notes, source.card.temperature) == (tmp_path / "tires", (), 1.7)
