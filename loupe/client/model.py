"""A model that can be asked, wherever it is computed: see loupe/client.

model.predict("photo.jpg")                    # a Result
model.predict(["a.jpg", array, image])        # a list of them
for picture, answer in model.stream(paths):   # any number: in order, side by side, in bounded memory
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Literal, overload

from loupe.card import Card
from loupe.client.backends.backend import Backend
from loupe.client.picture import Picture, is_one, picture_of, pictures_of
from loupe.client.result import Result, Results
from loupe.errors import LoupeError

Answers = list[Result | LoupeError]


class Model:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.batch = backend.batch  # pictures of one call

    @property
    def card(self) -> Card:
        """What the model says of itself: labels, input size, accuracy."""
        return self._backend.card()[1]

    @property
    def version(self) -> int:
        """The version that is served now."""
        return self._backend.card()[0]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.card.labels

    @overload
    def predict(self, given: str | bytes | Picture, *, top: int | None = ..., heatmaps: bool = ...) -> Result: ...

    @overload
    def predict(
        self,
        given: Sequence[Any],
        *,
        top: int | None = ...,
        heatmaps: bool = ...,
        return_errors: Literal[False] = ...,
    ) -> list[Result]: ...

    @overload
    def predict(self, given: Any, *, top: int | None = ..., heatmaps: bool = ..., return_errors: bool = ...) -> Any: ...

    def predict(self, given: Any, *, top: int | None = None, heatmaps: bool = True, return_errors: bool = False) -> Any:
        """Return a Result for a picture, or a list of them for many.

        A picture is a path, bytes, a uint8 array [height, width, 3], a PIL image or an address. One that cannot be used
        raises its error; of many, it takes the result's place instead where `return_errors` is given. `top` keeps only
        the best scores."""
        if is_one(given):
            [answer] = self._backend.answer([picture_of(given)], heatmaps=heatmaps, top=top)
            if isinstance(answer, LoupeError):
                raise answer
            return answer
        answers = Results()
        for picture, answer in self.stream(pictures_of(given), top=top, heatmaps=heatmaps):
            if isinstance(answer, LoupeError) and not return_errors:
                named = str(answer) if picture.name in str(answer) else f"{picture.name}: {answer}"
                raise type(answer)(named) from answer
            answers.append(answer)
        return answers

    def stream(
        self, pictures: Iterable[Any], *, top: int | None = None, heatmaps: bool = False
    ) -> Iterator[tuple[Picture, Result | LoupeError]]:
        """Yield each picture with its answer, in order. They are read, decoded and computed side by side, and few are
        held at a time. An error of the picture's own is its answer; what concerns all of them is raised, after all
        that was answered before has been yielded."""

        def ask(batch: list[Picture]) -> Answers:
            return self._backend.answer(batch, heatmaps=heatmaps, top=top)

        numbered = (picture_of(each, f"picture {number}") for number, each in enumerate(pictures, 1))
        workers = self._backend.at_once + 1  # one more, so that pictures are decoded while others are computed
        pool = ThreadPoolExecutor(workers, "loupe")
        waiting: deque[tuple[list[Picture], Future[Answers]]] = deque()
        try:
            # Keep each worker busy, and one more batch waiting for it.
            while batch := list(islice(numbered, self.batch)):
                waiting.append((batch, pool.submit(ask, batch)))
                if len(waiting) > 2 * workers:
                    yield from _answered(*waiting.popleft())
            while waiting:
                yield from _answered(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        version, card = self._backend.card()
        labels = ", ".join(card.labels[:10]) + (f" and {len(card.labels) - 10} more" if len(card.labels) > 10 else "")
        return f"<loupe.Model {card.name}, version {version}, by {self._backend.where}: {labels}>"


def _answered(batch: list[Picture], future: Future[Answers]) -> Iterator[tuple[Picture, Result | LoupeError]]:
    yield from zip(batch, future.result(), strict=True)
