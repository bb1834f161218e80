"""Models made elsewhere that cannot be served, and what is wrongly asked of them: each is one line that says why."""

from __future__ import annotations

import fcntl
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from loupe.export.foreign.labels import labels_of
from loupe.export.foreign.read import size_of
from loupe.export.run_folder import refuse_unfinished
from loupe.export.source import read_run
from tests.export.test_foreign import (
    PICTURES,
    SHAPE,
    SIDES,
    assert_same,
    network,
    of_tensorflow_1,
    read,
    refused,
    save_module,
    served,
    usual,
)  # fmt: skip
from tests.support.networks import finished_run


def test_a_saved_model_that_cannot_be_served_is_refused_in_a_line(tmp_path: Path) -> None:
    # Signatures of each kind that cannot be served, and what the message says.
    picture = tf.TensorSpec([None, *SHAPE], tf.float32)
    for name, specs, give, why in (
        ("two in", [picture, picture], None, "takes 2"),
        ("two out", [picture], lambda x: {"a": x[:, 0, 0], "b": x[:, 0, 1]}, "gives 2"),
        ("files", [tf.TensorSpec([None], tf.string)], lambda x: {"a": tf.strings.length(x)}, "decoded pixels"),
        ("rows", [tf.TensorSpec([None, 9], tf.float32)], lambda x: {"a": x}, r"is \[N, 9\]"),
        ("grey", [tf.TensorSpec([None, 24, 30, 1], tf.float32)], lambda x: {"a": x[:, 0, 0]}, "1\\]"),
        ("one at a time", [tf.TensorSpec([1, *SHAPE], tf.float32)], lambda x: {"a": x[:, 0, 0]}, "no other number"),
        ("maps", [picture], lambda x: {"a": x}, "a row for each picture"),
        ("many labels", [picture], lambda x: {"a": tf.sigmoid(x[:, 0, 0])}, "several labels at once"),
        ("not finite", [picture], lambda x: {"a": x[:, 0, 0] / 0}, "not finite"),
        ("python", [picture], lambda x: {"a": tf.numpy_function(lambda v: v, [x[:, 0, 0]], tf.float32)}, "PyFunc"),
        ("reads", [picture], lambda x: {"a": x[:, 0, 0] + float("1") * tf.cast(
            tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)}, "ReadFile"),
    ):  # fmt: skip
        save_module(tmp_path / name, *specs, give=give)
        with refused(why):
            read(tmp_path / name)
    # A folder without a SavedModel.
    (tmp_path / "nothing").mkdir()
    with refused("neither a run"):
        read(tmp_path / "nothing")


def test_a_saved_model_that_is_damaged_or_loupes_own_is_refused_in_a_line(tmp_path: Path) -> None:
    of_tensorflow_1(tmp_path / "whole")
    for damage, why in (("index", "missing or damaged"), ("data", "missing or damaged"), ("graph", "damaged")):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / damage)
        pattern = {"index": "variables/*.index", "data": "variables/*.data*", "graph": "saved_model.pb"}[damage]
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with refused(why):
            read(folder)
    (tmp_path / "whole" / "assets.extra").mkdir()
    (tmp_path / "whole" / "assets.extra" / "card.json").touch()
    with refused("is a Loupe model already"):
        read(tmp_path / "whole")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.keras of Keras 3 and model.h5 of Keras 2."""
    folder = tmp_path_factory.mktemp("files")
    network(keras, *usual(keras)).save(folder / "model.keras")
    network(tf_keras, *usual(tf_keras)).save(folder / "model.h5")
    return folder


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_file_that_is_damaged_or_of_another_kind_is_refused_in_a_line(tmp_path: Path, files: Path, file: str) -> None:
    whole = (files / file).read_bytes()
    for damaged in (
        b"",
        b"no model",
        whole[: len(whole) // 2],
        whole[:-100],
        whole[:2000] + b"\0" * 3000 + whole[5000:],
    ):
        (tmp_path / file).write_bytes(damaged)
        with refused(file):
            read(tmp_path / file)
    (tmp_path / "model.pt").write_bytes(whole)
    with refused("rename it"):
        read(tmp_path / "model.pt")
    with refused("There is no model"):
        read(tmp_path / "none.h5")


def copied(path: Path, to: Path) -> Path:
    to.write_bytes(path.read_bytes())
    return to


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Another configuration in the same file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"])
        file.attrs["model_config"] = json.dumps(config)
    return path


def test_weights_alone_and_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path, files: Path) -> None:
    # Files of weights, of both Keras versions.
    network(tf_keras, *usual(tf_keras)).save_weights(tmp_path / "weights.h5")
    with refused("weights alone"):
        read(tmp_path / "weights.h5")
    network(keras, *usual(keras)).save_weights(tmp_path / "new.weights.h5")
    with refused("weights alone"):
        read(tmp_path / "new.weights.h5")
    # Files that claim more than they hold, or link to others.
    bomb = copied(files / "model.h5", tmp_path / "bomb.h5")
    with h5py.File(bomb, "r+") as file:
        file["model_weights"].create_dataset("vast", (10**6, 10**6), "f4", chunks=(10, 10))
    with refused("claims 4000.0 GB"):
        read(bomb)
    wide = edit(copied(files / "model.h5", tmp_path / "wide.h5"), lambda c: widen(c["layers"][-1]["config"]))
    with refused("1000000000 wide"):
        read(wide)
    linked = copied(files / "model.h5", tmp_path / "linked.h5")
    with h5py.File(linked, "r+") as file:
        file["model_weights"]["more"] = h5py.ExternalLink("/etc/passwd", "/")
    with refused("refers to other files"):
        read(linked)
    with zipfile.ZipFile(tmp_path / "zeros.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**28 + 1))
    with refused("claims 0.3 GB"):
        read(tmp_path / "zeros.keras")


def widen(config: dict[str, Any]) -> None:
    config["units"] = 10**9


def test_program_code_in_a_file_is_refused_and_never_run(tmp_path: Path, files: Path) -> None:
    trace = str(tmp_path / "it ran")
    for k, names in ((tf_keras, ["old.h5", "old.keras"]), (keras, ["new.h5", "new.keras"])):
        image = k.Input(SHAPE)
        x = k.layers.Lambda(lambda x: (open(trace, "w"), x)[1], output_shape=SHAPE)(image)  # noqa: SIM115, PTH123
        for name in names:
            k.Model(image, usual(k)[-1](k.layers.GlobalAveragePooling2D()(x))).save(tmp_path / name)
            Path(trace).unlink(missing_ok=True)
            with refused("code from a file is never run"):
                read(tmp_path / name)
            assert not Path(trace).exists()
    image = tf_keras.Input(SHAPE)
    pooled = tf_keras.layers.GlobalAveragePooling2D()(image / 255.0)
    tf_keras.Model(image, tf_keras.layers.Dense(3)(pooled)).save(tmp_path / "calls.h5")
    edit(tmp_path / "calls.h5", lambda c: c["layers"][1]["config"].update(function="io.write_file"))
    with refused("io.write_file"):
        read(tmp_path / "calls.h5")


class Doubled(tf_keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return 2 * x


@keras.saving.register_keras_serializable("mine")
class Halved(keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x / 2


def test_a_layer_that_keras_does_not_know_is_named(tmp_path: Path) -> None:
    network(tf_keras, Doubled(name="twice"), *usual(tf_keras)).save(tmp_path / "old.h5")
    network(keras, Halved(name="half"), *usual(keras)).save(tmp_path / "new.keras")
    with refused(r"Doubled \(twice\)"):
        read(tmp_path / "old.h5")
    with refused(r"Halved \(half\)"):
        read(tmp_path / "new.keras")


def test_networks_that_take_or_give_something_else_are_refused_in_a_line(tmp_path: Path) -> None:
    layers = keras.layers
    image, other, grey = keras.Input(SHAPE), keras.Input(SHAPE), keras.Input((*SIDES, 1))
    fixed = keras.Input(SHAPE, batch_size=4)
    pooled = layers.GlobalAveragePooling2D()
    for name, model, why in (
        ("two", keras.Model([image, other], layers.Dense(3)(pooled(image + other))), "2 inputs"),
        ("grey", keras.Model(grey, layers.Dense(3)(pooled(grey))), r"takes \[N, 24, 30, 1\]"),
        ("maps", keras.Model(image, layers.Conv2D(3, 3)(image)), r"gives \[N, 22, 28, 3\]"),
        ("four", keras.Model(fixed, layers.Dense(3)(pooled(fixed))), "takes 4 pictures at once"),
        ("many", keras.Model(image, layers.Dense(3, "sigmoid")(pooled(image))), "3 sigmoids"),
        ("sure", keras.Model(image, layers.Dense(1, "softmax")(pooled(image))), "always 1"),
    ):
        model.save(tmp_path / f"{name}.keras")
        with refused(why):
            read(tmp_path / f"{name}.keras")


def test_what_is_asked_must_fit_the_model(tmp_path: Path, files: Path) -> None:
    for asked, why in (
        ({"labels": "cup,fork"}, "3 outputs, and --labels names 2"),
        ({"size": "299"}, "takes 24×30 pixels, and --size says 299×299"),
        ({"preprocess": None}, "--preprocess takes rescale for 0…1; xception, .* for −1…1; none, .* for 0…255"),
        ({"preprocess": "xceptoin"}, "did you mean xception"),
        ({"name": "a/b"}, "A model's name has no"),
    ):
        with refused(why):
            read(files / "model.keras", **asked)
    assert read(files / "model.keras", size="24x30", name="cutlery").card.name == "cutlery"
    network(keras, *usual(keras), shape=(None, None, 3)).save(tmp_path / "any.keras")
    with refused("such as --size 224"):
        read(tmp_path / "any.keras")
    source = read(tmp_path / "any.keras", size="24x30")
    assert_same(served(source, tmp_path / "1"), source.reference(PICTURES))
    assert source.model is not None
    with refused("cannot be run on pictures of 3×3 pixels"):
        read(tmp_path / "any.keras", size="3")


def test_who_names_no_labels_is_told_the_folders_of_the_pictures(tmp_path: Path, files: Path) -> None:
    """Keras's image_dataset_from_directory gives a model its classes in the order of their folders' names."""
    for name in ("spoon", "Tea cup", "fork"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").touch()
    (tmp_path / "photos" / "no pictures").mkdir()
    with refused("--labels 'Tea cup,fork,spoon' if they are the folders of --images"):
        read(files / "model.keras", labels=None, images=tmp_path / "photos")
    for images in (None, tmp_path / "none", tmp_path / "photos" / "fork"):
        with refused("--labels cup,fork,spoon"):
            read(files / "model.keras", labels=None, images=images)


def test_labels_are_a_list_or_a_file(tmp_path: Path) -> None:
    assert labels_of(" cup, fork ,spoon") == ("cup", "fork", "spoon")
    (tmp_path / "labels.txt").write_text("﻿Tasse\r\nGabel, groß\r\n\n", encoding="utf-8")
    for prefix in ("", "@"):
        assert labels_of(f"{prefix}{tmp_path}/labels.txt") == ("Tasse", "Gabel, groß")
    for wrong, why in (("cup,fork,cup", "'cup' twice"), ("x.csv", "cannot be read"),
                       ("a,b\x07", "control"), ("cup,,fork", "number 2:"), ("cup", "two or more"),
                       ("", "two or more"), ("none.txt", "cannot be read"), ("NONE.JSON", "cannot be read"),
                       ("@none", "cannot be read")):  # fmt: skip
        with refused(why):
            labels_of(wrong)


def test_labels_may_be_longer_than_a_name_of_a_file() -> None:
    named = [f"label number {n}" for n in range(400)]
    assert labels_of(",".join(named)) == tuple(named)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"fork": 1, "cup": 0}'),
        ("b.json", b'{"1": "fork", "0": "cup"}'),
        ("c.json", b'["cup", "fork"]'),
        ("d.txt", b'["cup", "fork"]'),
        ("teachable.txt", b"0 cup\r\n1 fork\r\n"),
        ("one.txt", b"cup,fork\n"),
        ("one.csv", b'cup, "fork"\n'),
        ("column.csv", b"cup\nfork\n"),
        ("notepad.txt", "cup\r\nfork\r\n".encode("utf-16")),
    ],
)
def test_labels_are_read_from_files_of_any_kind(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert labels_of(str(tmp_path / name)) == ("cup", "fork")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gap.json", b'{"cup": 0, "fork": 2}', "numbered from 0 on"),
        ("twice.json", b'{"cup": 0, "fork": 0}', "numbered from 0 on"),
        ("other.json", b'{"0": ["n01", "cup"], "1": ["n02", "fork"]}', "neither"),
        ("torn.json", b'["cup", ', "no JSON"),
        ("header.csv", b"label\ncup\nfork\n", "a table"),
        ("columns.csv", b"index,label\n0,cup\n1,fork\n", "a table"),
        ("latin.txt", "Löffel\nGabel\n".encode("latin-1"), "save the file as UTF-8"),
        ("bell.txt", b"cup\x07\nfork\n", "control characters"),
    ],
)
def test_a_file_of_no_labels_is_refused_in_a_line(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(why):
        labels_of(str(tmp_path / name))


def test_what_is_no_model_is_said_before_anything_is_asked_for(tmp_path: Path, files: Path) -> None:
    nothing: dict[str, Any] = {"labels": None, "preprocess": None}
    for name in ("README.md", "cat.jpg", "card.json"):
        (tmp_path / name).write_text("{}")
        with refused("is no Keras model"):
            read(tmp_path / name, **nothing)
    of_tensorflow_1(tmp_path / "ours")
    (tmp_path / "ours" / "assets.extra").mkdir()
    (tmp_path / "ours" / "assets.extra" / "card.json").touch()
    with refused("is a Loupe model already"):
        read(tmp_path / "ours", **nothing)
    with refused("--labels cup,fork,spoon"):
        read(files / "model.keras", **nothing)


def test_augmentation_layers_that_were_exported_at_work_are_refused(tmp_path: Path) -> None:
    """Keras 3 exports them as in training: the SavedModel flips its pictures at random, and says so nowhere."""
    flip = keras.Sequential([keras.Input(SHAPE), keras.layers.RandomFlip("horizontal")])
    model = keras.Sequential([flip, keras.layers.Conv2D(3, 3), *usual(keras)])
    model.export(tmp_path / "theirs", verbose=False)
    with refused("without its augmentation layers, or convert the .keras"):
        read(tmp_path / "theirs")
    picture = tf.TensorSpec([None, *SHAPE], tf.float32)
    save_module(tmp_path / "lots", picture, give=lambda x: {"a": tf.nn.softmax(x[:, 0, 0] + tf.random.uniform([3]))})
    with refused("at random"):
        read(tmp_path / "lots")
    model.save(tmp_path / "model.keras")
    source = read(tmp_path / "model.keras")
    assert np.abs(served(source, tmp_path / "1")["probabilities"] - source.reference(PICTURES)).max() < 1e-5


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_an_activation_that_is_no_probability_is_not_taken_for_one(tmp_path: Path, activation: str) -> None:
    network(keras, *usual(keras, activation, units=1)).save(tmp_path / "model.keras")
    with refused(f"ends in {activation}.*--ends-in"):
        read(tmp_path / "model.keras", labels="no,yes")
    assert read(tmp_path / "model.keras", labels="no,yes", output="logits").card.labels == ("no", "yes")


def test_what_ends_in_says_is_held_to_the_answers(tmp_path: Path, files: Path) -> None:
    network(keras, *usual(keras, None, units=1), keras.layers.Rescaling(9, 5.0)).save(tmp_path / "one.keras")
    with refused("which is no probability"):
        read(tmp_path / "one.keras", labels="no,yes", output="sigmoid")
    with refused("is a softmax: leave it out"):
        read(files / "model.keras", output="logits")
    picture = tf.TensorSpec([None, *SHAPE], tf.float32)
    save_module(tmp_path / "many", picture, give=lambda x: {"a": tf.identity(tf.sigmoid(x[:, 0, 0][:, :2]))})
    with refused("several labels at once"):
        read(tmp_path / "many", labels="cup,fork")


def test_a_size_is_one_number_or_two() -> None:
    assert (size_of("299"), size_of("320x240"), size_of(None)) == ((299, 299), (320, 240), None)
    for wrong in ("", "x", "0", "12x", "-3", "5000", "2.5", "3x3x3"):
        with refused("for height x width"):
            size_of(wrong)


def test_what_is_no_finished_run_is_refused_in_a_line(tmp_path: Path) -> None:
    # No run, an interrupted one, one under way, an empty folder.
    with refused("There is nothing at"):
        read_run(tmp_path / "tires")
    (tmp_path / ".part-tires").mkdir()
    with refused("--resume"):
        read_run(tmp_path / "tires")
    # One that was killed as it wrote its files: they look like a finished run's.
    finished_run(tmp_path / ".part-cups")
    for part in (tmp_path / ".part-cups", tmp_path / ".part-cups" / "model.keras"):
        with refused("The training of cups did not end: .*--resume"):
            refuse_unfinished(part)
    with refused("The training of cups did not end"):
        read_run(tmp_path / ".part-cups")
    with (tmp_path / ".lock-tires").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with refused("still training"):
            read_run(tmp_path / "tires")
    (tmp_path / "empty").mkdir()
    with refused("holds no card.json"):
        read_run(tmp_path / "empty")
    # A card that does not match the model, or a file is missing.
    for name, entries, why in (
        ("labels", {"labels": ("a", "b")}, "gives 3 classes, and its card has 2 labels"),
        ("size", {"height": 64}, "takes 48×64 pixels, and its card says 64×64"),
        ("familiar", {"unfamiliar_below": 0.05}, "is missing"),
    ):
        with refused(why):
            read_run(finished_run(tmp_path / name, **entries))
    # Damaged files.
    folder = finished_run(tmp_path / "damaged")
    whole = (folder / "model.keras").read_bytes()
    for damaged in (b"torn", whole[: len(whole) // 2]):
        (folder / "model.keras").write_bytes(damaged)
        with refused("damaged"):
            read_run(folder)
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"b"', '"a"'))
    with refused("must differ"):
        read_run(folder)
