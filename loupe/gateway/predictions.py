"""Turn the pictures of one request into results, in the order they were sent. A bad picture does not affect the others.

batch = Batch(sent, settings, memory)                         # memory: the worker's DecodeMemory
batch.fetch_urls()
answer = model.predict(batch.pixels, heatmaps=True)           # calls batch.pixels, which decodes for the model's card
predictions = decide(answer.card, answer.probabilities, answer.familiarity)     # loupe/prediction.py
batch.results(answer, predictions, top=3, heatmaps=True)      # a dict or a Problem for each
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from loupe.card import Card
from loupe.cardless import prepare_picture
from loupe.errors import AllFailed, Busy, ImageError, OutOfTime, Problem, without_traceback
from loupe.gateway.decoding import DecodeMemory, RequestAllowance
from loupe.gateway.model.client import Answer
from loupe.gateway.request.body import URL, SentPictures
from loupe.gateway.request.deadline import NEVER, check_caller
from loupe.gateway.request.fetch import fetch_all
from loupe.gateway.settings import Settings
from loupe.prediction import Prediction, overlay, ranked_scores


class Batch:
    def __init__(
        self, sent: SentPictures, settings: Settings, memory: DecodeMemory, caller_deadline: float = NEVER
    ) -> None:
        self._sent, self._settings, self._caller_deadline = sent, settings, caller_deadline
        self._allowance = RequestAllowance(settings, memory, caller_deadline)
        self._pictures: list[bytes | Problem] = []

    def fetch_urls(self) -> None:
        urls = [item.text for item in self._sent.items if isinstance(item, URL)]
        fetched = iter(fetch_all(urls, self._settings, self._caller_deadline))
        for item in self._sent.items:
            picture = next(fetched) if isinstance(item, URL) else item
            self._pictures.append(self._keep_or_raise(picture) if isinstance(picture, Problem) else picture)

    def first(self) -> bytes:
        """Return the bytes of the first picture, as they were sent or fetched. Raise its problem if there is one."""
        picture = self._pictures[0]
        if isinstance(picture, Problem):
            raise picture
        return picture

    def pixels(self, card: Card) -> np.ndarray[Any, Any]:
        """Decode the pictures for the model with this card. Raise AllFailed if none could be decoded."""
        decoded = []
        self._allowance.begin()
        for index, data in enumerate(self._pictures):
            if isinstance(data, Problem):
                continue
            check_caller(self._caller_deadline)
            try:
                with self._allowance.picture():
                    decoded.append(prepare_picture(card, data, self._allowance))
            except ImageError as problem:
                self._pictures[index] = self._keep_or_raise(problem)
            except Busy:  # with us, or with the caller's limit?
                check_caller(self._caller_deadline)
                raise
        if not decoded:
            problems = [problem for problem in self._pictures if isinstance(problem, Problem)]
            raise AllFailed(f"None of the pictures could be used: {problems[0]}", problems)
        return np.stack(decoded) if len(decoded) > 1 else decoded[0][np.newaxis]

    def _keep_or_raise(self, problem: Problem) -> Problem:
        """Single picture: raise. Batch: keep the error with its picture. OutOfTime is always raised."""
        if not self._sent.is_batch or isinstance(problem, OutOfTime):
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
    result: dict[str, Any] = {
        "label": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "certain": prediction.certain,
        "reason": prediction.reason,
        "scores": ranked_scores(answer.card, answer.probabilities[row], top),
    }
    if heatmaps:  # null: the model gives no heat maps
        result["heatmap"] = None if answer.heatmaps is None else _heatmap_png(answer.heatmaps[row], answer.card)
    return result


def _heatmap_png(heatmap: np.ndarray[Any, Any], card: Card) -> str:
    """Return a data URL of a PNG to lay over the picture."""
    file = io.BytesIO()
    overlay(heatmap, card).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
