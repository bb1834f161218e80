"""A model that can be asked, wherever it is computed: see loupe/client.

model.predict("photo.jpg")                    # a Result
model.predict(["a.jpg", array, image])        # a list of them
for picture, answer in model.stream(paths):   # any number: in order, side by side, in bounded memory
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Literal, overload

from PIL import Image

from loupe.card import Card
from loupe.client.backends.backend import Backend
from loupe.client.picture import Picture, is_one, many, picture_of, picture_or_error
from loupe.client.result import Result, Results
from loupe.errors import LoupeError, UserError

Answer = Result | LoupeError
One = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Picture | IO[bytes]


class Model:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._closed = threading.Event()
        self.batch = backend.batch  # pictures of one call

    @property
    def card(self) -> Card:
        """What the model says of itself: labels, input size, accuracy."""
        return self._describe()[1]

    @property
    def version(self) -> int:
        """The version that is served now."""
        return self._describe()[0]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.card.labels

    @overload
    def predict(self, given: One, *, top: int | None = ..., heatmaps: bool = ...) -> Result: ...

    @overload
    def predict(
        self,
        given: Iterable[Any],
        *,
        top: int | None = ...,
        heatmaps: bool = ...,
        return_errors: Literal[False] = ...,
    ) -> Results[Result]: ...

    @overload
    def predict(
        self, given: Iterable[Any], *, top: int | None = ..., heatmaps: bool = ..., return_errors: Literal[True]
    ) -> Results[Result | LoupeError]: ...

    @overload
    def predict(self, given: Any, *, top: int | None = ..., heatmaps: bool = ..., return_errors: bool = ...) -> Any: ...

    def predict(self, given: Any, *, top: int | None = None, heatmaps: bool = True, return_errors: bool = False) -> Any:
        """Return a Result for a picture, or a list of them for many.

        A picture is a path, bytes, an open file, a uint8 array [height, width, 3], a PIL image or an address. One that
        cannot be used raises its error; with `return_errors` it is returned in the result's place. `top` keeps only the
        best scores."""
        if is_one(given):
            self._check(top)
            picture = picture_or_error(given, "picture") if return_errors else picture_of(given)
            [answer] = self._backend.answer([picture], heatmaps=heatmaps, top=top, stop=self._closed)
            if isinstance(answer, LoupeError) and not return_errors:
                raise answer
            return answer
        answers: Results[Answer] = Results()
        for picture, answer in self.stream(many(given), top=top, heatmaps=heatmaps):
            if isinstance(answer, LoupeError):
                answer = _named(answer, picture.name)
                if not return_errors:
                    raise answer
            answers.append(answer)
        return answers

    def stream(
        self, pictures: Iterable[Any], *, top: int | None = None, heatmaps: bool = False
    ) -> Generator[tuple[Picture, Answer], None, None]:
        """Yield each picture with its answer, in order. They are read, decoded and computed side by side, and few are
        held at a time. An error of the picture's own is its answer; what concerns all of them is raised, after all
        that was answered before has been yielded."""
        self._check(top)
        if isinstance(pictures, str | bytes):
            raise UserError("stream() takes many pictures; for one there is predict().")
        stop = threading.Event()

        def ask(batch: list[Picture]) -> list[Answer]:
            return self._backend.answer(batch, heatmaps=heatmaps, top=top, stop=stop)

        workers = self._backend.at_once + 1  # one more, so that pictures are decoded while others are computed
        pool = ThreadPoolExecutor(workers, "loupe")
        waiting: deque[tuple[list[Picture], Future[list[Answer]]]] = deque()
        failure: Exception | None = None
        try:
            # Keep each worker busy, and one more batch waiting for it.
            batches = _batches(pictures, self.batch)
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:  # whoever gives the pictures failed
                    failure = error
                    break
                if batch is None:
                    break
                waiting.append((batch, pool.submit(ask, batch)))
                if len(waiting) > 2 * workers:
                    yield from _answered(*waiting.popleft())
            while waiting:
                yield from _answered(*waiting.popleft())
            if failure:
                raise failure
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Give back connections, or the memory of the model."""
        if not self._closed.is_set():
            self._closed.set()
            self._backend.close()

    def _describe(self) -> tuple[int, Card]:
        self._check()
        return self._backend.card()

    def _check(self, top: int | None = None) -> None:
        if self._closed.is_set():
            raise UserError("This model was closed: load it, or connect, again.")
        if top is not None and (not isinstance(top, int) or top < 1):
            raise UserError(f"top must be a whole number, 1 or more, not {top!r}.")

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = self._backend.where
        try:
            version, card = self._describe()
        except LoupeError as error:  # a notebook shows a model whose server is gone, too
            return f"<loupe.Model, by {where}: {error}>"
        labels = ", ".join(card.labels[:10]) + (f" and {len(card.labels) - 10} more" if len(card.labels) > 10 else "")
        return f"<loupe.Model {card.name}, version {version}, by {where}: {labels}>"


def _batches(pictures: Iterable[Any], size: int) -> Iterator[list[Picture]]:
    """Yield so many pictures at a time; what was given before an error comes before it."""
    batch: list[Picture] = []
    iterator = enumerate(pictures, 1)
    while True:
        try:
            number, given = next(iterator)
        except StopIteration:
            break
        except Exception:
            if batch:
                yield batch
            raise
        batch.append(picture_or_error(given, f"picture {number}"))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answered(batch: list[Picture], future: Future[list[Answer]]) -> Iterator[tuple[Picture, Answer]]:
    yield from zip(batch, future.result(), strict=True)


def _named(error: LoupeError, name: str) -> LoupeError:
    """Return the error with the picture's name in its text."""
    if name in str(error):
        return error
    return type(error)(f"{name}: {error}")
