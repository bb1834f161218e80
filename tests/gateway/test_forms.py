"""Reading the parts of a form: well formed ones as Werkzeug reads them, malformed ones are an error."""

from __future__ import annotations

import random

import pytest
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder

from loupe.errors import BadRequest, TooLarge
from loupe.gateway.request.forms import Part, read_parts

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def form(*parts: str | bytes, end: str = f"--{BOUNDARY}--\r\n") -> bytes:
    """Return a form. Each of `parts` is the part's headers, two line breaks and its data."""
    return b"".join(
        f"--{BOUNDARY}\r\n".encode() + (part.encode() if isinstance(part, str) else part) + b"\r\n" for part in parts
    ) + end.encode()  # fmt: skip


def disposition(name: str, filename: str | None = None, content_type: str | None = None) -> bytes:
    words = [f'Content-Disposition: form-data; name="{name}"'] + ([f'filename="{filename}"'] if filename else [])
    return ("; ".join(words) + (f"\r\nContent-Type: {content_type}" if content_type else "") + "\r\n\r\n").encode()


def by_werkzeug(body: bytes) -> list[Part]:
    decoder, parts = MultipartDecoder(BOUNDARY.encode(), None), []
    decoder.receive_data(body)
    decoder.receive_data(None)
    while not isinstance(event := decoder.next_event(), Epilogue):
        if isinstance(event, File | Field):
            parts.append(Part(event.name, isinstance(event, File), b""))
        elif isinstance(event, Data):
            parts[-1] = parts[-1]._replace(data=parts[-1].data + event.data)
    return parts


@pytest.mark.parametrize("seed", range(200))
def test_a_well_formed_form_is_read_as_werkzeug_reads_it(seed: int) -> None:
    """The data is made of the characters of boundaries and line breaks."""
    chance = random.Random(seed)
    sent = []
    for _ in range(chance.randint(1, 6)):
        data = bytes(chance.choice(b"\r\n-W\0\xff") for _ in range(chance.randint(0, 40)))
        name, filename = (
            chance.choice(["file", "url", "a b", "ü", "a; b=c", "%41", "it's, *"]),
            chance.choice([None, "x.jpg", "../../x", "ü.png"]),
        )
        sent.append(disposition(name, filename, "image/jpeg" if filename else None) + data)
    preamble = chance.choice([b"", b"\r\n", b"nothing to see\r\n"])
    body = preamble + form(*sent) + chance.choice([b"", b"epilogue"])
    assert list(read_parts(body, CONTENT_TYPE, 100)) == by_werkzeug(body)


@pytest.mark.parametrize(
    ("sent", "is_file"),
    [
        (disposition("file", "x.jpg"), True),
        (disposition("file", content_type="image/png"), True),
        (disposition("file", content_type="application/octet-stream"), True),
        (disposition("url"), False),
        (disposition("url", content_type="text/plain"), False),
        (b"\r\n", False),
    ],
)
def test_a_file_is_what_has_a_file_name_or_the_type_of_a_picture(sent: bytes, is_file: bool) -> None:
    [part] = read_parts(form(sent + b"data"), CONTENT_TYPE, 100)
    assert (part.is_file, part.data) == (is_file, b"data")


@pytest.mark.parametrize(
    "boundary", [f'"{BOUNDARY}"', f"{BOUNDARY}; charset=utf-8", f"{BOUNDARY} "], ids=["quoted", "with charset", "space"]
)
def test_the_boundary_is_found_as_clients_write_it(boundary: str) -> None:
    body = form(disposition("file", "x.jpg") + b"data")
    assert [part.data for part in read_parts(body, f"multipart/form-data; boundary={boundary}", 100)] == [b"data"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        form(disposition("file", "x.jpg") + b"data", end=""),
        form(disposition("file", "x.jpg") + b"data")[:-4],
        form(disposition("file", "x.jpg") + b"data").replace(b"\r\n", b"\n"),
        form('Content-Disposition: form-data; name="file"'),
        form(b"X: " + b"x" * 9000 + b"\r\n\r\ndata"),
        form(disposition("file", "x.jpg") + b"data").replace(BOUNDARY.encode() + b"\r\n", BOUNDARY.encode() + b"x\r\n"),
    ],
    ids=["empty", "text", "no end", "cut", "bare line feeds", "no data", "long head", "longer edge"],
)
def test_a_malformed_form_is_an_error_and_never_half_a_picture(body: bytes) -> None:
    with pytest.raises(BadRequest, match="curl: -F"):
        list(read_parts(body, CONTENT_TYPE, 100))


def test_a_form_may_have_no_part() -> None:
    assert list(read_parts(form(), CONTENT_TYPE, 100)) == []


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", f"{CONTENT_TYPE}{'x' * 70}"])
def test_without_a_boundary_nothing_is_read(kind: str) -> None:
    with pytest.raises(BadRequest, match="boundary"):
        list(read_parts(form(disposition("file", "x") + b"data"), kind, 100))


def test_a_hundred_parts_are_read_and_one_more_is_too_many() -> None:
    part = disposition("file", "x.jpg") + b"data"
    assert len(list(read_parts(form(*[part] * 100), CONTENT_TYPE, 100))) == 100
    with pytest.raises(TooLarge):
        list(read_parts(form(*[part] * 101), CONTENT_TYPE, 100))
