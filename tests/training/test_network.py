"""The networks trained from scratch: any size, standard layers alone, and logits that keep their precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from loupe.training.network.backbones import build_trunk, with_head
from loupe.training.network.plain import NETWORKS, fuse_norms


def build(height: int, width: int, classes: int, name: str = "cnn") -> keras.Model:
    return with_head(build_trunk(name, height, width), classes, head=0, dropout=0.0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (75, 50)])
def test_a_network_takes_any_size_from_32_up(name: str, height: int, width: int) -> None:
    model = build(height, width, classes=3, name=name)
    assert model(np.zeros((2, height, width, 3), np.float32)).shape == (2, 3)
    assert len(model.get_layer("features").output.shape) == 4
    assert [layer.name for layer in model.layers[-3:]] == ["features", "pool", "logits"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_loads_with_keras_alone_and_answers_the_same(name: str, tmp_path: Path) -> None:
    model = build(32, 32, classes=2, name=name)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    np.testing.assert_allclose(loaded(pixels), model(pixels), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_float32_under_mixed_precision(name: str) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build(32, 32, classes=2, name=name)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.get_layer("features").compute_dtype == "bfloat16"
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype == "float32"


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_fused_norms_train_as_keras_does(precision: str) -> None:
    """A step gives the same loss, the same averages, and a gradient that goes the same way."""
    keras.utils.set_random_seed(0)
    pixels, classes = _stripes_and_rings(np.random.default_rng(0), 16)
    keras.mixed_precision.set_global_policy(precision)
    try:
        plain, fused = build(32, 32, classes=2), build(32, 32, classes=2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    fused.set_weights(plain.get_weights())
    fuse_norms(fused)
    losses = []
    for model in (plain, fused):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        losses.append([model.train_on_batch(pixels, classes) for _ in range(3)])
    near = 0.001 if precision == "float32" else 0.05
    np.testing.assert_allclose(losses[1], losses[0], rtol=near, atol=near / 10)
    for expected, actual in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02 * max(1, np.abs(expected).max()))


def test_fused_norms_leave_the_saved_file_and_frozen_layers_as_they_were(tmp_path: Path) -> None:
    model = build(32, 32, classes=2)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    before = model(pixels)
    fuse_norms(model)
    model.trainable = False
    np.testing.assert_array_equal(model(pixels, training=True), before)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(pixels), before, atol=1e-6)


def test_the_sample_network_is_small_and_the_large_one_is_not() -> None:
    weights = {name: build(96, 96, classes=10, name=name).count_params() for name in NETWORKS}
    assert weights["cnn"] < 200_000 < 4_000_000 < weights["cnn-large"] < 6_000_000


@pytest.mark.slow
def test_the_large_network_learns_to_tell_stripes_from_rings() -> None:
    """Edges of one direction against all directions, in any colours and at any phase: nothing a mean value tells."""
    keras.utils.set_random_seed(0)
    pixels, classes = _stripes_and_rings(np.random.default_rng(0), 96)
    model = build(32, 32, classes=2, name="cnn-large")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
    model.fit(pixels, classes, batch_size=16, epochs=4, verbose=0)
    unseen = _stripes_and_rings(np.random.default_rng(1), 64)
    assert model.evaluate(*unseen, verbose=0, return_dict=True)["accuracy"] > 0.9


def _stripes_and_rings(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    classes = np.arange(count) % 2
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    waves = [np.hypot(x, y) if ring else x for ring in classes]
    light = np.stack([np.sin(wave + rng.uniform(0, 6)) for wave in waves])[..., None] * rng.uniform(
        0.3, 1, (count, 1, 1, 3)
    )
    return ((light + 1) * 127.5).astype(np.float32), classes
