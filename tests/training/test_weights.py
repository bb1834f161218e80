"""Backbones, and weights that come from files as people have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from loupe.card import Card
from loupe.errors import UserError
from loupe.training.network.backbones import BACKBONES, build_trunk, cut, freeze, trunk_layers, with_head
from loupe.training.network.weights import copy, from_imagenet
from tests.support.servers import ROOT

SIDE = 75  # px, the least that all of them take
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def learnt() -> keras.Model:
    """A small backbone with a head, as an earlier run has it, its weights unlike any fresh one's."""
    keras.utils.set_random_seed(5)
    return with_head(build_trunk("mobilenetv2", SIDE, SIDE), 3, 16, 0.2)


@pytest.fixture(scope="module")
def trunk() -> keras.Model:
    """To be filled: building one takes longer than all that is done with it."""
    return build_trunk("mobilenetv2", SIDE, SIDE)


def forget(trunk: keras.Model) -> None:
    for weight in trunk.weights:
        weight.assign(np.zeros(weight.shape))


def same(trunk: keras.Model, model: keras.Model) -> bool:
    mine = [weight for layer in trunk.layers for weight in layer.get_weights()]
    theirs = [weight for layer in trunk_layers(model) for weight in layer.get_weights()]
    return len(mine) == len(theirs) and all(
        np.array_equal(actual, expected) for actual, expected in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("file", ["model.keras", "model.h5", "model.weights.h5"])
def test_weights_are_taken_from_every_kind_of_file(
    learnt: keras.Model, trunk: keras.Model, tmp_path: Path, file: str
) -> None:
    save = learnt.save_weights if file.endswith("weights.h5") else learnt.save
    save(tmp_path / file)
    forget(trunk)
    assert not same(trunk, learnt)
    copy(str(tmp_path / file), trunk)
    assert same(trunk, learnt)


def test_an_earlier_run_is_named_by_its_folder(learnt: keras.Model, tmp_path: Path) -> None:
    learnt.save(tmp_path / "model.keras")
    assert same(build_trunk("mobilenetv2", SIDE, SIDE, weights=str(tmp_path)), learnt)


@pytest.fixture(scope="module")
def nested() -> keras.Model:
    """The usual way of transfer learning, made elsewhere, keeps the backbone as one layer."""
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(SIDE, SIDE, 3))
    image = keras.Input((SIDE, SIDE, 3))
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(base(image))))


@pytest.mark.parametrize("file", ["nested.keras", "nested.h5", "nested.weights.h5"])
def test_a_backbone_nested_in_its_model_is_found(
    nested: keras.Model, trunk: keras.Model, tmp_path: Path, file: str
) -> None:
    base = nested.layers[1]
    forget(trunk)
    save = nested.save_weights if file.endswith("weights.h5") else nested.save
    save(tmp_path / file)
    copy(str(tmp_path / file), trunk)
    mine = [weight for layer in trunk.layers for weight in layer.get_weights()]
    theirs = [weight for layer in base.layers for weight in layer.get_weights()]
    assert all(np.array_equal(actual, expected) for actual, expected in zip(mine, theirs, strict=True))


def test_weights_of_another_network_are_refused(learnt: keras.Model, tmp_path: Path) -> None:
    learnt.save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="--backbone"):
        build_trunk("cnn", SIDE, SIDE, weights=str(tmp_path))


def test_a_runs_weights_in_another_network_name_the_one_that_they_are_of(learnt: keras.Model, tmp_path: Path) -> None:
    learnt.save(tmp_path / "model.keras")
    card = Card("mine", ("a", "b", "c"), SIDE, SIDE, backbone={"name": "mobilenetv2"})
    (tmp_path / "card.json").write_text(card.to_json())
    with pytest.raises(UserError, match="Its network is mobilenetv2: give --backbone mobilenetv2"):
        build_trunk("efficientnetlite0", SIDE, SIDE, weights=str(tmp_path))
    (tmp_path / "card.json").unlink()
    with pytest.raises(UserError, match="Name its network by --backbone"):
        build_trunk("efficientnetlite0", SIDE, SIDE, weights=str(tmp_path))


@pytest.mark.parametrize("file", ["model.keras", "model.h5", "model.weights.h5"])
def test_a_backbone_of_another_width_is_told_as_such(trunk: keras.Model, tmp_path: Path, file: str) -> None:
    """It said `Name its network by --backbone`, which was named: MobileNetV2, of alpha 0.35."""
    narrow = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(96, 96, 3), alpha=0.35)
    save = narrow.save_weights if file.endswith("weights.h5") else narrow.save
    save(tmp_path / file)
    with pytest.raises(UserError, match=r"Conv1 wants \(3, 3, 3, 32\), and there is \(3, 3, 3, 16\).*alpha=1"):
        copy(str(tmp_path / file), trunk)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_a_file_that_holds_no_weights_is_told_in_one_line(tmp_path: Path, trunk: keras.Model, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(UserError, match="x.h5"):
        copy(str(tmp_path / "x.h5"), trunk)


def test_weights_that_are_not_there_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match="nowhere.keras"):
        build_trunk("mobilenetv2", SIDE, SIDE, weights="nowhere.keras")


def test_where_a_download_fails_the_file_to_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(**_: Any) -> Any:
        raise Exception("URL fetch failure on https://storage.example/x.h5: None -- no route")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(UserError, match="place net_224.h5 at .*models/net_224.h5; or give --weights FILE") as told:
        from_imagenet(make, None, "net_{size}.h5", 75)
    assert str(tmp_path) in str(told.value)
    assert "--backbone efficientnetlite0" in str(told.value), "which needs no download"


@pytest.mark.slow
def test_offline_the_file_to_place_is_named(tmp_path: Path) -> None:
    """The real download is tried, to a home of its own; the way out is a proxy that is not there."""
    code = (
        "from loupe.errors import UserError\nfrom loupe.training.network.backbones import build_trunk\n"
        "try:\n    build_trunk('mobilenetv2', 96, 96, weights='imagenet')\n"
        "except UserError as error:\n    print(error)"
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {"KERAS_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **nowhere}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    said = done.stdout.strip().splitlines()[-1]
    assert "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5" in said, done.stderr[-2000:]
    assert str(tmp_path) in said and "--weights none" in said


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("efficientnetlite0", "mobilenetv2") else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(BACKBONES)
    ],
)
def test_every_backbone_is_flat_and_can_be_cut_anywhere_without_changing_its_answer(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = with_head(build_trunk(name, SIDE, SIDE), 3, 8, 0.2)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    answer = np.asarray(model(PIXELS, training=False))
    for last in (0, 15, 60):
        front, back = cut(model, last)
        np.testing.assert_allclose(np.asarray(back(front(PIXELS, training=False), training=False)), answer, atol=1e-5)
        kept = {id(layer) for layer in front.layers}
        assert not any(id(layer) in kept for layer in trunk_layers(model)[len(trunk_layers(model)) - last :])


def test_unfreezing_leaves_batch_normalisation_as_it_was_learnt(learnt: keras.Model) -> None:
    freeze(learnt, 15)
    learning = [layer for layer in trunk_layers(learnt) if layer.trainable]
    assert 0 < len(learning) < 15
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in learning)
    before = norms(learnt)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learnt.compile("sgd", loss, run_eagerly=True)  # for one batch a graph is not worth its making
    learnt.fit(PIXELS, np.array([0, 1]), verbose=0)
    for expected, actual in zip(before, norms(learnt), strict=True):
        np.testing.assert_array_equal(expected, actual)


def norms(model: keras.Model) -> list[Any]:
    norm_type = keras.layers.BatchNormalization
    return [weight for layer in trunk_layers(model) if isinstance(layer, norm_type) for weight in layer.get_weights()]
