"""Ask a Loupe gateway over HTTP: it fetches, decodes, asks its model and decides.

    backend = GatewayBackend(HttpServer("http://localhost:9696", 30), key="…", patience=10)

Pictures of one call travel as one form, addresses as a list: the gateway fetches these itself. A form that the gateway
finds too large is sent again in halves.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image

from loupe import errors
from loupe.card import Card
from loupe.client.backends.http import HttpServer, Reply
from loupe.client.backends.patience import patiently
from loupe.client.picture import Picture
from loupe.client.result import Result
from loupe.errors import (
    LoupeError,
    ModelUnavailable,
    ModelUnfit,
    PictureUnreadable,
    Problem,
    UserError,
    without_traceback,
)

MAX_FORM = 8_000_000  # bytes; a gateway takes 10 MB unless told otherwise
_PICTURES_OWN = {  # the codes of problems that are one picture's own, whatever the others are
    "unsupported_image", "broken_image", "too_many_pixels", "fetch_failed", "refused_url", "too_large",
}  # fmt: skip


def _by_code() -> dict[str, type[Problem]]:
    known = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Problem)]
    return {error.code: error for error in reversed(known) if error is not errors.AllFailed}


_PROBLEMS = _by_code()


class GatewayBackend:
    at_once, batch = 4, 8

    def __init__(self, server: HttpServer, key: str | None, patience: float) -> None:
        self.where = server.address
        self._server, self._patience = server, patience
        self._headers = {"X-API-Key": key} if key else {}
        self._cards: dict[int, Card] = {}  # by version

    def card(self) -> tuple[int, Card]:
        content = self._checked(self._server.ask("GET", "/model", headers=self._headers))
        try:
            version, card = int(content["version"]), _card(content)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise ModelUnfit(f"{self.where}/model gives no card; is a Loupe gateway there?") from error
        self._cards[version] = card
        return version, card

    def close(self) -> None:
        self._server.close()

    def answer(
        self, pictures: Sequence[Picture], *, heatmaps: bool, top: int | None, stop: threading.Event
    ) -> list[Result | LoupeError]:
        # Addresses in one call; files in forms that the gateway takes.
        answers: dict[int, Result | LoupeError] = {}
        addresses = [index for index, picture in enumerate(pictures) if picture.address]
        groups: list[tuple[list[int], list[bytes]]] = [(addresses, [])] if addresses else []
        size = MAX_FORM + 1
        for index, picture in enumerate(pictures):
            if picture.address:
                continue
            try:
                content = picture.read()
            except PictureUnreadable as error:
                answers[index] = without_traceback(error)
                continue
            size += len(content)
            if size > MAX_FORM:
                groups.append(([], []))
                size = len(content)
            groups[-1][0].append(index)
            groups[-1][1].append(content)
        # Ask group by group.
        query = f"?heatmap={int(heatmaps)}" + (f"&top={top}" if top else "")
        for indices, contents in groups:
            given = [pictures[index] for index in indices]
            answers |= dict(zip(indices, self._ask_group(given, contents, query, stop), strict=True))
        return [answers[index] for index in range(len(pictures))]

    def _ask_group(
        self, pictures: Sequence[Picture], contents: list[bytes], query: str, stop: threading.Event
    ) -> list[Result | LoupeError]:
        """Ask for pictures that are all addresses, or all have contents."""
        if contents:
            kind, body = _form(contents)
        else:
            kind, body = "application/json", json.dumps({"urls": [picture.address for picture in pictures]}).encode()
        headers = {**self._headers, "Content-Type": kind}
        try:
            content = patiently(
                lambda: self._checked(self._server.ask("POST", f"/predict{query}", body, headers)),
                self._patience,
                stop,
            )
        except errors.AllFailed as error:
            return list(error.problems)
        except Problem as error:
            # Too much at once for this gateway, or the only picture's own problem.
            if len(pictures) > 1 and error.code in ("too_large", "bad_request"):
                half = len(pictures) // 2
                parts = ((pictures[:half], contents[:half]), (pictures[half:], contents[half:]))
                return [answer for part in parts for answer in self._ask_group(*part, query, stop)]
            if error.code in _PICTURES_OWN:
                return [without_traceback(error)]
            raise
        given = content.get("predictions", [content])
        if len(given) != len(pictures):
            raise ModelUnfit(f"{self.where} gave {len(given)} answers for {len(pictures)} pictures.")
        version = int(content["model"]["version"])
        card = self._card_of(version)
        return [_result(answer, picture, version, card) for answer, picture in zip(given, pictures, strict=True)]

    def _card_of(self, version: int) -> Card:
        """Return the card of the version that answered; if it has gone meanwhile, that of the one after it."""
        if version not in self._cards:
            _, card = self.card()
            self._cards.setdefault(version, card)
        return self._cards[version]

    def _checked(self, reply: Reply) -> Any:
        """Return the reply's JSON. Raise what its problem says."""
        content = reply.json()
        if reply.status == 200 and isinstance(content, dict):
            return content
        if isinstance(content, dict) and "code" in content:
            raise _problem(content)
        if reply.status in (429, 502, 503, 504):
            raise ModelUnavailable(f"{self.where} answered {reply.status} {reply.reason}; try again in a moment.")
        raise UserError(f"{self.where} answered {reply.status} {reply.reason}; is a Loupe gateway there?")


def _problem(content: dict[str, Any]) -> Problem:
    text = str(content.get("detail", ""))
    if content.get("code") == errors.AllFailed.code:
        return errors.AllFailed(text, [_problem(each) for each in content.get("errors", [])])
    kind = _PROBLEMS.get(str(content.get("code")), Problem)
    return kind(text or f"The gateway answered {content.get('status')}.")


def _result(answer: dict[str, Any], picture: Picture, version: int, card: Card) -> Result | LoupeError:
    if "error" in answer:
        return _problem(answer["error"])
    return Result(
        picture.name,
        answer["label"],
        answer["confidence"],
        answer["certain"],
        answer["reason"],
        answer["scores"],
        version,
        _image(answer.get("heatmap")),
        card=card,
        picture=picture,
    )


def _image(url: str | None) -> Image.Image | None:
    if not url:
        return None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=["PNG"])
        image.load()
    except (OSError, ValueError, binascii.Error) as error:
        raise ModelUnfit("The gateway's heat map is no PNG.") from error
    return image


def _card(content: dict[str, Any]) -> Card:
    """Return the card that /model gives. A model that Loupe did not make has one of no format."""
    if content.get("loupe") is not None:
        return Card.from_json(json.dumps(content))
    size = content["input"]
    return Card(str(content["name"]), tuple(content["labels"]), int(size["height"]), int(size["width"]), heatmap=False)


def _form(contents: Sequence[bytes]) -> tuple[str, bytes]:
    """Return content type and body of a form with these files."""
    boundary = uuid.uuid4().hex
    pieces = []
    for number, content in enumerate(contents):
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{number}"\r\n\r\n'
        pieces += [head.encode(), content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(pieces)
