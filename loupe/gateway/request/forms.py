"""The parts of a form that is in memory as a whole.

    for part in parts(body, request.headers["Content-Type"], most=100):       # BadRequest or TooLarge
        part.name, part.is_file, part.data

Written here because Werkzeug's parser is made for streams: of a photograph of 4 MB it takes 12 ms and this under 2, a
sixth of what the whole request costs. The parts' headers are still Werkzeug's to read, but for those that look as
curl and the browsers write them: a regular expression takes a twentieth of its time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from werkzeug.http import parse_options_header

from loupe.errors import BadRequest, TooLarge

MAX_HEAD = 8192  # of a part
AS_SENT_BY_CURL = "with curl: -F file=@picture.jpg"
_EDGE = re.compile(r"[ -~]{0,69}[!-~]", re.ASCII)  # RFC 2046, and more letters than it allows
_PLAIN_EDGE = re.compile(r"multipart/form-data; boundary=([\w-]+)", re.ASCII)
_PLAIN_PART = re.compile(r'form-data; name="([^"\\%]*)"(?:; filename="([^"\\%]*)")?')
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_KIND = re.compile(rb"^content-type[ \t]*:[ \t]*(?:image/|application/octet-stream)", re.IGNORECASE | re.MULTILINE)


class Part(NamedTuple):
    name: str
    is_file: bool  # it has a file name, or says that it is a picture
    data: bytes


def parts(body: bytes, content_type: str, most: int) -> Iterator[Part]:
    plain = _PLAIN_EDGE.fullmatch(content_type)
    edge = plain[1] if plain else parse_options_header(content_type)[1].get("boundary", "")
    if not _EDGE.fullmatch(edge):
        raise BadRequest(f"The form names no boundary between its parts; send it {AS_SENT_BY_CURL}.")
    delimiter = b"--" + edge.encode()
    start = len(delimiter) if body.startswith(delimiter) else _past_preamble(body, delimiter)
    for _ in range(most + 1):
        start, last = _line_end(body, start)
        if last:
            return
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise _broken()
        yield _part(body, start, end)
        start = end + 2 + len(delimiter)
    raise TooLarge(f"The form has more than {most} parts; send fewer at once.")


def _past_preamble(body: bytes, delimiter: bytes) -> int:
    found = body.find(b"\r\n" + delimiter)
    if found < 0:
        raise _broken()
    return found + 2 + len(delimiter)


def _line_end(body: bytes, start: int) -> tuple[int, bool]:
    """Where the line of a delimiter ends, and whether it was the last."""
    if body.startswith(b"--", start):
        return start, True
    end = body.find(b"\r\n", start, start + 256)
    if end < 0 or body[start:end].strip(b" \t"):
        raise _broken()
    return end, False


def _part(body: bytes, start: int, end: int) -> Part:
    """`start` is at the line break before the part's headers: a part may have none."""
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_HEAD))
    if head_end < 0:
        raise _broken()
    head = body[start:head_end]
    found = _DISPOSITION.search(head)
    name, file = _names(found[1].decode("utf-8", "replace")) if found else ("", None)
    return Part(name, file is not None or _KIND.search(head) is not None, body[head_end + 4 : end])


def _names(disposition: str) -> tuple[str, str | None]:
    """The part's, and its file's if it has one."""
    if plain := _PLAIN_PART.fullmatch(disposition):
        return plain[1], plain[2]
    told = parse_options_header(disposition)[1]
    return told.get("name", ""), told.get("filename")


def _broken() -> BadRequest:
    return BadRequest(f"The form broke off, or its parts are malformed; send it {AS_SENT_BY_CURL}.")
