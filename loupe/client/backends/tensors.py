"""Answer pictures by a model that is asked in tensors: prepare the pixels as its card wants them, ask, decide.

    backend = TensorBackend(served, where="…", at_once=4, batch=8, patience=10)

`served` computes one model: in this process, or at a TensorFlow Serving over gRPC or REST. Each call names the version
that the pixels were prepared for, so that an answer always fits. Where that version is gone, the pictures are prepared
for the new one and asked once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from loupe.card import Card
from loupe.cardless import ForeignCard, Interface, interface, is_distribution, prepare_picture, softmax
from loupe.client.backends.patience import patiently
from loupe.client.picture import Picture
from loupe.client.result import Result
from loupe.errors import (
    FetchFailed,
    ImageError,
    LoupeError,
    ModelGone,
    ModelUnfit,
    PictureUnreadable,
    without_traceback,
)
from loupe.prediction import decide, overlay, ranked_scores

CARD_SECONDS = 1.0  # for which a card is used before it is asked for again: a new version may be served
DESCRIBE = "describe"  # the signature that gives the card
Array = np.ndarray[Any, Any]


class Served(Protocol):
    def describe(self) -> tuple[int, Card]:
        """Return the version that is served now, and its card."""

    def compute(self, version: int, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Return the outputs by name. Raise ModelGone if the version is not served any more."""

    def close(self) -> None: ...


class TensorBackend:
    def __init__(self, served: Served, where: str, at_once: int, batch: int, patience: float) -> None:
        self.where, self.at_once, self.batch = where, at_once, batch
        self._served, self._patience = served, patience
        self._lock = threading.Lock()
        self._last: tuple[int, Card, float] | None = None  # version, its card, and when it was asked for
        self._logits_version: int | None = None  # the version without a card that last answered in logits

    def card(self) -> tuple[int, Card]:
        version, card = self._served.describe()
        with self._lock:
            self._last = (version, card, time.monotonic())
        return version, card

    def close(self) -> None:
        self._served.close()

    def answer(
        self, pictures: Sequence[Picture], *, heatmaps: bool, top: int | None, stop: threading.Event
    ) -> list[Result | LoupeError]:
        # Read the pictures once, whatever happens afterwards.
        contents = [_read(picture) for picture in pictures]
        # Prepare and ask; once more if the version has gone meanwhile.
        try:
            return patiently(lambda: self._answer(pictures, contents, heatmaps, top), self._patience, stop)
        except ModelGone:
            self._last = None
            return self._answer(pictures, contents, heatmaps, top)

    def _answer(
        self, pictures: Sequence[Picture], contents: Sequence[bytes | LoupeError], heatmaps: bool, top: int | None
    ) -> list[Result | LoupeError]:
        version, card = self._current_card()
        # Decode what can be decoded.
        prepared = [_prepare(card, content) for content in contents]
        rows = [pixels for pixels in prepared if not isinstance(pixels, LoupeError)]
        if not rows:
            return [error for error in prepared if isinstance(error, LoupeError)]
        # Ask the model, and decide.
        wanted = interface(card, heatmaps)
        outputs = self._served.compute(version, {wanted.image: np.stack(rows)}, wanted.outputs)
        results = iter(self._results(version, card, wanted, outputs, len(rows), top))
        # Each picture's answer in its place.
        answers: list[Result | LoupeError] = []
        for picture, pixels in zip(pictures, prepared, strict=True):
            if isinstance(pixels, LoupeError):
                answers.append(pixels)
            else:
                answers.append(Result(picture.name, *next(results), card=card, picture=picture))
        return answers

    def _results(
        self, version: int, card: Card, wanted: Interface, outputs: Mapping[str, Array], count: int, top: int | None
    ) -> list[tuple[Any, ...]]:
        """Return the fields of each row's Result, from `label` to `heatmap`."""
        probabilities = self._probabilities(version, card, outputs[wanted.outputs[0]], count)
        maps = outputs.get("heatmap")
        return [
            (
                prediction.label,
                round(prediction.confidence, 6),
                prediction.certain,
                prediction.reason,
                ranked_scores(card, probabilities[row], top),
                version,
                None if maps is None else overlay(maps[row], card),
            )
            for row, prediction in enumerate(decide(card, probabilities, outputs.get("familiarity")))
        ]

    def _probabilities(self, version: int, card: Card, rows: Array, count: int) -> Array:
        if rows.shape != (count, len(card.labels)):
            raise ModelUnfit(
                f"The model gave numbers of shape {list(rows.shape)} for {count} pictures, and its card has "
                f"{len(card.labels)} labels; export it again."
            )
        if not isinstance(card, ForeignCard):
            return rows
        if version != self._logits_version:  # else it has said what it gives: logits may look otherwise by chance
            if is_distribution(rows):
                return rows
            self._logits_version = version
        return softmax(rows)

    def _current_card(self) -> tuple[int, Card]:
        last = self._last
        if last and time.monotonic() - last[2] < CARD_SECONDS:
            return last[0], last[1]
        return self.card()


def _read(picture: Picture) -> bytes | LoupeError:
    try:
        return picture.read()
    except (PictureUnreadable, FetchFailed) as error:
        return without_traceback(error)


def _prepare(card: Card, content: bytes | LoupeError) -> Array | LoupeError:
    if isinstance(content, LoupeError):
        return content
    try:
        return prepare_picture(card, content)
    except ImageError as error:
        return without_traceback(error)
