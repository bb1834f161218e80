"""The interface of what answers a client: backend.answer(pictures, heatmaps=True, top=None)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from loupe.card import Card
from loupe.client.picture import Picture
from loupe.client.result import Result
from loupe.errors import LoupeError


class Backend(Protocol):
    at_once: int  # calls side by side that keep it busy
    batch: int  # pictures of one call that suit it
    where: str  # for people

    def card(self) -> tuple[int, Card]:
        """Return the version that is served now, and its card."""

    def answer(
        self, pictures: Sequence[Picture], *, heatmaps: bool, top: int | None, stop: threading.Event
    ) -> list[Result | LoupeError]:
        """Return a result for each picture, or the error that is the picture's own. What concerns all of them, such as
        a server that is not there, is raised; once `stop` is set, without asking again. Many threads may call it."""

    def close(self) -> None: ...
