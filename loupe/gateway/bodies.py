"""What a request brings: pictures as bytes or as URLs, out of JSON, a form with files, or a raw body.

    sent = read(request, settings)        # Sent(items=[bytes | URL, …], many=False)

Bodies are cut off at the limit while they are read, whatever their headers promise.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge

from loupe.errors import BadRequest, TooLarge, UnsupportedBody
from loupe.gateway.settings import Settings

MAX_PARTS = 100  # of a form; more is not a folder of pictures but an attack
DRAINED = 3  # times the limit
EXAMPLE = 'send {"url": "https://…"}, {"urls": [...]} or {"b64": "…"}'


@dataclass(frozen=True)
class URL:
    text: str


@dataclass(frozen=True)
class Sent:
    items: list[bytes | URL]
    many: bool  # asked for as a list, so answered as one


def read(request: Request, settings: Settings) -> Sent:
    limit = settings.max_bytes
    stream = request.environ["wsgi.input"]
    if (request.content_length or 0) > limit:
        raise _too_large(limit, stream)
    request.environ["wsgi.input"] = _Capped(stream, limit)
    kind = request.mimetype
    if kind == "multipart/form-data":
        sent = _from_form(request)
    elif kind == "application/json":
        sent = _from_json(request)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        sent = Sent([request.stream.read()], many=False)
    else:
        raise UnsupportedBody(
            f"A body of type {kind[:60]!r} is not read; send JSON (-H 'Content-Type: application/json'), "
            "a form with files, or a picture's bytes as image/jpeg."
        )
    if len(sent.items) > settings.max_images:
        raise BadRequest(f"{len(sent.items)} pictures in one request; at most {settings.max_images} are taken.")
    return sent


def _from_form(request: Request) -> Sent:
    request.max_form_parts = MAX_PARTS
    try:
        files = [file for name in request.files for file in request.files.getlist(name)]
        texts = request.form
    except RequestEntityTooLarge as error:
        raise TooLarge(f"The form has more than {MAX_PARTS} parts, or a text in it is too long.") from error
    if files and ("url" in texts or "urls" in texts):
        raise BadRequest("Both a file and a URL; send one or the other.")
    if not files:
        raise BadRequest(f"The form holds no file. With curl: -F file=@picture.jpg. For URLs {EXAMPLE} as JSON.")
    return Sent([file.read() for file in files], many=len(files) > 1)


def _from_json(request: Request) -> Sent:
    try:
        body = request.get_json(silent=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest(f"The body is not a JSON object; {EXAMPLE}.")
    given = [key for key in ("url", "urls", "b64") if key in body]
    if len(given) != 1:
        raise BadRequest(f"{'None' if not given else 'More than one'} of url, urls and b64 is given; {EXAMPLE}.")
    value = body[given[0]]
    if given == ["url"]:
        return Sent([URL(_text(value, "url"))], many=False)
    if given == ["b64"]:
        return Sent([_from_base64(_text(value, "b64"))], many=False)
    if not isinstance(value, list) or not value:
        raise BadRequest("urls must be a list of one or more URLs.")
    return Sent([URL(_text(item, "each of urls")) for item in value], many=True)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{what} must be a text that is not empty; {EXAMPLE}.")
    return value


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("b64 is not base64; encode the picture's bytes without line breaks.") from None


def _too_large(limit: int, stream: IO[bytes]) -> TooLarge:
    """Most of what is still coming is taken and thrown away: a client that cannot send to the end never reads why."""
    left = DRAINED * limit
    with contextlib.suppress(Exception):  # it need not be well formed either
        while left > 0 and (data := stream.read(min(left, 1 << 16))):
            left -= len(data)
    return TooLarge(f"The body is larger than {limit:,} bytes; send less at once, or smaller pictures.")


class _Capped:
    """A body that ends in an error beyond the limit. A length that is only announced cuts a picture off unnoticed."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        return self._count(self._stream.read, size)

    def readline(self, size: int = -1) -> bytes:
        return self._count(self._stream.readline, size)

    def _count(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            data = read(self._left + 1 if size is None or size < 0 else size)
        except Exception as error:  # the HTTP server's own: a chunk that is none, a client that left
            raise BadRequest("The body broke off, or its chunks are malformed; send it again.") from error
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limit, self._stream)
        return data
