"""Small networks, and runs as training leaves them, for the tests of the export.

folder = finished_run(tmp_path / "run", familiar=True)
version = export(folder, tmp_path / "models")      # without the parity gate, which takes seconds
model = lively(with_head(build_trunk("xception", 299, 299), 10, 0, 0))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe import familiarity
from loupe.card import Card
from loupe.export.convert import Options, convert
from loupe.export.source import read_run
from loupe.familiarity import Familiarity
from loupe.gradcam import split

LABELS = ("a", "b", "c")


def network(hidden: bool = True) -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    image = keras.Input((48, 64, 3))
    x = layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.SeparableConv2D(16, 3, activation="relu", name="features")(x)
    x = layers.GlobalAveragePooling2D()(x)
    if hidden:
        x = layers.Dense(8, activation="relu")(x)
        x = layers.Dropout(0.5)(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    for layer in model.layers:  # a network that has seen something: no batch norm at its start, no dead head
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(keras.random.normal((12,), seed=1) * 0.2)
            layer.gamma.assign(keras.random.uniform((12,), 0.5, 3, seed=2))
    return model


def coarse(count: int, shape: tuple[int, ...], seed: int) -> Any:
    """Return pictures of 6×6 squares of any colour."""
    squares = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    side = -(-max(shape) // 6)
    return squares.repeat(side, 1).repeat(side, 2)[:, : shape[0], : shape[1]]


def known(model: keras.Model, shape: tuple[int, ...] = (48, 64, 3)) -> Familiarity:
    """Return the familiarity that training would fit to 30 pictures and 20 held-out ones like them."""
    pooled = keras.Model(model.input, split(model)[0].output)
    features = pooled.predict(coarse(50, shape, 6).astype(np.float32), verbose=0)
    return familiarity.fit(features[:30], np.arange(30) % 3, features[30:])


def finished_run(folder: Path, model: keras.Model | None = None, familiar: bool = False, **entries: Any) -> Path:
    folder.mkdir(parents=True)
    model = model or network()
    model.save(folder / "model.keras")
    if familiar:
        known(model, model.input_shape[1:]).save(folder / "familiarity.npz")
        entries = {"unfamiliar_below": 0.05, **entries}
    card = Card(**{"name": "toy", "labels": LABELS, "height": 48, "width": 64, "temperature": 1.7, **entries})
    (folder / "card.json").write_text(card.to_json())
    return folder


def export(run: Path, models: Path, **options: Any) -> Path:
    return convert(read_run(run), Options(models, **{"parity": False, **options}))


def lively(model: keras.Model) -> keras.Model:
    """Set random weights that tell pictures apart: batch normalisation that has seen pictures, and logits with a spread
    of 2."""
    pictures = coarse(16, model.input_shape[1:], 8).astype(np.float32)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(pictures, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    logits = np.asarray(model(pictures, training=False))
    last = model.layers[-1]
    last.kernel.assign(last.kernel * 2 / logits.std(axis=0).mean())
    logits = np.asarray(model(pictures, training=False))
    last.bias.assign(-logits.mean(axis=0))
    return model
