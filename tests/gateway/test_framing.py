"""Where a request ends, told from bytes that come in any pieces."""

from __future__ import annotations

import pytest

from loupe.gateway.door.framing import MAX_CHUNKS, MAX_HEAD, Arriving

LIMIT = 1000
HEAD = b"POST /predict?top=1 HTTP/1.1\r\nHost: here\r\n"
WHOLE = {
    "without a body": b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n",
    "of a length": HEAD + b"Content-Length: 5\r\n\r\nhello",
    "of length 0": HEAD + b"content-length:0\r\n\r\n",
    "in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n\r\n\r\r\n0\r\n\r\n",
    "in chunks, in other words": HEAD + b"TRANSFER-ENCODING:gzip , Chunked \r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "with a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_a_request_ends_where_it_ends_in_whatever_pieces_it_comes(request_bytes: bytes, step: int) -> None:
    arriving = Arriving(LIMIT)
    for start in range(0, len(request_bytes), step):
        assert arriving.state in ("head", "body")
        arriving.take(request_bytes[start : start + step])
    assert arriving.state == "whole"
    assert all_of(arriving) == request_bytes
    assert (arriving.state, len(arriving)) == ("head", 0)


def all_of(arriving: Arriving) -> bytes:
    head, body = arriving.parts_of_it()
    return head + (body or b"")


def test_what_follows_belongs_to_the_next_request() -> None:
    arriving = Arriving(LIMIT)
    requests = [WHOLE["in chunks"], WHOLE["of a length"], WHOLE["without a body"]]
    arriving.take(b"".join(requests))
    for request in requests:
        assert arriving.state == "whole"
        assert all_of(arriving) == request
    assert arriving.state == "head"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: \r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 300,
    ],
)
def test_what_is_not_plain_is_left_to_the_real_parser(framing: bytes) -> None:
    arriving = Arriving(LIMIT)
    arriving.take(HEAD + framing + b"\r\n")
    assert arriving.state == "odd"


def test_a_head_without_an_end_is_not_gathered_for_ever() -> None:
    arriving = Arriving(LIMIT)
    arriving.take(HEAD + b"A: " + b"b" * MAX_HEAD)
    assert arriving.state == "long_head"


def test_a_body_over_the_limit_is_told_from_its_head_or_its_first_chunks() -> None:
    for rest in (
        b"Content-Length: 1001\r\n\r\n",
        b"Content-Length: 0" + b"9" * 5000 + b" \r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0" + b"f" * 200 + b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1001,
    ):
        arriving = Arriving(LIMIT)
        arriving.take(HEAD + rest)
        assert arriving.state == "too_large", rest[:40]


def test_a_body_in_too_many_chunks_is_not_followed_to_its_end() -> None:
    arriving = Arriving(10_000_000)
    arriving.take(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MAX_CHUNKS)
    assert arriving.state == "body"
    arriving.take(b"1\r\nx\r\n")
    assert arriving.state == "too_large"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02", b"\r\n\0", b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nA: b\n\r\n"]
)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_what_will_never_be_a_head_is_not_waited_for(data: bytes, step: int) -> None:
    arriving = Arriving(LIMIT)
    for start in range(0, len(data), step):
        arriving.take(data[start : start + step])
    assert arriving.state == "no_http"


def test_a_client_that_waits_for_a_word_is_known_and_the_parser_need_not_give_it_again() -> None:
    arriving = Arriving(LIMIT)
    arriving.take(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert arriving.expects_word
    assert arriving.state == "body"
    arriving.take(b"ok")
    assert all_of(arriving) == HEAD + b"Content-Length: 2\r\n\r\nok"
    assert not arriving.expects_word


def test_what_is_asked_for_is_known_from_the_head() -> None:
    arriving = Arriving(LIMIT)
    arriving.take(HEAD)
    assert arriving.target == b"/predict"
