"""What is exported: a run of Loupe's own. Models made elsewhere are read by foreign/, into the same.

source = read_run(Path("runs/tires"))
source.reference(pixels)                  # what the trained model itself says: uint8 [N, H, W, 3] → [N, C]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph.savedmodel import Network, network_of
from loupe.export.graph.simplify import flat, in_precision
from loupe.export.run_folder import check_run, newer_under_way
from loupe.familiarity import Familiarity

BATCH = 32

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Source:
    card: Card
    network: Network  # what is exported in float32, as it is
    model: (
        keras.Model | None
    )  # flat, from pixels of 0…255 to logits; None: a black box, exported as it is or not at all
    reference: Callable[
        [Array], Array
    ]  # the original's own probabilities, by its own library: uint8 [N, H, W, 3] → [N, C]
    familiarity: Familiarity | None = None
    run: Path | None = None
    notes: tuple[str, ...] = ()  # for whoever asked for the export


def read_run(folder: Path, name: str | None = None) -> Source:
    """`name`: what it is published as, if not by its card's."""
    check_run(folder)
    card = Card.read(folder / "card.json")
    original = _load(folder / "model.keras")
    outputs, size = original.output_shape[-1], tuple(original.input_shape[1:3])
    if outputs != len(card.labels):
        raise UserError(f"{folder}: the model gives {outputs} classes, and its card has {len(card.labels)} labels.")
    if size != (card.height, card.width):
        raise UserError(
            f"{folder}: the model takes {size[0]}×{size[1]} pixels, and its card says {card.height}×{card.width}."
        )
    model = in_precision(flat(original), "float32")
    exact = all(layer.compute_dtype == "float32" for layer in original.layers)
    judge = original if exact else model  # trained in half precision, it rounds otherwise each time it is asked

    def reference(pixels: Array) -> Array:
        logits = [judge.predict_on_batch(some) for some in _batches(pixels.astype(np.float32))]
        return softmax(np.concatenate(logits) / card.temperature)

    familiarity = _familiarity(folder / "familiarity.npz", card)
    card = replace(card, name=name or card.name, parity=None)
    notes = (f"a training of {folder.name} is under way; this is the run before it",) * newer_under_way(folder)
    return Source(card, network_of(model), model, reference, familiarity, folder, notes)


def _batches(pixels: Array) -> list[Array]:
    return [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _load(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged file makes Keras, h5py or zipfile raise
        raise UserError(
            f"{path} is not a Keras model that can be read: it is damaged or of another kind. Train it again."
        ) from error


def _familiarity(path: Path, card: Card) -> Familiarity | None:
    if path.is_file():
        return Familiarity.load(path)
    if card.unfamiliar_below is None:
        return None
    raise UserError(f"The card has a limit of familiarity, and {path} is missing: bring it back, or train again.")
