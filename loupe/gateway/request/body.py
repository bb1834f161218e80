"""What a request brings: pictures as bytes or as URLs, out of JSON, a form with files, or a raw body.

sent = read(environ, settings)        # Sent(items=[bytes | URL, …], many=False)
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import IO, Any

from loupe.errors import BadRequest, TooLarge, UnsupportedBody
from loupe.gateway.request.forms import parts
from loupe.gateway.request.schema import EXAMPLE, question_of
from loupe.gateway.settings import Settings

MAX_PARTS = 100  # of a form; more is not a folder of pictures but an attack


@dataclass(frozen=True)
class URL:
    text: str


@dataclass(frozen=True)
class Sent:
    items: list[bytes | URL]
    many: bool  # asked for as a list, so answered as one


def read(environ: dict[str, Any], settings: Settings) -> Sent:
    """`environ`: WSGI's."""
    body = _whole(environ["wsgi.input"], settings.max_bytes)
    content_type: str = environ.get("CONTENT_TYPE", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        sent = _from_form(body, content_type)
    elif kind == "application/json":
        sent = _from_json(body)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        sent = Sent([body], many=False)
    else:
        raise UnsupportedBody(
            f"A body of type {kind[:60]!r} is not read; send JSON (-H 'Content-Type: application/json'), "
            "a form with files, or a picture's bytes as image/jpeg."
        )
    if len(sent.items) > settings.max_images:
        raise BadRequest(f"{len(sent.items)} pictures in one request; at most {settings.max_images} are taken.")
    return sent


def _whole(stream: IO[bytes], limit: int) -> bytes:
    """The worker has gathered it within the limit; under another one a chunked body would not end."""
    try:
        body = stream.read(limit + 1)
    except Exception as error:  # the HTTP server's own: a chunk that is none, a client that left
        raise BadRequest("The body broke off, or its chunks are malformed; send it again.") from error
    if len(body) > limit:
        raise TooLarge(f"The body is larger than {limit:,} bytes; send less at once, or smaller pictures.")
    return body


def _from_form(body: bytes, content_type: str) -> Sent:
    sent = list(parts(body, content_type, MAX_PARTS))
    files = [part.data for part in sent if part.is_file]
    if files and any(part.name in ("url", "urls") for part in sent if not part.is_file):
        raise BadRequest("Both a file and a URL; send one or the other.")
    if not files:
        raise BadRequest(f"The form holds no file. With curl: -F file=@picture.jpg. For URLs {EXAMPLE} as JSON.")
    return Sent(list(files), many=len(files) > 1)


def _from_json(body: bytes) -> Sent:
    question = question_of(body)
    if isinstance(question.url, str):
        return Sent([URL(question.url)], many=False)
    if isinstance(question.b64, str):
        return Sent([_from_base64(question.b64)], many=False)
    return Sent([URL(url) for url in question.urls or ()], many=True)


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            "b64 is not base64 as it is taken here: letters, digits, + and /, padded with = at the end, no line breaks."
        ) from None
