"""Read the parts of a form (multipart/form-data) whose body is in memory as a whole.

    for part in read_parts(body, request.headers["Content-Type"], max_parts=100):       # BadRequest or TooLarge
        part.name, part.is_file, part.data

Werkzeug's parser is made for streams. It takes 12 ms for a photograph of 4 MB, a sixth of what the whole request
costs; this one takes under 2 ms. A regular expression reads the headers of parts that look as curl and browsers write
them, in a twentieth of the time that Werkzeug takes. Werkzeug reads all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from werkzeug.http import parse_options_header

from loupe.errors import BadRequest, TooLarge

MAX_PART_HEAD = 4096  # bytes of one part's headers; Werkzeug takes a millisecond for 2,500 of semicolons
CURL_EXAMPLE = "with curl: -F file=@picture.jpg"
_BOUNDARY = re.compile(r"[ -~]{0,69}[!-~]", re.ASCII)  # RFC 2046, plus characters that it does not allow
_USUAL_BOUNDARY = re.compile(r"multipart/form-data; boundary=([\w-]+)", re.ASCII)
_USUAL_DISPOSITION = re.compile(r'form-data; name="([^"\\%]*)"(?:; filename="([^"\\%]*)")?')
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_PICTURE = re.compile(rb"^content-type[ \t]*:[ \t]*(?:image/|application/octet-stream)", re.IGNORECASE | re.MULTILINE)


class Part(NamedTuple):
    name: str
    is_file: bool  # it has a file name, or the type of a picture
    data: bytes


def read_parts(body: bytes, content_type: str, max_parts: int) -> Iterator[Part]:
    # The boundary between the parts, from the Content-Type.
    usual = _USUAL_BOUNDARY.fullmatch(content_type)
    boundary = usual[1] if usual else parse_options_header(content_type)[1].get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadRequest(f"The form names no boundary between its parts; send it {CURL_EXAMPLE}.")
    # Part after part, up to the closing delimiter.
    delimiter = b"--" + boundary.encode()
    start = len(delimiter) if body.startswith(delimiter) else _skip_preamble(body, delimiter)
    for _ in range(max_parts + 1):
        start, last = _end_of_delimiter(body, start)
        if last:
            return
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise _broken_form()
        yield _read_part(body, start, end)
        start = end + 2 + len(delimiter)
    raise TooLarge(f"The form has more than {max_parts} parts; send fewer at once.")


def _skip_preamble(body: bytes, delimiter: bytes) -> int:
    first = body.find(b"\r\n" + delimiter)
    if first < 0:
        raise _broken_form()
    return first + 2 + len(delimiter)


def _end_of_delimiter(body: bytes, start: int) -> tuple[int, bool]:
    """Return where the line of a delimiter ends, and True if that delimiter closes the form."""
    if body.startswith(b"--", start):
        return start, True
    end = body.find(b"\r\n", start, start + 256)
    if end < 0 or body[start:end].strip(b" \t"):
        raise _broken_form()
    return end, False


def _read_part(body: bytes, start: int, end: int) -> Part:
    """Read the part at `start`, the line break before its headers. A part may have no headers."""
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_PART_HEAD))
    if head_end < 0:
        raise _broken_form()
    head = body[start:head_end]
    disposition = _DISPOSITION.search(head)
    name, file_name = _read_names(disposition[1].decode("utf-8", "replace")) if disposition else ("", None)
    return Part(name, file_name is not None or _PICTURE.search(head) is not None, body[head_end + 4 : end])


def _read_names(disposition: str) -> tuple[str, str | None]:
    """Return the part's name, and its file name or None."""
    if usual := _USUAL_DISPOSITION.fullmatch(disposition):
        return usual[1], usual[2]
    options = parse_options_header(disposition)[1]
    return options.get("name", ""), options.get("filename")


def _broken_form() -> BadRequest:
    return BadRequest(f"The form broke off, or its parts are malformed; send it {CURL_EXAMPLE}.")
