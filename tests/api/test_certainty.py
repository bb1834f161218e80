"""When an answer is not certain, and which of two reasons is given: a real model server and a real gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
from loupe.training.evaluate.calibrate import calibrate
from tests.support import models
from tests.support.gateways import Gateway, gateway
from tests.support.networks import export
from tests.support.pictures import encoded
from tests.support.servers import model_server, until

SIDE, COLOURS = 32, np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
LABELS = ("red", "green", "blue")
DARK, BRIGHT = (Image.new("RGB", (40, 40), (level,) * 3) for level in (5, 250))


def pictures(count: int, seed: int) -> tuple[Any, Any]:
    """Noisy pictures of one of three colours."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    noise = random.normal(0, 25, (count, SIDE, SIDE, 3))
    return np.clip(COLOURS[classes][:, None, None, :] + noise, 0, 255).astype(np.uint8), classes


def network() -> Any:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.Conv2D(16, 5, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """What `train.py` does with a network once it is trained, and what serves it then."""
    scratch = tmp_path_factory.mktemp("colours")
    model, (pixels, classes), (others, truth) = network(), pictures(96, 1), pictures(60, 2)
    model.compile(keras.optimizers.Adam(0.03), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(pixels.astype(np.float32), classes, epochs=15, verbose=0)
    both = keras.Model(model.input, [model.output, model.get_layer("pool").output])
    _, known = both.predict(pixels.astype(np.float32), verbose=0)
    logits, features = both.predict(others.astype(np.float32), verbose=0)
    fitted = calibrate(logits, features, truth, known, classes, 0.95)
    assert fitted.familiarity is not None
    (scratch / "run").mkdir()
    model.save(scratch / "run" / "model.keras")
    fitted.familiarity.save(scratch / "run" / "familiarity.npz")
    card = Card(
        "colours", LABELS, SIDE, SIDE, temperature=fitted.temperature, certain_at=fitted.certain_at,
        unfamiliar_below=fitted.unfamiliar_below,
    )  # fmt: skip
    (scratch / "run" / "card.json").write_text(card.to_json())
    export(scratch / "run", scratch / "models")
    with (
        model_server(scratch / "models", "colours") as server,
        gateway(f"localhost:{server.port}", MODEL_NAME="colours") as running,
    ):
        yield running


def test_a_picture_of_nothing_known_is_called_unfamiliar(colours: Gateway) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    stripes = np.zeros((SIDE, SIDE, 3), np.uint8)
    stripes[::4] = 255
    for stranger in (noise, stripes):
        answer = colours.post("/predict", encoded(Image.fromarray(stranger), "PNG"), "image/png").json()
        assert (answer["certain"], answer["reason"]) == (False, "unfamiliar")


def test_pictures_like_the_training_pictures_are_familiar(colours: Gateway) -> None:
    pixels, classes = pictures(30, 4)
    files = [encoded(Image.fromarray(picture), "PNG") for picture in pixels]
    answers = colours.post_files("/predict", *files).json()["predictions"]
    assert [answer["label"] for answer in answers] == [LABELS[number] for number in classes]
    assert sum(answer["reason"] == "unfamiliar" for answer in answers) <= 6, "about one in twenty"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Gateway]]:
    """A model whose familiarity is the picture's brightness."""
    folder = tmp_path_factory.mktemp("versions")
    text = models.card(certain_at=1.0, unfamiliar_below=0.5)
    models.write(folder / "tires" / "1", text=text, familiarity=True)
    with model_server(folder, "tires") as server, gateway(f"localhost:{server.port}") as running:
        yield folder / "tires", running


def judgement(here: Gateway, image: Image.Image) -> tuple[Any, Any]:
    answer = here.post("/predict", encoded(image, "PNG"), "image/png").json()
    return answer["certain"], answer["reason"]


def test_of_two_reasons_unfamiliar_is_the_one_given(versions: tuple[Path, Gateway]) -> None:
    _, here = versions
    assert judgement(here, DARK) == (False, "unfamiliar")
    assert judgement(here, BRIGHT) == (False, "below_threshold")


def test_a_version_without_familiarity_is_not_asked_for_it_and_one_with_it_is(versions: tuple[Path, Gateway]) -> None:
    home, here = versions
    models.write(home.parent / "new", seed=2)
    shutil.move(home.parent / "new", home / "2")
    until(lambda: judgement(here, DARK) == (None, None), "version 2 to answer, which nothing judges")
    models.write(home.parent / "new", seed=3, text=models.card(unfamiliar_below=0.5), familiarity=True)
    shutil.move(home.parent / "new", home / "3")
    until(lambda: judgement(here, DARK) == (False, "unfamiliar"), "version 3 to answer")
    assert judgement(here, BRIGHT) == (True, None)
    # One that was asked for a threshold and could not be given any: it knows the picture, and is not certain of it.
    text = models.card(unfamiliar_below=0.5, certain_note="0.9 was asked for, and is not given, because …")
    models.write(home.parent / "new", seed=3, text=text, familiarity=True)
    shutil.move(home.parent / "new", home / "4")
    until(lambda: judgement(here, BRIGHT) == (None, None), "version 4 to answer")
    assert judgement(here, DARK) == (False, "unfamiliar")
    page = here.get("/model", Accept="text/html").body.decode()
    assert "0.9 was asked for, and is not given, because …" in page and "no limit was fitted" not in page
