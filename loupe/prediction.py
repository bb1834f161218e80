"""What is said of one picture: label, certainty, heat map. Every way of asking a model decides it here.

predictions = decide(card, probabilities, familiarity)      # one for each row
overlay(heatmap, card)                                      # an image to lay over the picture
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from loupe.card import Card

HEATMAP_COLOUR = (255, 72, 0)  # red, green, blue; the alpha channel shows the heat

Array = np.ndarray[Any, Any]


class Prediction(NamedTuple):
    label: str
    confidence: float
    familiarity: float | None
    certain: bool | None  # None: the card has nothing to judge it by, or could not be given what it was asked for
    reason: str | None  # why it is not certain


def decide(card: Card, probabilities: Array, familiarity: Array | None) -> list[Prediction]:
    """Decide label, confidence and reason for each picture. If it is unfamiliar, the confidence says nothing. Where a
    threshold was asked for and could not be given, no answer is certain, however familiar the picture."""
    unfamiliar = None if familiarity is None or card.unfamiliar_below is None else familiarity < card.unfamiliar_below
    can_judge = card.certain_note is None and (unfamiliar is not None or card.certain_at is not None)
    predictions = []
    for row, top in enumerate(probabilities.argmax(axis=1).tolist()):
        confidence = float(probabilities[row, top])
        reason = None
        if unfamiliar is not None and unfamiliar[row]:
            reason = "unfamiliar"
        elif card.certain_at is not None and confidence < card.certain_at:
            reason = "below_threshold"
        known = None if familiarity is None else float(familiarity[row])
        certain = False if reason else True if can_judge else None
        predictions.append(Prediction(card.labels[top], confidence, known, certain, reason))
    return predictions


def ranked_scores(card: Card, probabilities: Array, top: int | None = None) -> dict[str, float]:
    """Return the scores of one picture by label, the best first. Of equal ones the first label comes first, as in
    decide()."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return {card.labels[index]: round(float(probabilities[index]), 6) for index in order}


def percent(share: float) -> str:
    """Return a share in percent. None is ever quite 0 or 1, so none is shown as that."""
    return "> 99.9 %" if share > 0.999 else "< 0.1 %" if share < 0.001 else f"{share * 100:.1f} %"


def overlay(heatmap: Array, card: Card) -> Image.Image:
    """Return an image of the model's input size in one colour: the hotter, the more opaque."""
    alpha = Image.fromarray((heatmap * 255).astype(np.uint8)).resize(
        (card.width, card.height), Image.Resampling.BICUBIC
    )
    image = Image.new("RGB", alpha.size, HEATMAP_COLOUR)
    image.putalpha(alpha)
    return image
