"""Is the SavedModel what it was made from? Asked the way TensorFlow Serving will ask: loaded into a TF1 session.

check(folder, model, card)      # raises UserError, naming what differs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loupe.card import Card
from loupe.errors import UserError

IMAGES = 8
TOLERANCE = 1e-4  # of a probability, in float32: what another order of adding up may change


def check(folder: Path, model: keras.Model, card: Card) -> None:
    images = _images(card)
    wanted = keras.ops.convert_to_numpy(keras.ops.softmax(model(images, training=False) / card.temperature))
    try:
        answer = run(folder, "serving_default", {"image": images})
        described = run(folder, "describe", {"request": np.array([b"", b""], object)})["card"]
    except (tf.errors.OpError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"The export does not load as TensorFlow Serving would load it: {_first_line(error)}"
        ) from error
    probabilities, heatmap = answer["probabilities"], answer["heatmap"]
    if probabilities.shape != (IMAGES, len(card.labels)):
        raise UserError(f"The model gives {probabilities.shape[1]} classes; the card has {len(card.labels)} labels.")
    difference = float(np.abs(probabilities - wanted).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"The export's probabilities differ from the model's by {difference:.2g}; nothing is published."
        )
    if heatmap.ndim != 3 or heatmap.min() < 0 or heatmap.max() > 1:
        raise UserError("The export's heat map is not a picture of values from 0 to 1; nothing is published.")
    if list(described) != [card.to_json().encode()] * 2:
        raise UserError("The export's card is not the run's card; nothing is published.")


def run(folder: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """One answer of a SavedModel's signature, from a session of its own."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
        definition = loaded.signature_def[signature]
        fetches = {name: info.name for name, info in definition.outputs.items()}
        answer: dict[str, Any] = session.run(
            fetches, {definition.inputs[name].name: value for name, value in inputs.items()}
        )
    return answer


def _images(card: Card) -> Any:
    """Smooth random pictures: every brightness, and the same ones each time."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (IMAGES, 7, 7, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (card.height, card.width)), tf.uint8).numpy()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
