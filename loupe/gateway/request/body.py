"""Read the pictures of a request, as bytes or URLs, from JSON, a form with files, or a raw body.

sent = read_pictures(environ, settings)        # SentPictures(items=[bytes | URL, …], is_batch=False)
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass
from typing import IO, Any

from loupe.errors import BadRequest, TooLarge, UnsupportedBody
from loupe.gateway.request.forms import read_parts
from loupe.gateway.request.schema import EXAMPLE, read_question
from loupe.gateway.settings import Settings

JSON = "application/json"
_PICTURE_FIRST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"b64"\s*:')
MAX_PARTS = 100  # of a form; a form with more is taken for an attack


@dataclass(frozen=True)
class URL:
    text: str


@dataclass(frozen=True)
class SentPictures:
    items: list[bytes | URL]
    is_batch: bool  # sent as a list, so the answer is a list


def read_pictures(environ: dict[str, Any], settings: Settings) -> SentPictures:
    """Read the pictures from the WSGI environment `environ`."""
    # The Content-Type decides how the body is read.
    body = _read_body(environ["wsgi.input"], settings.max_bytes)
    environ["wsgi.input"] = io.BytesIO()  # else it would be kept beside the pictures in it
    content_type: str = environ.get("CONTENT_TYPE", "")
    media_type = _media_type(content_type)
    if media_type == "multipart/form-data":
        sent = _from_form(body, content_type)
    elif media_type == JSON:
        sent = _from_json(body)
    elif media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        sent = SentPictures([body], is_batch=False)
    else:
        raise UnsupportedBody(
            f"A body of type {media_type[:60]!r} is not read; send JSON (-H 'Content-Type: application/json'), "
            "a form with files, or a picture's bytes as image/jpeg."
        )
    # The limit on pictures holds for each way of sending them.
    if len(sent.items) > settings.max_images:
        raise BadRequest(f"{len(sent.items)} pictures in one request; at most {settings.max_images} are taken.")
    return sent


def may_name_urls(content_type: str | None, body: bytes = b"") -> bool:
    """Tell if a request of this type may name URLs. One that begins with b64 has none: both together are refused."""
    return _media_type(content_type or "") == JSON and not _PICTURE_FIRST.match(body)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _read_body(stream: IO[bytes], limit: int) -> bytes:
    """Read the whole body. Loupe's own worker has checked its size already; other WSGI servers may not have."""
    try:
        body = stream.read(limit + 1)
    except Exception as error:  # any error of the HTTP server: a malformed chunk, a client that hung up
        raise BadRequest("The body broke off, or its chunks are malformed; send it again.") from error
    if len(body) > limit:
        raise TooLarge(f"The body is larger than {limit:,} bytes; send less at once, or smaller pictures.")
    return body


def _from_form(body: bytes, content_type: str) -> SentPictures:
    form = list(read_parts(body, content_type, MAX_PARTS))
    files = [part.data for part in form if part.is_file]
    if files and any(part.name in ("url", "urls") for part in form if not part.is_file):
        raise BadRequest("Both a file and a URL; send one or the other.")
    if not files:
        raise BadRequest(f"The form holds no file. With curl: -F file=@picture.jpg. For URLs {EXAMPLE} as JSON.")
    return SentPictures(list(files), is_batch=len(files) > 1)


def _from_json(body: bytes) -> SentPictures:
    question = read_question(body)
    if isinstance(question.url, str):
        return SentPictures([URL(question.url)], is_batch=False)
    if isinstance(question.b64, str):
        return SentPictures([_from_base64(question.b64)], is_batch=False)
    return SentPictures([URL(url) for url in question.urls or ()], is_batch=True)


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            "b64 is not base64 as it is taken here: letters, digits, + and /, padded with = at the end, no line breaks."
        ) from None
