"""One request's pictures, from bytes and URLs to answers in the order they came; one bad picture spoils no other.

batch = Batch(sent, settings)
batch.gather()                                        # fetches what is a URL
answer = model.predict(batch.pixels, heatmaps=True)   # decodes, as the model's card wants it
batch.results(answer, top=3, heatmaps=True)           # a dict or a Problem for each
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from loupe.card import Card
from loupe.errors import AllFailed, ImageError, OutOfTime, Problem
from loupe.gateway import deadlines
from loupe.gateway.bodies import URL, Sent
from loupe.gateway.client import Answer
from loupe.gateway.fetch import fetch_all
from loupe.gateway.foreign import picture
from loupe.gateway.settings import Settings

WARMTH = (255, 72, 0)  # the heat map's colour; how warm is in its alpha


class Batch:
    def __init__(self, sent: Sent, settings: Settings, until: float = deadlines.NEVER) -> None:
        self._sent, self._settings, self._until = sent, settings, until
        self._pictures: list[bytes | Problem] = []

    def gather(self) -> None:
        urls = [item.text for item in self._sent.items if isinstance(item, URL)]
        fetched = iter(fetch_all(urls, self._settings, self._until))
        for item in self._sent.items:
            picture = next(fetched) if isinstance(item, URL) else item
            self._pictures.append(self._keep(picture) if isinstance(picture, Problem) else picture)

    def pixels(self, card: Card) -> np.ndarray[Any, Any]:
        decoded = []
        for place, data in enumerate(self._pictures):
            if isinstance(data, Problem):
                continue
            deadlines.check(self._until)
            try:
                decoded.append(picture(card, data))
            except ImageError as problem:
                self._pictures[place] = self._keep(problem)
        if not decoded:
            raise AllFailed("None of the pictures could be used: " + str(self._pictures[0]))
        return np.stack(decoded)

    def _keep(self, problem: Problem) -> Problem:
        """A problem with one of many is its own answer; with the only one it is the request's, as is its time."""
        if not self._sent.many or isinstance(problem, OutOfTime):
            raise problem
        return problem

    def results(self, answer: Answer, top: int | None, heatmaps: bool) -> list[dict[str, Any] | Problem]:
        rows = iter(range(len(answer.probabilities)))
        return [
            data if isinstance(data, Problem) else _result(answer, next(rows), top, heatmaps) for data in self._pictures
        ]


def _result(answer: Answer, row: int, top: int | None, heatmaps: bool) -> dict[str, Any]:
    card, scores = answer.card, answer.probabilities[row]
    order = np.argsort(-scores, kind="stable")
    confidence = float(scores[order[0]])
    reason = doubt(answer, row, confidence)
    result: dict[str, Any] = {
        "label": card.labels[order[0]],
        "confidence": round(confidence, 6),
        "certain": reason is None,
        "reason": reason,
        "scores": {card.labels[n]: round(float(scores[n]), 6) for n in order[:top]},
    }
    if heatmaps:  # null says that this model has none to give
        result["heatmap"] = None if answer.heatmaps is None else _picture_of(answer.heatmaps[row], card)
    return result


def doubt(answer: Answer, row: int, confidence: float) -> str | None:
    """Why the answer is not certain. Of a picture of nothing known the confidence means nothing: that comes first."""
    card, familiarity = answer.card, answer.familiarity
    if card.unfamiliar_below is not None and familiarity is not None and familiarity[row] < card.unfamiliar_below:
        return "unfamiliar"
    if card.certain_at is not None and confidence < card.certain_at:
        return "below_threshold"
    return None


def _picture_of(heatmap: np.ndarray[Any, Any], card: Card) -> str:
    """A PNG to lay over the picture, stretched to it: one colour, as opaque as it is warm."""
    alpha = Image.fromarray((heatmap * 255).astype(np.uint8)).resize(
        (card.width, card.height), Image.Resampling.BICUBIC
    )
    picture = Image.new("RGB", alpha.size, WARMTH)
    picture.putalpha(alpha)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
