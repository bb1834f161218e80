"""One request's pictures, from bytes and URLs to answers in the order they came; one bad picture spoils no other.

batch = Batch(sent, settings)
batch.gather()                                        # fetches what is a URL
answer = model.predict(batch.pixels, heatmaps=True)   # decodes, as the model's card wants it
predictions = judge(answer)                           # of each picture: label, how sure, and why not
batch.results(answer, predictions, top=3, heatmaps=True)      # a dict or a Problem for each
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from loupe.card import Card
from loupe.errors import AllFailed, ImageError, OutOfTime, Problem, without_traceback
from loupe.gateway.model.cardless import picture
from loupe.gateway.model.client import Answer
from loupe.gateway.observe.record import Prediction
from loupe.gateway.request.body import URL, Sent
from loupe.gateway.request.deadline import NEVER, check_deadline
from loupe.gateway.request.fetch import fetch_all
from loupe.gateway.settings import Settings

WARMTH = (255, 72, 0)  # the heat map's colour; how warm is in its alpha


class Batch:
    def __init__(self, sent: Sent, settings: Settings, until: float = NEVER) -> None:
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
            check_deadline(self._until)
            try:
                decoded.append(picture(card, data))
            except ImageError as problem:
                self._pictures[place] = self._keep(problem)
        if not decoded:
            problems = [problem for problem in self._pictures if isinstance(problem, Problem)]
            raise AllFailed(f"None of the pictures could be used: {problems[0]}", problems)
        return np.stack(decoded) if len(decoded) > 1 else decoded[0][np.newaxis]

    def _keep(self, problem: Problem) -> Problem:
        """A problem with one of many is its own answer; with the only one it is the request's, as is its time."""
        if not self._sent.many or isinstance(problem, OutOfTime):
            raise problem
        return without_traceback(problem)

    def results(
        self, answer: Answer, predictions: list[Prediction], top: int | None, heatmaps: bool
    ) -> list[dict[str, Any] | Problem]:
        rows = iter(enumerate(predictions))
        return [
            data if isinstance(data, Problem) else _result(answer, *next(rows), top, heatmaps)
            for data in self._pictures
        ]


def _result(answer: Answer, row: int, prediction: Prediction, top: int | None, heatmaps: bool) -> dict[str, Any]:
    card, scores = answer.card, answer.probabilities[row]
    order = np.argsort(-scores, kind="stable")[:top]  # of equals the first is the best, as it is to judge()
    result: dict[str, Any] = {
        "label": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "certain": prediction.reason is None,
        "reason": prediction.reason,
        "scores": {card.labels[n]: round(float(scores[n]), 6) for n in order},
    }
    if heatmaps:  # null says that this model has none to give
        result["heatmap"] = None if answer.heatmaps is None else _picture_of(answer.heatmaps[row], card)
    return result


def judge(answer: Answer) -> list[Prediction]:
    """Of a picture of nothing known the confidence means nothing: that reason comes first."""
    card, known = answer.card, answer.familiarity
    unfamiliar = None if known is None or card.unfamiliar_below is None else known < card.unfamiliar_below
    found = []
    for row, top in enumerate(answer.probabilities.argmax(axis=1).tolist()):
        confidence = float(answer.probabilities[row, top])
        reason = None
        if unfamiliar is not None and unfamiliar[row]:
            reason = "unfamiliar"
        elif card.certain_at is not None and confidence < card.certain_at:
            reason = "below_threshold"
        found.append(Prediction(card.labels[top], confidence, None if known is None else float(known[row]), reason))
    return found


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
