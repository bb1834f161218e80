"""Read a run of Loupe's own as a source to export. foreign/ reads models made elsewhere into the same class.

source = read_run(Path("runs/tires"))
source.reference(pixels)                  # the trained model's own answers: uint8 [N, H, W, 3] → [N, C]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph.savedmodel import Network, network_of
from loupe.export.graph.simplify import flat, in_precision
from loupe.export.run_folder import check_run, is_retrained
from loupe.familiarity import Familiarity

BATCH = 32

Array = np.ndarray[Any, Any]
Reference = Callable[[Array], Array]  # uint8 [N, H, W, 3] → [N, C]


@dataclass(frozen=True)
class Source:
    card: Card
    network: Network  # exported as it is, in float32
    model: (
        keras.Model | None
    )  # flat, from pixels of 0…255 to logits; None: a black box, exported as it is or not at all
    reference: Reference  # the original's own probabilities, by its own library
    familiarity: Familiarity | None = None
    run: Path | None = None
    notes: tuple[str, ...] = ()  # to show to the user
    rescaled: Mapping[str, Reference] = field(default_factory=dict)  # had --preprocess named another scaling


def read_run(folder: Path, name: str | None = None) -> Source:
    """Read a finished run. `name` replaces the card's name for the published model."""
    # Read model and card, and check that they match.
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
    # Make the model flat, and keep what its own answers are compared with.
    model = in_precision(flat(original), "float32")
    is_float32 = all(layer.compute_dtype == "float32" for layer in original.layers)
    reference_model = original if is_float32 else model  # trained in half precision it rounds differently each time

    def reference(pixels: Array) -> Array:
        logits = [reference_model.predict_on_batch(batch) for batch in _batches(pixels.astype(np.float32))]
        return softmax(np.concatenate(logits) / card.temperature)

    # Describe it as a source.
    familiarity = _familiarity(folder / "familiarity.npz", card)
    card = replace(card, name=name or card.name, parity=None)
    notes = (f"a training of {folder.name} is under way; this is the run before it",) * is_retrained(folder)
    return Source(card, network_of(model), model, reference, familiarity, folder, notes)


def _batches(pixels: Array) -> list[Array]:
    return [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _load(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged file raises errors of every type
        raise UserError(
            f"{path} is not a Keras model that can be read: it is damaged or of another kind. Train it again."
        ) from error


def _familiarity(path: Path, card: Card) -> Familiarity | None:
    if path.is_file():
        return Familiarity.load(path)
    if card.unfamiliar_below is None:
        return None
    raise UserError(f"The card has a limit of familiarity, and {path} is missing: bring it back, or train again.")
